"""Ended tasks as answers of a chat: one completion with images, or chunks of it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Final, Literal

from pydantic import Field
from starlette.responses import Response

from broker.api.dialects.openai.answers import count_tokens
from broker.api.shared.held_streams import event_bytes, stream_event
from broker.api.shared.inline_images import data_uri, image_json
from broker.api.shared.models import SnakeResponseModel
from broker.api.shared.task_errors import completed_tasks
from broker.catalog import Catalog
from broker.i18n import Messages
from broker.presenter import Absent
from broker.tasks.queries import TaskQueries
from storage.blobs.store import BlobStore
from storage.tasks import Task

DONE: Final = b"data: [DONE]\n\n"


class OpenAIChatUrl(SnakeResponseModel):
    url: Annotated[str, Field(description="a data URI")]


class OpenAIChatImage(SnakeResponseModel):
    type: Literal["image_url"]
    index: int
    image_url: OpenAIChatUrl


class OpenAIChatAnswerMessage(SnakeResponseModel):
    role: Literal["assistant"]
    content: Annotated[str, Field(description="what the model wrote beside the image")]
    images: list[OpenAIChatImage]


class OpenAIChatChoice(SnakeResponseModel):
    index: int
    message: OpenAIChatAnswerMessage
    finish_reason: Literal["stop"]


class OpenAIChatUsage(SnakeResponseModel):
    """Tokens of the images by the table of the model; the input and texts are not counted."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


class OpenAIChatCompletion(SnakeResponseModel):
    id: str
    object: Literal["chat.completion"]
    created: Annotated[int, Field(description="seconds since 1970")]
    model: str
    choices: Annotated[list[OpenAIChatChoice], Field(description="one for each image that could be made")]
    usage: OpenAIChatUsage | Absent = None


@dataclass(frozen=True, kw_only=True)
class ChatAnswers:
    queries: TaskQueries
    blobs: BlobStore
    catalog: Catalog
    messages: Messages

    async def respond(self, tasks: Sequence[Task]) -> Response:
        """Return the whole completion. Raises `ApiError` if no image was made."""
        completed = completed_tasks(tasks, self.messages)
        choices = [
            {"index": index, "message": {"role": "assistant", **await self._content(task)}, "finish_reason": "stop"}
            for index, task in enumerate(completed)
        ]
        usage = self._usage(completed)
        document = {**_head(completed, "chat.completion"), "choices": choices, **({"usage": usage} if usage else {})}
        return image_json(document, self.blobs)

    async def stream_chunks(self, tasks: Sequence[Task], *, with_usage: bool) -> AsyncIterator[bytes]:
        """Yield the chunks of the completion. Raises `ApiError` before the first one if no image was made."""
        completed = completed_tasks(tasks, self.messages)
        head = _head(completed, "chat.completion.chunk")
        for index, task in enumerate(completed):
            delta = {"role": "assistant", **await self._content(task)}
            chunk = {**head, "choices": [{"index": index, "delta": delta, "finish_reason": None}]}
            async for piece in stream_event(chunk, self.blobs):
                yield piece
            yield event_bytes({**head, "choices": [{"index": index, "delta": {}, "finish_reason": "stop"}]})
        if with_usage and (usage := self._usage(completed)):
            yield event_bytes({**head, "choices": [], "usage": usage})
        yield DONE

    async def _content(self, task: Task) -> dict[str, Any]:
        images = await self.queries.get_results(task)
        return {
            "content": "\n".join(task.texts),
            "images": [
                {"type": "image_url", "index": index, "image_url": {"url": data_uri(image)}}
                for index, image in enumerate(images)
            ],
        }

    def _usage(self, tasks: Sequence[Task]) -> dict[str, Any] | None:
        tokens = count_tokens(self.catalog, tasks)
        if tokens is None:
            return None
        return OpenAIChatUsage(
            prompt_tokens=tokens.input, completion_tokens=tokens.output, total_tokens=tokens.total
        ).to_document()


def _head(tasks: Sequence[Task], kind: str) -> dict[str, Any]:
    first = tasks[0]
    return {
        "id": f"chatcmpl-{first.id.removeprefix('task_')}",
        "object": kind,
        "created": int(first.ended_at or first.created_at),
        "model": first.model,
    }
