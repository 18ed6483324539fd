"""The image routes: generations and edits, held, streamed or asynchronous."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass

from starlette.requests import Request
from starlette.responses import Response

from broker.api.dialects.openai.answers import DELIVERED_SIZE, ImageAnswers, OpenAIImages, Operation
from broker.api.dialects.openai.async_tasks import AsyncTasks, OpenAIImageTask
from broker.api.dialects.openai.errors import SPELLING, error_event
from broker.api.dialects.openai.image_requests import (
    OpenAIImageFields,
    OpenAIImageForm,
    OpenAIImageRequest,
    read_image_form,
)
from broker.api.dialects.openai.models import ModelNames
from broker.api.http.endpoint import Endpoint, Handler, Schema, SuccessResponse, json_success
from broker.api.http.request_body import MAX_JSON_BYTES, media_type_of, read_form, read_json_model
from broker.api.shared.held_answers import ORDER_ERRORS, HeldAnswers, PlacedOrder, wants_async
from broker.api.shared.held_streams import EVENT_SCHEMA, stream_answer
from broker.errors import ApiError
from broker.orders import ReferenceSource
from storage.tasks import Task

TAG = "OpenAI"
ACCEPTED = json_success("the order is durable", OpenAIImageTask)
_BODIES: Mapping[str, Schema] = {"application/json": OpenAIImageRequest, "multipart/form-data": OpenAIImageForm}


@dataclass(frozen=True, kw_only=True)
class Wishes:
    """How the client of a placed order wants its answer."""

    operation: Operation
    quality: str | None
    has_links: bool
    is_streamed: bool


@dataclass(frozen=True, kw_only=True)
class OpenAIImageRoutes:
    held: HeldAnswers
    names: ModelNames
    answers: ImageAnswers
    async_tasks: AsyncTasks
    max_form_bytes: int

    def endpoints(self) -> list[Endpoint]:
        held = {
            200: SuccessResponse(
                text="the images; with `stream`, an event for each",
                content={"application/json": OpenAIImages, "text/event-stream": EVENT_SCHEMA},
                headers={DELIVERED_SIZE: (False, "sizes in pixels; not of a stream")},
            ),
            202: ACCEPTED,
        }
        return [
            _order_endpoint("/v1/images/generations", self.create_openai_images, held),
            _order_endpoint("/v1/images/edits", self.edit_openai_images, held),
            _order_endpoint("/v1/images/generations/async", self.create_openai_image_task, {202: ACCEPTED}),
            _order_endpoint("/v1/images/edits/async", self.edit_openai_image_task, {202: ACCEPTED}),
        ]

    async def create_openai_images(self, request: Request) -> Response:
        """Generate images, and wait for them.

        With `Prefer: respond-async` the response is 202 with a task, as from the asynchronous route.
        """
        return await self._answer(request, "image_generation")

    async def edit_openai_images(self, request: Request) -> Response:
        """Edit images, and wait for the result."""
        return await self._answer(request, "image_edit")

    async def create_openai_image_task(self, request: Request) -> Response:
        """Generate images asynchronously."""
        return await self._accept(request, "image_generation")

    async def edit_openai_image_task(self, request: Request) -> Response:
        """Edit images asynchronously."""
        return await self._accept(request, "image_edit")

    # -- answering

    async def _answer(self, request: Request, operation: Operation) -> Response:
        if wants_async(request):
            return await self._accept(request, operation, is_preferred=True)
        placed, wishes = await self._place(request, operation, is_held=True)
        if wishes.is_streamed:

            def render_events(tasks: Sequence[Task]) -> AsyncIterator[bytes]:
                return self.answers.stream_events(tasks, operation=operation, quality=wishes.quality)

            return stream_answer(self.held, request, placed, render_events, error_event)

        async def render(tasks: Sequence[Task]) -> Response:
            link_base = self.async_tasks.link_base(request) if wishes.has_links else None
            return await self.answers.respond(tasks, quality=wishes.quality, link_base=link_base)

        return await self.held.answer(request, placed, render)

    async def _accept(self, request: Request, operation: Operation, *, is_preferred: bool = False) -> Response:
        placed, _ = await self._place(request, operation, is_held=False)
        return await self.async_tasks.accept(placed, is_preferred=is_preferred)

    # -- placing

    async def _place(self, request: Request, operation: Operation, *, is_held: bool) -> tuple[PlacedOrder, Wishes]:
        media_type, options = media_type_of(request)
        if media_type == "multipart/form-data":
            form = await read_form(request, options, self.max_form_bytes)
            try:
                return await self._order(request, operation, *read_image_form(form), is_held=is_held)
            finally:
                await form.close()
        if media_type == "application/json" or re.fullmatch(r"application/[\w.-]+\+json", media_type):
            parsed = await read_json_model(request, MAX_JSON_BYTES, OpenAIImageRequest)
            return await self._order(request, operation, parsed, tuple(parsed.list_sources()), is_held=is_held)
        raise ApiError(
            "invalid_request", "Send the order as application/json or multipart/form-data.", field="Content-Type"
        )

    async def _order(
        self,
        request: Request,
        operation: Operation,
        parsed: OpenAIImageFields,
        sources: tuple[ReferenceSource, ...],
        *,
        is_held: bool,
    ) -> tuple[PlacedOrder, Wishes]:
        if operation == "image_edit" and not sources:
            raise ApiError("invalid_request", "Send at least one image to edit.", field="image")
        wishes = Wishes(
            operation=operation,
            quality=parsed.asked_quality,
            has_links=parsed.wants_links,
            is_streamed=bool(parsed.stream),
        )
        if wishes.is_streamed and not is_held:
            text = "A task is polled, so it cannot be streamed: leave stream out, or use the synchronous route."
            raise ApiError("unsupported_parameter", text, field="stream")
        order, ignored = parsed.to_order(self.names, sources)
        placed = await self.held.place(request, order, is_held=is_held, ignored=ignored, spelling=SPELLING)
        return placed, wishes


def _order_endpoint(path: str, handler: Handler, responses: dict[int, SuccessResponse]) -> Endpoint:
    return Endpoint(
        "POST",
        path,
        handler,
        access="caller",
        tag=TAG,
        request=_BODIES,
        responses=responses,
        errors=ORDER_ERRORS,
        is_held=200 in responses,
    )
