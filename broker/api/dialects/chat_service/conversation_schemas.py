"""Models of conversations and messages, as a client of a FastAPI service reads them."""

from __future__ import annotations

import re
from typing import Annotated, Any, Final, Literal

from pydantic import ConfigDict, Field, RootModel

from broker.api.http.pagination import MAX_LIMIT, cursor_text, parse_limit
from broker.api.http.query import EMPTY, ParsedText, QueryModel, one_of_text
from broker.api.http.request_body import RequestModel
from broker.api.shared.models import SnakeResponseModel
from broker.presenter import Moment, OneOf, TaskId
from storage import ids

DEFAULT_TURNS: Final = 50
"""Turns of a page of messages; each has two."""
IMAGES_AS: Final = ("base64", "url")
MESSAGE_STATUSES: Final = ("pending", "processing", "completed", "failed", "canceled", "deleted")


def _page_length(default: int) -> ParsedText:
    number = {"type": "integer", "minimum": 1, "maximum": 999_999_999}
    return ParsedText(parse_limit, {"anyOf": [number, EMPTY], "default": default})


def _parse_number(text: str) -> int:
    if not re.fullmatch(r"[0-9]{1,9}", text):
        raise ValueError("must be the cursor of an earlier page")
    return int(text)


class ConversationListQuery(QueryModel):
    limit: Annotated[int, _page_length(MAX_LIMIT), Field(description="length of a page; 100 at most")] = MAX_LIMIT
    cursor: Annotated[tuple[float, str] | None, cursor_text("conv")] = None


class MessageListQuery(QueryModel):
    limit: Annotated[int, _page_length(DEFAULT_TURNS), Field(description="turns of a page; 100 at most")] = (
        DEFAULT_TURNS
    )
    cursor: Annotated[
        int | None,
        ParsedText(_parse_number, {"anyOf": [{"type": "string", "pattern": "^[0-9]{1,9}$"}, EMPTY]}),
        Field(description="`x-next-cursor` of the page before"),
    ] = None
    images: Annotated[str, one_of_text(IMAGES_AS), Field(description="what `images` holds")] = "base64"


class NewConversation(RequestModel):
    """The body of a new conversation; it may be missing."""

    model_config = ConfigDict(extra="allow", strict=True)

    title: Annotated[str | None, Field(description="of its first prompt by default")] = None


class ConversationChanges(RequestModel):
    model_config = ConfigDict(extra="allow", strict=True)

    title: str | None = None
    pinned: Annotated[bool | None, Field(description="keep it beyond retention")] = None


class ChatConversation(SnakeResponseModel):
    id: Annotated[str, Field(pattern=f"^{ids.CONVERSATION_ID.pattern}$")]
    title: str
    turns: Annotated[int, Field(description="each has two messages")]
    pinned: bool
    created_at: Moment
    updated_at: Moment


class ChatConversationList(RootModel[list[ChatConversation]]):
    """The last used first."""


class ChatMessage(SnakeResponseModel):
    id: str
    conversation_id: str
    turn_id: Annotated[str, Field(description="of both messages of a turn")]
    parent_id: Annotated[str | None, Field(description="of the turn that this one goes on from")]
    role: Literal["user", "assistant"]
    content: Annotated[str, Field(description="the prompt; what the model wrote; why there is no image")]
    text: Annotated[str, Field(description="the same as content")]
    type: Annotated[str, OneOf(("generate", "edit")), Field(description="edit: the user sent images")]
    prompt: Annotated[str | None, Field(description="of the user; null for the model")]
    texts: Annotated[list[str], Field(description="what the model wrote")]
    images: Annotated[list[str], Field(description="base64, or addresses with `images=url`")]
    image_urls: list[str]
    status: Annotated[str, OneOf(MESSAGE_STATUSES)]
    error: Annotated[str | None, Field(description="code of a failure")]
    task_ids: Annotated[list[TaskId], Field(description="one per image that was ordered")]
    created_at: Moment

    def with_images(self, images: list[Any]) -> dict[str, Any]:
        """Return the document with the images, which may stand for strings."""
        return {**self.to_document(), "images": images}


class ChatMessageList(RootModel[list[ChatMessage]]):
    """In the order in which they were written."""


class DeletedConversation(SnakeResponseModel):
    ok: bool
