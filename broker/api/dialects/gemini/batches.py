"""Batches of the Gemini API: several different requests, each a durable task, all created or none."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Annotated, Any, Final

from pydantic import Field
from starlette.requests import Request
from starlette.responses import Response

from broker.api.dialects.gemini.batch_documents import (
    ORIGIN,
    BatchWriter,
    GeminiBatchItem,
    GeminiBatchList,
    GeminiBatchOperation,
    GeminiBatchOrder,
    GeminiBatchRequest,
    describe_batch,
)
from broker.api.dialects.gemini.orders import SPELLING
from broker.api.dialects.gemini.routes import MAX_BODY_BYTES, MODEL_PARAMETER, VERSIONS, GeminiOrderRoutes
from broker.api.dialects.gemini.spelling import choose_style, is_sdk
from broker.api.http.endpoint import Endpoint, Parameter, json_success, principal_of
from broker.api.http.pagination import MAX_LIMIT, cursor_text, split_page
from broker.api.http.query import QueryModel
from broker.api.http.request_body import read_json_model
from broker.api.http.responses import json_response, to_json
from broker.api.shared.files import SIZE_TEXT
from broker.api.shared.held_answers import ORDER_ERRORS, PlacedOrder
from broker.api.shared.inline_images import image_json
from broker.errors import ApiError
from broker.notifications.formats import ORIGIN_KEY
from broker.ordering.drafts import BatchDetails, naming_order
from broker.orders import OrderRequest
from broker.services import Services
from broker.tasks.cancellation import TaskCanceler
from storage.batches import Batches, StoredBatch
from storage.sql.scope import EVERYTHING
from storage.tasks import Task

DIALECT: Final = "gemini"
MAX_REQUESTS: Final = 1000
MAX_NAME: Final = 512
MAX_URIS: Final = 5
MAX_METADATA_BYTES: Final = 16 * 1024
"""As JSON: it is kept with every task of a request, and sent with every webhook."""
_OBJECT: Final = {"type": "object"}


class GeminiBatchesQuery(QueryModel):
    page_size: Annotated[int, SIZE_TEXT, Field(description="length of a page")] = MAX_LIMIT
    page_token: Annotated[tuple[float, str] | None, cursor_text("batch")] = None


@dataclass(frozen=True, kw_only=True)
class GeminiBatchRoutes:
    orders: GeminiOrderRoutes
    batches: Batches
    canceler: TaskCanceler

    @classmethod
    def from_services(cls, services: Services, orders: GeminiOrderRoutes) -> GeminiBatchRoutes:
        return cls(orders=orders, batches=services.tables.batches, canceler=services.canceler)

    def endpoints(self) -> list[Endpoint]:
        """Return the endpoints of both versions of the API."""
        return [one for version, suffix in VERSIONS for one in self._endpoints_of(version, suffix)]

    def _endpoints_of(self, version: str, suffix: str) -> list[Endpoint]:
        def endpoint(method: Any, path: str, handler: Callable[..., Any], operation: str, **more: Any) -> Endpoint:
            return Endpoint(
                method,
                f"/{version}/{path}",
                handler,
                operation_id=f"gemini{operation}{suffix}",
                access="caller",
                tag="Gemini",
                **more,
            )

        one = partial(endpoint, parameters=(_BATCH_ID,), errors=("not_found",))
        operation = {200: json_success("the batch, as an operation", GeminiBatchOperation)}
        return [
            endpoint(
                "POST",
                "models/{model:path}:batchGenerateContent",
                self.create_batch,
                "BatchGenerateContent",
                parameters=(MODEL_PARAMETER,),
                request={"application/json": _REQUEST_SCHEMA},
                responses=operation,
                errors=(*ORDER_ERRORS, "not_found"),
            ),
            endpoint(
                "GET",
                "batches",
                self.list_batches,
                "ListBatches",
                query=GeminiBatchesQuery,
                responses={200: json_success("the batches of the caller, newest first", GeminiBatchList)},
            ),
            one("POST", "batches/{id}:cancel", self.cancel_batch, "CancelBatch", responses={200: _DONE}),  # before {id}
            one("GET", "batches/{id}", self.get_batch, "GetBatch", responses=operation, is_quiet=True),
            one("DELETE", "batches/{id}", self.delete_batch, "DeleteBatch", responses={200: _DONE}),
        ]

    # -- creating

    async def create_batch(self, request: Request) -> Response:
        """Order a batch of different requests.

        All tasks are durable before the response is sent, or none is.
        """
        placed = await self._place(request)
        batch = await self.batches.get(placed.batch)
        if batch is None:  # an equal request before, whose batch was deleted since
            raise _not_found()
        return json_response(describe_batch(batch, await self.orders.held.ended_tasks(placed)))

    async def _place(self, request: Request) -> PlacedOrder:
        parsed = (await read_json_model(request, MAX_BODY_BYTES, GeminiBatchRequest)).batch
        named, items = request.path_params["model"], _read_items(parsed)
        webhook = parsed.webhook_config
        details = BatchDetails(
            dialect=DIALECT,
            name=parsed.display_name or "",
            model=named,
            callback_urls=tuple(dict.fromkeys(webhook.uris)) if webhook else (),
            metadata=(webhook.user_metadata if webhook else None) or {},
        )
        built = []
        for number, item in enumerate(items, 1):
            with naming_order(number, len(items)):
                built.append(self.orders.build(request, item.request, item.model or named))
        places = [{"item": number, "of": len(items)} for number in range(len(items))]
        orders = [_as_item(one.order, item, place) for one, item, place in zip(built, items, places, strict=True)]
        ignored = [*parsed.unknown_names("batch."), *(name for one in built for name in one.ignored)]
        return await self.orders.held.place_together(request, orders, details, ignored=ignored, spelling=SPELLING)

    # -- showing

    async def list_batches(self, request: Request) -> Response:
        """List batches, without their images."""
        query = GeminiBatchesQuery.read(request)
        found = await self.batches.list_newest(
            principal_of(request).owner, DIALECT, before=query.page_token, limit=query.page_size + 1
        )
        page, cursor = split_page(found, query.page_size, lambda batch: (batch.created_at, batch.id))
        listed = [describe_batch(batch, tasks) for batch in page if (tasks := await self._find_tasks(batch))]
        return json_response({"operations": listed} | ({"nextPageToken": cursor} if cursor else {}))

    async def get_batch(self, request: Request) -> Response:
        """Get a batch; once it has ended, with the answers to all its requests."""
        batch, tasks = await self._read(request)
        spelling = self.orders.spelling
        writer = BatchWriter(
            catalog=self.orders.catalog,
            messages=self.orders.messages,
            images={task.id: await self.orders.queries.get_results(task) for task in tasks},
            choose_style=lambda asks_for_text: choose_style(request, spelling, asks_for_text=asks_for_text),
            repeats=not is_sdk(request),
        )
        return image_json(writer.write(batch, tasks), self.orders.blobs)

    async def cancel_batch(self, request: Request) -> Response:
        """Cancel what can be canceled of a batch; of one that has ended nothing."""
        _, tasks = await self._read(request)
        for task in tasks:
            try:
                await self.canceler.cancel_task(task.id, principal_of(request).scope)
            except ApiError as error:
                if error.code != "conflict":
                    raise
        return json_response({})

    async def delete_batch(self, request: Request) -> Response:
        """Delete a batch.

        Its tasks go on, and keep their images for the retention time; no webhook announces their end.
        """
        batch, _ = await self._read(request)
        await self.batches.delete(batch)
        return json_response({})

    async def _read(self, request: Request) -> tuple[StoredBatch, Sequence[Task]]:
        """Return a batch of the caller, with its tasks. Raises `ApiError("not_found")`."""
        batch = await self.batches.get(f"batch_{request.path_params['id']}")
        tasks = await self._find_tasks(batch) if batch and batch.caller == principal_of(request).owner else []
        if batch is None or not tasks:
            raise _not_found()
        return batch, tasks

    async def _find_tasks(self, batch: StoredBatch) -> Sequence[Task]:
        """Return the tasks of a batch; none once they are expired."""
        try:
            return await self.orders.queries.get_batch(batch.id, EVERYTHING)
        except ApiError:
            return []


def _read_items(batch: GeminiBatchOrder) -> Sequence[GeminiBatchItem]:
    """Return the requests of a batch. Raises `ApiError`."""
    if batch.input_config.file_name:
        raise ApiError(
            "unsupported_parameter",
            "Batches whose requests are in a file are not supported: send them inline, in requests.",
            field="batch.inputConfig.fileName",
        )
    items = batch.input_config.requests.requests if batch.input_config.requests else ()
    if not 1 <= len(items) <= MAX_REQUESTS:
        message = f"A batch has 1 to {MAX_REQUESTS} requests; this one has {len(items)}."
        raise ApiError("invalid_request", message, field="batch.inputConfig.requests")
    if batch.webhook_config and len(batch.webhook_config.uris) > MAX_URIS:
        message = f"At most {MAX_URIS} addresses can be called at the end of a batch."
        raise ApiError("invalid_request", message, field="batch.webhookConfig.uris")
    if len(batch.display_name or "") > MAX_NAME:
        message = f"displayName has at most {MAX_NAME} characters."
        raise ApiError("invalid_request", message, field="batch.displayName")
    if batch.webhook_config:
        _check_metadata(batch.webhook_config.user_metadata, "batch.webhookConfig.userMetadata")
    for number, item in enumerate(items):
        _check_metadata(item.metadata, f"batch.inputConfig.requests.requests[{number}].metadata")
    return items


def _check_metadata(metadata: Mapping[str, Any] | None, field: str) -> None:
    if metadata and len(to_json(metadata)) > MAX_METADATA_BYTES:
        message = f"{field} is larger than {MAX_METADATA_BYTES:,} bytes: send a key, and keep the rest."
        raise ApiError("invalid_request", message, field=field)


def _as_item(order: OrderRequest, item: GeminiBatchItem, place: dict[str, Any]) -> OrderRequest:
    """Return the order of one request: it says its place in the batch, and waits behind orders of its caller."""
    if item.metadata is not None:
        place["metadata"] = item.metadata
    if item.request.asks_for_text:
        place["text"] = True
    return replace(order, origin={**order.origin, ORIGIN: place, ORIGIN_KEY: "gemini_batch"}, priority="low")


def _not_found() -> ApiError:
    return ApiError("not_found", "There is no such batch; it may have expired.", field="name")


_BATCH_ID: Final = Parameter("id", "path", "of a batch, without `batches/`")
_DONE: Final = json_success("done", _OBJECT)
_REQUEST_SCHEMA: Final = {
    "type": "object",
    "required": ["batch"],
    "properties": {
        "batch": {"description": "displayName, inputConfig.requests.requests[] {request, metadata}, webhookConfig.uris"}
    },
}
