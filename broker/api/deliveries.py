"""The delivery log: which webhooks went to callers, what came of each try, and sending one anew."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from broker.api.access import Access
from broker.api.answers import answer
from broker.api.pages import cursor_after, cursor_of, limit_of, name_of, page_of
from broker.clock import iso
from broker.errors import Refusal
from broker.net.url_policy import redact_url
from broker.notifications.delivery_log import DeliveryLog
from storage.deliveries import Delivery, Fate, Try


@dataclass(frozen=True, kw_only=True)
class DeliveryDoor:
    """For trusted callers only: a body has what its task's caller asked for."""

    log: DeliveryLog
    access: Access

    async def listing(self, request: Request) -> Response:
        """Newest first; of one task, or with one outcome."""
        self.access.require(request)
        query = request.query_params
        limit = limit_of(query.get("limit"))
        deliveries = await self.log.list_newest(
            task_id=name_of(request, "task"),
            outcome=_outcome(query.get("outcome")),
            limit=limit + 1,
            before=cursor_of(query.get("cursor"), "evt"),
        )
        page, more = page_of(deliveries, limit)
        documents = [_document(delivery) for delivery in page]
        after = cursor_after(page[-1].created_at, page[-1].id) if more else None
        return answer({"success": True, "data": documents, "nextCursor": after})

    async def show(self, request: Request) -> Response:
        """One of them, with its body and every try."""
        self.access.require(request)
        delivery = await self.log.get(request.path_params["id"])
        tries = await self.log.list_attempts(delivery.id)
        return answer({"success": True, "data": {**_document(delivery), **_inside(delivery, tries)}})

    async def replay(self, request: Request) -> Response:
        """Tell it again now, under the same webhook-id, from the first rung on."""
        self.access.require(request)
        delivery = await self.log.replay(request.path_params["id"])
        return answer(
            {"success": True, "data": _document(delivery)}, 202, {"location": f"/api/deliveries/{delivery.id}"}
        )


def _outcome(text: str | None) -> Fate | None:
    if not text:
        return None
    if text not in set(Fate):
        raise Refusal("invalid_request", f"outcome must be one of {', '.join(Fate)}.", field="outcome")
    return Fate(text)


def _document(delivery: Delivery) -> dict[str, Any]:
    """The address without its query, which may be a secret of the receiver."""
    return {
        "id": delivery.id,
        "taskId": delivery.task_id,
        "type": delivery.type,
        "url": redact_url(delivery.url),
        "outcome": delivery.outcome.value,
        "attempts": delivery.tries,
        "lastStatus": delivery.last_status,
        "reason": delivery.reason,
        "createdAt": iso(delivery.created_at),
        "nextAt": iso(delivery.due_at),
        "deliveredAt": iso(delivery.delivered_at),
    }


def _inside(delivery: Delivery, tries: Sequence[Try]) -> dict[str, Any]:
    return {"tries": [_try(one) for one in tries], "body": json.loads(delivery.body)}


def _try(one: Try) -> dict[str, Any]:
    return {
        "number": one.number,
        "at": iso(one.at),
        "status": one.status,
        "error": one.error,
        "milliseconds": one.milliseconds,
    }
