"""The delivery log over HTTP, for operators: webhooks to callers, their attempts, and sending one again."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from starlette.requests import Request
from starlette.responses import Response

from broker.api.admin.schemas import (
    DELIVERY_ID,
    DeliveryAttemptData,
    DeliveryData,
    DeliveryListQuery,
    DeliveryPage,
    DeliveryResponse,
    DeliverySummary,
    DeliverySummaryResponse,
    WebhookBody,
)
from broker.api.http.endpoint import Endpoint, Parameter, json_success
from broker.api.http.pagination import make_cursor, split_page
from broker.api.http.responses import json_response
from broker.clock import iso
from broker.net.url_policy import redact_url
from broker.notifications.delivery_log import DeliveryLog
from storage.deliveries import Delivery, DeliveryAttempt, DeliveryStatus


@dataclass(frozen=True, kw_only=True)
class DeliveryRoutes:
    """For operators only: a body holds the order of another caller."""

    log: DeliveryLog

    async def list_deliveries(self, request: Request) -> Response:
        """Return a page of webhooks, newest first."""
        query = DeliveryListQuery.read(request)
        deliveries = await self.log.list_newest(
            task_id=query.task,
            outcome=DeliveryStatus(query.outcome) if query.outcome else None,
            limit=query.limit + 1,
            before=query.cursor,
        )
        page, has_more = split_page(deliveries, query.limit)
        document = DeliveryPage(
            success=True,
            data=[DeliverySummary(**_summary_fields(delivery)) for delivery in page],
            next_cursor=make_cursor(page[-1].created_at, page[-1].id) if has_more else None,
        )
        return json_response(document.to_document())

    async def get_delivery(self, request: Request) -> Response:
        delivery = await self.log.get(request.path_params["id"])
        attempts = await self.log.list_attempts(delivery.id)
        return json_response(DeliveryResponse(success=True, data=_delivery(delivery, attempts)).to_document())

    async def replay_delivery(self, request: Request) -> Response:
        """Send a webhook again now, under the same webhook-id, with all its retries."""
        delivery = await self.log.replay(request.path_params["id"])
        document = DeliverySummaryResponse(success=True, data=DeliverySummary(**_summary_fields(delivery)))
        return json_response(document.to_document(), 202, {"location": f"/api/deliveries/{delivery.id}"})


def _summary_fields(delivery: Delivery) -> dict[str, Any]:
    return {
        "id": delivery.id,
        "task_id": delivery.task_id,
        "type": delivery.type,
        "url": redact_url(delivery.url),
        "outcome": delivery.outcome.value,
        "attempts": delivery.attempts,
        "last_status": delivery.last_status,
        "reason": delivery.reason,
        "created_at": iso(delivery.created_at),
        "next_at": iso(delivery.due_at),
        "delivered_at": iso(delivery.delivered_at),
    }


def _delivery(delivery: Delivery, attempts: Sequence[DeliveryAttempt]) -> DeliveryData:
    return DeliveryData(
        **_summary_fields(delivery),
        attempt_log=[
            DeliveryAttemptData(
                number=one.number, at=iso(one.at), status=one.status, error=one.error, milliseconds=one.milliseconds
            )
            for one in attempts
        ],
        body=WebhookBody.model_validate(json.loads(delivery.body)),
    )


# -- endpoints

_DELIVERY: Final = Parameter(
    name="id",
    where="path",
    text="the delivery's id, which is also its webhook-id",
    schema={"type": "string", "pattern": DELIVERY_ID},
)


def delivery_endpoints(deliveries: DeliveryRoutes) -> list[Endpoint]:
    return [
        Endpoint(
            method="GET",
            path="/api/deliveries",
            handler=deliveries.list_deliveries,
            access="admin",
            operation_id="listDeliveries",
            summary="List webhooks to callers, newest first",
            tag="operators",
            query=DeliveryListQuery,
            responses={200: json_success("a page", DeliveryPage)},
            errors=("invalid_request",),
        ),
        Endpoint(
            method="GET",
            path="/api/deliveries/{id}",
            handler=deliveries.get_delivery,
            access="admin",
            operation_id="getDelivery",
            summary="Get a webhook with its body and attempts",
            tag="operators",
            parameters=(_DELIVERY,),
            responses={200: json_success("the delivery", DeliveryResponse)},
            errors=("not_found",),
        ),
        Endpoint(
            method="POST",
            path="/api/deliveries/{id}/replay",
            handler=deliveries.replay_delivery,
            access="admin",
            operation_id="replayDelivery",
            summary="Send a webhook again",
            tag="operators",
            description="Under the same webhook-id, with all its retries.",
            parameters=(_DELIVERY,),
            responses={
                202: json_success("due now", DeliverySummaryResponse, headers={"Location": (True, "of the delivery")})
            },
            errors=("not_found", "conflict"),
        ),
    ]
