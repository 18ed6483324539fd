"""The chat route: completions with image output, held or streamed."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass

from starlette.requests import Request
from starlette.responses import Response

from broker.api.dialects.openai.async_tasks import AsyncTasks, OpenAIImageTask
from broker.api.dialects.openai.chat_answers import ChatAnswers, OpenAIChatCompletion
from broker.api.dialects.openai.chat_requests import OpenAIChatRequest
from broker.api.dialects.openai.errors import CHAT_PATH, CHAT_SPELLING, error_event
from broker.api.dialects.openai.models import ModelNames
from broker.api.http.endpoint import Endpoint, SuccessResponse, json_success
from broker.api.http.request_body import MAX_JSON_BYTES, read_json_model
from broker.api.shared.held_answers import ORDER_ERRORS, HeldAnswers, PlacedOrder, wants_async
from broker.api.shared.held_streams import EVENT_SCHEMA, stream_answer
from broker.catalog import Model
from storage.tasks import Task


@dataclass(frozen=True, kw_only=True)
class _ChatWishes:
    """How the client of a placed order wants its answer."""

    is_streamed: bool
    with_usage: bool


@dataclass(frozen=True, kw_only=True)
class OpenAIChatRoutes:
    held: HeldAnswers
    names: ModelNames
    answers: ChatAnswers
    most_references: Callable[[Model], int]
    async_tasks: AsyncTasks

    def endpoints(self) -> list[Endpoint]:
        return [
            Endpoint(
                "POST",
                CHAT_PATH,
                self.complete_openai_chat,
                access="caller",
                tag="OpenAI",
                request={"application/json": OpenAIChatRequest},
                responses={
                    200: SuccessResponse(
                        text="the completion; with `stream`, its chunks",
                        content={"application/json": OpenAIChatCompletion, "text/event-stream": EVENT_SCHEMA},
                    ),
                    202: json_success("the order is durable", OpenAIImageTask),
                },
                errors=ORDER_ERRORS,
                is_held=True,
            )
        ]

    async def complete_openai_chat(self, request: Request) -> Response:
        """Answer a chat with images, and wait for them.

        `modalities` must have `image`.
        """
        is_async = wants_async(request)
        placed, wishes = await self._place(request, is_held=not is_async)
        if is_async:
            return await self.async_tasks.accept(placed, is_preferred=True)
        if wishes.is_streamed:

            def render_events(tasks: Sequence[Task]) -> AsyncIterator[bytes]:
                return self.answers.stream_chunks(tasks, with_usage=wishes.with_usage)

            return stream_answer(self.held, request, placed, render_events, error_event)
        return await self.held.answer(request, placed, self.answers.respond)

    async def _place(self, request: Request, *, is_held: bool) -> tuple[PlacedOrder, _ChatWishes]:
        parsed = await read_json_model(request, MAX_JSON_BYTES, OpenAIChatRequest)
        options = parsed.stream_options
        wishes = _ChatWishes(
            is_streamed=bool(parsed.stream), with_usage=bool(options is not None and options.include_usage)
        )
        order = parsed.to_order(self.names, self.most_references)
        placed = await self.held.place(
            request, order, is_held=is_held, ignored=parsed.ignored_names(), spelling=CHAT_SPELLING
        )
        return placed, wishes
