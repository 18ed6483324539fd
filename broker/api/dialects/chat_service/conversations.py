"""The routes of conversations: create, list, read, rename, pin, delete."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Final, Literal

from starlette.requests import Request
from starlette.responses import Response

from broker.api.dialects.chat_service.conversation_schemas import (
    ChatConversation,
    ChatConversationList,
    ChatMessage,
    ChatMessageList,
    ConversationChanges,
    ConversationListQuery,
    DeletedConversation,
    MessageListQuery,
    NewConversation,
)
from broker.api.http.endpoint import Endpoint, Parameter, json_success, principal_of
from broker.api.http.pagination import split_page
from broker.api.http.request_body import has_body, read_json_model
from broker.api.http.responses import json_response, requested_language
from broker.api.shared.inline_images import InlineImage, image_json
from broker.clock import iso
from broker.conversations.service import ConversationService, TurnView
from broker.i18n import Language, Messages
from storage.blobs.store import BlobStore
from storage.conversations.conversations import StoredConversation
from storage.conversations.turns import TurnTask
from storage.images import StoredImage

MAX_BODY_BYTES: Final = 2**16
_ID: Final = Parameter("id", "path", "of a conversation")
_PATHS: Final = {"result": "/uploads/images/", "reference": "/uploads/references/"}


@dataclass(frozen=True, kw_only=True)
class ConversationRoutes:
    conversations: ConversationService
    blobs: BlobStore
    messages: Messages

    def endpoints(self) -> list[Endpoint]:
        endpoint = partial(Endpoint, access="caller", tag="chat service")
        one = partial(endpoint, path="/conversations/{id}", parameters=(_ID,))
        return [
            endpoint(
                "POST",
                "/conversations",
                self.create_conversation,
                request={"application/json": NewConversation},
                responses={200: json_success("the conversation", ChatConversation)},
                errors=("invalid_request", "payload_too_large", "conflict"),
            ),
            endpoint(
                "GET",
                "/conversations",
                self.list_conversations,
                query=ConversationListQuery,
                responses={200: json_success("a page, the last used first", ChatConversationList)},
            ),
            endpoint(
                "GET",
                "/conversations/{id}/messages",
                self.list_messages,
                parameters=(_ID,),
                query=MessageListQuery,
                responses={200: json_success("the newest turns, in order", ChatMessageList)},
                errors=("not_found", "task_expired"),
            ),
            one(
                "PATCH",
                handler=self.change_conversation,
                request={"application/json": ConversationChanges},
                responses={200: json_success("the conversation then", ChatConversation)},
                errors=("invalid_request", "payload_too_large", "not_found", "quota_exceeded"),
            ),
            one(
                "DELETE",
                handler=self.delete_conversation,
                responses={200: json_success("deleted", DeletedConversation)},
                errors=("not_found",),
            ),
        ]

    async def create_conversation(self, request: Request) -> Response:
        """Begin a conversation."""
        body = await read_json_model(request, MAX_BODY_BYTES, NewConversation) if has_body(request) else None
        owner = principal_of(request).owner
        return self._show(request, await self.conversations.create(owner, body.title if body else None))

    async def list_conversations(self, request: Request) -> Response:
        """List conversations.

        The last used one comes first. `Link` and `x-next-cursor` lead to the next page.
        """
        query = ConversationListQuery.read(request)
        found = await self.conversations.list_newest(
            principal_of(request).scope, before=query.cursor, limit=query.limit + 1
        )
        page, cursor = split_page(found, query.limit, lambda one: (one.updated_at, one.id))
        shown = [self._view(one, requested_language(request)).to_document() for one in page]
        return json_response(shown, headers=_next_page(request, query.limit, cursor))

    async def list_messages(self, request: Request) -> Response:
        """List the messages of a conversation, with their images.

        The newest turns, in the order in which they were written; `Link` and `x-next-cursor` lead to earlier ones. A
        turn that failed says why.
        """
        query = MessageListQuery.read(request)
        turns = await self.conversations.list_turns(
            principal_of(request).scope, request.path_params["id"], before=query.cursor, limit=query.limit + 1
        )
        page = turns[: query.limit]
        cursor = str(page[-1].turn.number) if len(turns) > len(page) else None
        language, has_urls = requested_language(request), query.images == "url"
        shown = [one for view in reversed(page) for one in self._messages(view, language, has_urls=has_urls)]
        headers = _next_page(request, query.limit, cursor, {"images": "url"} if has_urls else {})
        return image_json(shown, self.blobs, headers=headers)

    async def change_conversation(self, request: Request) -> Response:
        """Rename, pin or unpin a conversation."""
        changes = await read_json_model(request, MAX_BODY_BYTES, ConversationChanges)
        scope, conversation_id = principal_of(request).scope, request.path_params["id"]
        changed = await self.conversations.change(scope, conversation_id, title=changes.title, is_pinned=changes.pinned)
        return self._show(request, changed)

    async def delete_conversation(self, request: Request) -> Response:
        """Delete a conversation with its images.

        Orders that have not ended are canceled.
        """
        await self.conversations.delete(principal_of(request).scope, request.path_params["id"])
        return json_response(DeletedConversation(ok=True).to_document())

    # -- views

    def _show(self, request: Request, conversation: StoredConversation) -> Response:
        return json_response(self._view(conversation, requested_language(request)).to_document())

    def _view(self, conversation: StoredConversation, language: Language) -> ChatConversation:
        return ChatConversation.from_object(
            conversation,
            title=conversation.title or self.messages.get("untitled_conversation", language),
            pinned=conversation.pinned_at is not None,
        )

    def _messages(self, view: TurnView, language: Language, *, has_urls: bool) -> list[dict[str, Any]]:
        """Return the message of the user and that of the model."""
        tasks, status = view.tasks, _status_of(view.tasks)
        failed = next((task for task in tasks if task.error_code), None) if status in _ENDED_BADLY else None
        ends = [task.ended_at for task in tasks if task.ended_at is not None]
        asked = _Message(
            role="user",
            content=next((task.prompt for task in tasks if task.prompt), ""),
            images=view.inputs,
            created_at=view.turn.created_at,
        )
        answered = _Message(
            role="assistant",
            content=self._answer_text(tasks, status, failed, language),
            texts=tuple(text for task in tasks for text in task.texts),
            images=view.images,
            status=status,
            error=(failed.error_code or status) if failed else None,
            created_at=max(ends) if ends and len(ends) == len(tasks) else view.turn.created_at,
        )
        return [message.to_document(view, has_urls=has_urls) for message in (asked, answered)]

    def _answer_text(self, tasks: Sequence[TurnTask], status: str, failed: TurnTask | None, language: Language) -> str:
        if status == "deleted":
            return self.messages.get("deleted", language)
        if failed is not None:
            return self.messages.task_error(failed.error_code or status, failed.billed, language)
        return "\n".join(text for task in tasks for text in task.texts)


@dataclass(frozen=True, kw_only=True)
class _Message:
    """What is different in the two messages of a turn; the names are those of `ChatMessage`."""

    role: Literal["user", "assistant"]
    content: str
    texts: Sequence[str] = ()
    images: Sequence[StoredImage]
    status: str = "completed"
    error: str | None = None
    created_at: float

    def to_document(self, view: TurnView, *, has_urls: bool) -> dict[str, Any]:
        urls = [_PATHS[image.kind] + image.name for image in self.images]
        message = ChatMessage(
            id=f"{view.turn.id}:{self.role}",
            conversation_id=view.turn.conversation_id,
            turn_id=view.turn.id,
            parent_id=view.turn.parent_id,
            role=self.role,
            content=self.content,
            text=self.content,
            type="edit" if view.inputs else "generate",
            prompt=self.content if self.role == "user" else None,
            texts=list(self.texts),
            images=[],
            image_urls=urls,
            status=self.status,
            error=self.error,
            task_ids=[task.id for task in view.tasks],
            created_at=iso(self.created_at) or "",
        )
        return message.with_images(urls if has_urls else [InlineImage(image=image) for image in self.images])


_ENDED_BADLY: Final = frozenset({"failed", "canceled"})


def _status_of(tasks: Sequence[TurnTask]) -> str:
    """Return the status of an answer: completed, if at least one image of it is there."""
    statuses = {task.status for task in tasks} - {"expired"}
    if not statuses:
        return "deleted"
    if statuses & {"pending", "processing"}:
        return "pending" if statuses == {"pending"} else "processing"
    return next(one for one in ("completed", "failed", "canceled") if one in statuses)


def _next_page(request: Request, limit: int, cursor: str | None, more: dict[str, str] | None = None) -> dict[str, str]:
    """Return the headers that lead to the next page; none on the last one."""
    if cursor is None:
        return {}
    query = "&".join(f"{name}={value}" for name, value in {"limit": limit, "cursor": cursor, **(more or {})}.items())
    return {"x-next-cursor": cursor, "link": f'<{request.url.path}?{query}>; rel="next"'}
