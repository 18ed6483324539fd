"""The routes of the image service: generate, status, list, delete."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Final

from starlette.requests import Request
from starlette.responses import Response

from broker.api.dialects.image_service.schemas import (
    USED_FIELDS,
    ImageServiceAccepted,
    ImageServiceDeleted,
    ImageServiceImage,
    ImageServiceList,
    ImageServiceListQuery,
    ImageServiceMeta,
    ImageServiceRequest,
    Status,
)
from broker.api.http.addresses import own_base_url
from broker.api.http.endpoint import Endpoint, Parameter, json_success, principal_of
from broker.api.http.request_body import MAX_JSON_BYTES, read_json_model
from broker.api.http.responses import json_response, requested_language
from broker.api.shared.held_answers import ORDER_ERRORS, HeldAnswers, PlacedOrder
from broker.api.shared.task_errors import task_error
from broker.clock import iso
from broker.i18n import Language, Messages
from broker.tasks.cancellation import TaskCanceler
from broker.tasks.deletion import TaskDeleter
from broker.tasks.queries import TaskQueries
from storage.tasks import Task

STATUSES: Final[dict[str, Status]] = {
    "pending": "pending",
    "processing": "running",
    "completed": "completed",
    "failed": "failed",
    "canceled": "failed",
}
_GONE: Final = ("task_not_found", "task_expired")


@dataclass(frozen=True, kw_only=True)
class ImageServiceRoutes:
    held: HeldAnswers
    queries: TaskQueries
    canceler: TaskCanceler
    deleter: TaskDeleter
    messages: Messages
    public_base: Callable[[], str | None]

    def endpoints(self) -> list[Endpoint]:
        """Return the endpoint list of the dialect."""
        endpoint = partial(Endpoint, access="caller", tag="image service")
        which = (Parameter("id", "path", "the image_id"),)
        return [
            endpoint(
                "POST",
                "/api/v1/images/generate",
                self.order_generation,
                operation_id="imageServiceGenerate",
                request={"application/json": ImageServiceRequest},
                responses={200: json_success("the order is durable", ImageServiceAccepted)},
                errors=ORDER_ERRORS,
            ),
            endpoint(
                "GET",
                "/api/v1/images/status/{id}",
                self.get_generation,
                operation_id="imageServiceStatus",
                parameters=which,
                responses={200: json_success("the generation", ImageServiceImage)},
                errors=_GONE,
                is_quiet=True,
            ),
            endpoint(
                "GET",
                "/api/v1/images/list",
                self.list_generations,
                operation_id="imageServiceList",
                query=ImageServiceListQuery,
                responses={200: json_success("generations, newest first", ImageServiceList)},
            ),
            endpoint(
                "DELETE",
                "/api/v1/images/{id}",
                self.delete_generation,
                operation_id="imageServiceDelete",
                parameters=which,
                responses={200: json_success("it is canceled or deleted", ImageServiceDeleted)},
                errors=(*_GONE, "conflict"),
            ),
        ]

    async def order_generation(self, request: Request) -> Response:
        """Order an image in the way of the image service."""
        placed = await self._place(request)
        accepted = ImageServiceAccepted(
            status="pending",
            image_id=placed.tasks[0],
            image_url=None,
            message=self.messages.get("processing", requested_language(request)),
        )
        return json_response(accepted.to_document())

    async def _place(self, request: Request) -> PlacedOrder:
        parsed = await read_json_model(request, MAX_JSON_BYTES, ImageServiceRequest)
        return await self.held.place(
            request, parsed.to_order(), is_held=False, ignored=parsed.ignored, spelling=USED_FIELDS
        )

    async def get_generation(self, request: Request) -> Response:
        """Get an image in the way of the image service."""
        task = await self.queries.get(request.path_params["id"], principal_of(request).scope)
        return json_response((await self._present(request, task)).to_document())

    async def list_generations(self, request: Request) -> Response:
        """List images in the way of the image service."""
        query = ImageServiceListQuery.read(request)
        tasks = await self.queries.list_newest(
            principal_of(request).own_scope, status=None, limit=query.offset + query.limit + 1, before=None
        )
        page = tasks[query.offset : query.offset + query.limit]
        listed = ImageServiceList(
            generations=[await self._present(request, task) for task in page],
            meta=ImageServiceMeta(
                shown=len(page),
                limit=query.limit,
                offset=query.offset,
                has_more=len(tasks) > query.offset + query.limit,
            ),
        )
        return json_response(listed.to_document())

    async def delete_generation(self, request: Request) -> Response:
        """Cancel an image, or delete one that is finished, in the way of the image service."""
        task_id, language = request.path_params["id"], requested_language(request)
        scope = principal_of(request).scope
        if (await self.queries.get(task_id, scope)).has_ended:
            await self.deleter.delete_task(task_id, scope)
            key = "deleted"
        else:
            await self.canceler.cancel_task(task_id, scope)
            key = "canceled"
        deleted = ImageServiceDeleted(message=self.messages.get(key, language), image_id=task_id)
        return json_response(deleted.to_document())

    async def _present(self, request: Request, task: Task) -> ImageServiceImage:
        base = own_base_url(request, self.public_base())
        urls = [f"{base}/uploads/images/{image.name}" for image in await self.queries.get_results(task)]
        first = urls[0] if urls else None
        return ImageServiceImage(
            id=task.id,
            image_id=task.id,
            user_id=task.caller,
            status=STATUSES[task.status],
            prompt=task.prompt,
            generation_mode=task.mode,
            resolution=task.resolution,
            aspect_ratio=task.aspect_ratio,
            model_name=task.model,
            seed=task.params.get("seed"),
            result_url=first,
            image_url=first,
            image_urls=urls,
            error_message=self._error_of(task, requested_language(request)),
            created_at=iso(task.created_at) or "",
            completed_at=iso(task.ended_at),
        )

    def _error_of(self, task: Task, language: Language) -> str | None:
        if STATUSES[task.status] != "failed":
            return None
        return task_error(task, self.messages, language).message
