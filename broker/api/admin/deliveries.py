"""The delivery log over HTTP, for operators: webhooks to callers, their attempts, and sending one again."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from functools import partial
from typing import Annotated, Any, Final, Self

from pydantic import Field
from starlette.requests import Request
from starlette.responses import Response

from broker.api.admin.visibility import IsWithheld, OwnerName, ShownTaskId, Visibility, VisibilityReader
from broker.api.http.endpoint import Endpoint, Parameter, json_success, principal_of
from broker.api.http.pagination import PageQuery, PageResponse, cursor_text, split_page
from broker.api.http.query import NAME_TEXT, one_of_text
from broker.api.http.responses import DataResponse, data_response, json_response
from broker.clock import Clock
from broker.errors import ApiError
from broker.net.url_policy import redact_url
from broker.presenter import Moment, OneOf, ResponseModel, TaskData
from storage import ids
from storage.deliveries import Deliveries, Delivery, DeliveryStatus
from webhooks.events import BatchEvent, Event

DELIVERY_ID: Final = f"^{ids.EVENT_ID.pattern}$"
DELIVERY_STATUSES: Final = tuple(status.value for status in DeliveryStatus)

DeliveryId = Annotated[str, Field(pattern=DELIVERY_ID, examples=[f"evt_{'0' * 32}"])]
EventType = Annotated[str, OneOf(tuple(event.value for event in (*Event, *BatchEvent)))]


# -- models


class DeliveryListQuery(PageQuery):
    task: Annotated[str | None, NAME_TEXT, Field(description="only of this task")] = None
    outcome: Annotated[str | None, one_of_text(DELIVERY_STATUSES), Field(description="only with this outcome")] = None
    cursor: Annotated[tuple[float, str] | None, cursor_text("evt")] = None


class DeliverySummary(ResponseModel):
    id: Annotated[DeliveryId, Field(description="also the webhook-id")]
    task_id: ShownTaskId
    owner: OwnerName
    withheld: IsWithheld
    type: EventType
    url: Annotated[str | None, Field(description="without its query, which may be a secret; null if withheld")]
    outcome: Annotated[str, OneOf(DELIVERY_STATUSES)]
    attempts: int
    last_status: int | None
    reason: Annotated[str | None, Field(description="why it has not arrived; null if withheld")]
    created_at: Moment
    next_at: Moment | None
    delivered_at: Moment | None

    @classmethod
    def from_delivery(cls, delivery: Delivery, visibility: Visibility, **more: Any) -> Self:
        is_withheld = visibility.is_withheld(delivery.caller)
        return cls.from_object(
            delivery,
            task_id=visibility.task_id(delivery.task_id, delivery.caller),
            owner=visibility.owner_name(delivery.caller),
            withheld=is_withheld,
            url=None if is_withheld else redact_url(delivery.url),
            reason=None if is_withheld else delivery.reason,
            next_at=delivery.due_at,
            **more,
        )


class DeliveryAttemptData(ResponseModel):
    number: int
    at: Moment
    status: int | None
    error: Annotated[str | None, Field(description="null if withheld")]
    milliseconds: int


class WebhookBody(ResponseModel):
    type: EventType
    timestamp: Moment
    data: TaskData


class DeliveryData(DeliverySummary):
    attempt_log: list[DeliveryAttemptData]
    body: Annotated[
        WebhookBody | dict[str, Any] | None,
        Field(description="as sent; a dialect may have a form of its own; null if withheld"),
    ]


# -- handlers


@dataclass(frozen=True, kw_only=True)
class DeliveryRoutes:
    """For operators only; the content of private deliveries is withheld from them."""

    clock: Clock
    deliveries: Deliveries
    visibility: VisibilityReader

    def endpoints(self) -> list[Endpoint]:
        operator = partial(Endpoint, access="admin", tag="operators")
        single = partial(operator, parameters=(_DELIVERY,))
        page = json_success("a page", PageResponse[DeliverySummary])
        delivery = json_success("the delivery", DataResponse[DeliveryData])
        due = json_success("due now", DataResponse[DeliverySummary], headers={"Location": (True, "of the delivery")})
        path = "/api/deliveries/{id}"
        return [
            operator("GET", "/api/deliveries", self.list_deliveries, query=DeliveryListQuery, responses={200: page}),
            single("GET", path, self.get_delivery, responses={200: delivery}, errors=("not_found",)),
            single(
                "POST", f"{path}/replay", self.replay_delivery, responses={202: due}, errors=("not_found", "conflict")
            ),
        ]

    async def list_deliveries(self, request: Request) -> Response:
        """List webhooks to callers, newest first."""
        query = DeliveryListQuery.read(request)
        deliveries = await self.deliveries.list_newest(
            task_id=query.task,
            outcome=DeliveryStatus(query.outcome) if query.outcome else None,
            limit=query.limit + 1,
            before=query.cursor,
        )
        page, next_cursor = split_page(deliveries, query.limit, lambda delivery: (delivery.created_at, delivery.id))
        visibility = await self.visibility.of_owners(principal_of(request), (one.caller for one in page))
        summaries = [DeliverySummary.from_delivery(delivery, visibility) for delivery in page]
        document = PageResponse[DeliverySummary](success=True, data=summaries, next_cursor=next_cursor)
        return json_response(document.to_document())

    async def get_delivery(self, request: Request) -> Response:
        """Get a webhook with its body and attempts."""
        delivery = await self._read(request)
        visibility = await self.visibility.of_owners(principal_of(request), [delivery.caller])
        is_withheld = visibility.is_withheld(delivery.caller)
        attempts = await self.deliveries.list_attempts(delivery.id)
        if is_withheld:
            attempts = [replace(attempt, error=None) for attempt in attempts]
        attempt_log = [DeliveryAttemptData.from_object(attempt) for attempt in attempts]
        body = None if is_withheld else json.loads(delivery.body)
        return data_response(DeliveryData.from_delivery(delivery, visibility, attempt_log=attempt_log, body=body))

    async def replay_delivery(self, request: Request) -> Response:
        """Send a webhook again.

        Under the same webhook-id, with all its retries.
        """
        await self.deliveries.replay((await self._read(request)).id, self.clock.now())
        delivery = await self._read(request)
        visibility = await self.visibility.of_owners(principal_of(request), [delivery.caller])
        location = {"location": f"/api/deliveries/{delivery.id}"}
        return data_response(DeliverySummary.from_delivery(delivery, visibility), 202, location)

    async def _read(self, request: Request) -> Delivery:
        delivery_id = request.path_params["id"]
        delivery = await self.deliveries.get(delivery_id) if ids.EVENT_ID.fullmatch(delivery_id) else None
        if delivery is None:
            message = "There is no delivery with this id. Finished ones are deleted with their tasks."
            raise ApiError("not_found", message)
        return delivery


_DELIVERY: Final = Parameter(
    "id", "path", "the delivery's id, which is also its webhook-id", {"type": "string", "pattern": DELIVERY_ID}
)
