"""The route of BananaService."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

from starlette.requests import Request
from starlette.responses import Response

from broker.api.dialects.banana_service.schemas import BananaServiceImages, BananaServiceRequest
from broker.api.http.endpoint import Endpoint, json_success
from broker.api.http.request_body import read_json_model
from broker.api.http.responses import requested_language
from broker.api.shared.async_answers import AsyncAnswer, async_answer
from broker.api.shared.held_answers import ORDER_ERRORS, HeldAnswers, PlacedOrder, wants_async
from broker.api.shared.inline_images import InlineImage, image_json
from broker.api.shared.task_errors import completed_tasks
from broker.i18n import Language, Messages
from broker.tasks.queries import TaskQueries
from storage.blobs.store import BlobStore
from storage.tasks import Task

MAX_BODY_BYTES = 48 * 2**20


@dataclass(frozen=True, kw_only=True)
class BananaServiceRoutes:
    held: HeldAnswers
    queries: TaskQueries
    blobs: BlobStore
    messages: Messages

    def endpoints(self) -> list[Endpoint]:
        """Return the endpoint list of the dialect."""
        return [
            Endpoint(
                "POST",
                "/generate",
                self.generate_images,
                operation_id="bananaServiceGenerate",
                access="caller",
                tag="BananaService",
                request={"application/json": BananaServiceRequest},
                responses={
                    200: json_success("the images", BananaServiceImages),
                    202: json_success("the order is durable", AsyncAnswer),
                },
                errors=ORDER_ERRORS,
                is_held=True,
            )
        ]

    async def generate_images(self, request: Request) -> Response:
        """Generate images, and wait for them."""
        is_async = wants_async(request)
        placed = await self._place(request, is_held=not is_async)
        if is_async:
            return async_answer(placed)
        return await self.held.answer(request, placed, partial(self._render, requested_language(request)))

    async def _place(self, request: Request, *, is_held: bool) -> PlacedOrder:
        parsed = await read_json_model(request, MAX_BODY_BYTES, BananaServiceRequest)
        return await self.held.place(
            request, parsed.to_order(), is_held=is_held, ignored=list(parsed.model_extra or ())
        )

    async def _render(self, language: Language, tasks: Sequence[Task]) -> Response:
        images = [
            InlineImage(image=image)
            for task in completed_tasks(tasks, self.messages, language)
            for image in await self.queries.get_results(task)
        ]
        return image_json({"images": images, "metadata": None}, self.blobs)
