"""The routes of the chat service that make images."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

from starlette.requests import Request
from starlette.responses import Response

from broker.api.dialects.chat_service.failures import completed_or_hint
from broker.api.dialects.chat_service.png_copies import PngCopies
from broker.api.dialects.chat_service.schemas import (
    SPELLING,
    ChatServiceComposeForm,
    ChatServiceForm,
    ChatServiceImages,
    ChatServiceOptions,
    read_chat_form,
)
from broker.api.http.endpoint import Endpoint, Schema, json_success, principal_of
from broker.api.http.request_body import media_type_of, read_form, read_json_model
from broker.api.http.responses import requested_language
from broker.api.shared.async_answers import AsyncAnswer, async_answer
from broker.api.shared.held_answers import ORDER_ERRORS, HeldAnswers, PlacedOrder, wants_async
from broker.api.shared.inline_images import InlineImage, image_json
from broker.conversations.service import ConversationService, NextTurn
from broker.errors import ApiError
from broker.i18n import Language, Messages
from broker.tasks.queries import TaskQueries
from storage.blobs.store import BlobStore
from storage.tasks import Task

MAX_JSON_BYTES = 2**20
"""The longest prompt is far below; images are sent as files."""


@dataclass(frozen=True, kw_only=True)
class ChatServiceRoutes:
    held: HeldAnswers
    conversations: ConversationService
    queries: TaskQueries
    blobs: BlobStore
    copies: PngCopies
    messages: Messages
    max_form_bytes: int

    def endpoints(self) -> list[Endpoint]:
        """Return the endpoint list of the dialect."""
        form = "multipart/form-data"
        return [
            _order_endpoint("/v1/generate", self.chat_generate, {"application/json": ChatServiceOptions}),
            _order_endpoint("/v1/edit", self.chat_edit, {form: ChatServiceForm}),
            _order_endpoint("/v1/compose", self.chat_compose, {form: ChatServiceComposeForm}),
        ]

    async def chat_generate(self, request: Request) -> Response:
        """Generate images from a prompt, and wait for them."""
        return await self._answer(request, self._place_json)

    async def chat_edit(self, request: Request) -> Response:
        """Edit images, and wait for the result."""
        return await self._answer(request, partial(self._place_form, model=ChatServiceForm))

    async def chat_compose(self, request: Request) -> Response:
        """Combine several images, and wait for the result."""
        return await self._answer(request, partial(self._place_form, model=ChatServiceComposeForm))

    async def _answer(self, request: Request, place: Callable[[Request], Awaitable[PlacedOrder]]) -> Response:
        placed = await place(request)
        if wants_async(request):
            return async_answer(placed)
        return await self.held.answer(request, placed, partial(self._render, requested_language(request)))

    async def _place_json(self, request: Request) -> PlacedOrder:
        return await self._order(request, await read_json_model(request, MAX_JSON_BYTES, ChatServiceOptions))

    async def _place_form(self, request: Request, *, model: type[ChatServiceForm]) -> PlacedOrder:
        media_type, options = media_type_of(request)
        if media_type != "multipart/form-data":
            message = "Send prompt and files as multipart/form-data."
            raise ApiError("invalid_request", message, field="Content-Type")
        form = await read_form(request, options, self.max_form_bytes)
        try:
            return await self._order(request, read_chat_form(form, model))
        finally:
            await form.close()

    async def _order(self, request: Request, parsed: ChatServiceOptions) -> PlacedOrder:
        order, turn = parsed.to_order(), await self._next_turn(request, parsed)
        return await self.held.place(
            request,
            order if turn is None else replace(order, conversation=turn.request_key),
            is_held=not wants_async(request),
            ignored=parsed.ignored,
            spelling=SPELLING,
            continuation=turn,
        )

    async def _next_turn(self, request: Request, parsed: ChatServiceOptions) -> NextTurn | None:
        """Return the turn that the order becomes; None without a conversation."""
        if parsed.conversation_id is None:
            return None
        scope = principal_of(request).scope
        return await self.conversations.next_turn(scope, parsed.conversation_id, parsed.parent)

    async def _render(self, language: Language, tasks: Sequence[Task]) -> Response:
        completed = completed_or_hint(tasks, self.messages, language)
        stored = [image for task in completed for image in await self.queries.get_results(task)]
        images = [InlineImage(image=await self.copies.as_png(image)) for image in stored]
        return image_json({"images": images, "texts": [text for task in completed for text in task.texts]}, self.blobs)


def _order_endpoint(
    path: str, handler: Callable[[Request], Awaitable[Response]], request: dict[str, Schema]
) -> Endpoint:
    return Endpoint(
        "POST",
        path,
        handler,
        access="caller",
        tag="chat service",
        request=request,
        responses={
            200: json_success("the images", ChatServiceImages),
            202: json_success("the order is durable", AsyncAnswer),
        },
        errors=(*ORDER_ERRORS, "not_found", "conflict"),
        is_held=True,
    )
