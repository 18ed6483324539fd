"""Endpoints of the example dialect: order an image, get it."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

from pydantic import ValidationError
from starlette.requests import Request
from starlette.responses import Response

from broker.api.http.endpoint import Endpoint, Parameter, json_success, principal_of
from broker.api.http.request_body import read_json_object
from broker.api.http.responses import json_response
from broker.errors import ApiError
from broker.ordering.service import OrderService
from broker.orders import OrderRequest
from broker.tasks.queries import TaskQueries
from storage.tasks import Task
from tests.examples.dialect.schemas import ImageJob, ImageRequest

MAX_BODY_BYTES = 64 * 1024


@dataclass(frozen=True, kw_only=True)
class ImageRoutes:
    """The handlers, and the parts that they use."""

    orders: OrderService
    queries: TaskQueries
    request_model: type[ImageRequest]

    def endpoints(self) -> list[Endpoint]:
        """Return the endpoint list of the dialect."""
        endpoint = partial(Endpoint, access="caller", tag="example")
        return [
            endpoint(
                "POST",
                "/example/images",
                self.create_image,
                operation_id="exampleCreateImage",
                request={"application/json": self.request_model},
                responses={202: json_success("the order is durable", ImageJob)},
                errors=(
                    "invalid_request",
                    "invalid_prompt",
                    "unsupported_parameter",
                    "payload_too_large",
                    "rate_limited",
                ),
            ),
            endpoint(
                "GET",
                "/example/images/{id}",
                self.get_image,
                operation_id="exampleGetImage",
                parameters=(Parameter("id", "path", "the id of the task"),),
                responses={200: json_success("the image, as far as it is", ImageJob)},
                errors=("task_not_found", "task_expired"),
            ),
        ]

    async def create_image(self, request: Request) -> Response:
        """Order an image."""
        try:
            parsed = await read_json_object(request, MAX_BODY_BYTES, self.request_model.model_validate)
        except ValidationError as error:
            field = str(error.errors()[0]["loc"][0])
            raise ApiError("invalid_request", f"{field} is missing or has a wrong type.", field=field) from error
        owner, order = principal_of(request).owner, OrderRequest(params=parsed.to_params())
        created = await self.orders.create(owner, order, await self.orders.plan(owner, order))
        return json_response((await self._job(created.tasks[0])).to_document(), 202)

    async def get_image(self, request: Request) -> Response:
        """Get an image."""
        task = await self.queries.get(request.path_params["id"], principal_of(request).scope)
        return json_response((await self._job(task)).to_document())

    async def _job(self, task: Task) -> ImageJob:
        images = await self.queries.get_results(task)
        return ImageJob(
            id=task.id,
            state="running" if not task.has_ended else "done" if images else "failed",
            images=[f"/uploads/images/{image.name}" for image in images],
        )
