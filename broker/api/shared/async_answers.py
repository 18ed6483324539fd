"""The answer of a synchronous route to a client that prefers not to wait (`Prefer: respond-async`)."""

from __future__ import annotations

from starlette.responses import Response

from broker.api.http.responses import POLL_SECONDS, json_response
from broker.api.shared.held_answers import PlacedOrder
from broker.api.shared.models import SnakeResponseModel


class AsyncAnswer(SnakeResponseModel):
    task_id: str
    task_ids: list[str]
    status: str
    poll_url: str


def async_answer(placed: PlacedOrder) -> Response:
    """Return 202 with the tasks of an order, and the path to poll the first one."""
    first = placed.tasks[0]
    body = AsyncAnswer(task_id=first, task_ids=list(placed.tasks), status="processing", poll_url=f"/api/task/{first}")
    headers = {"location": body.poll_url, "retry-after": POLL_SECONDS, "preference-applied": "respond-async"}
    return json_response(body.to_document(), 202, headers)
