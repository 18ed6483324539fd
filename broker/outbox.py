"""The outbox: what a caller is to be told of a task's end, for the transaction that makes it so."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from broker.clock import Clock, iso
from broker.errors import EgressBlocked
from broker.net.url_policy import parse_url
from broker.showing import Showing
from storage.database import Statement
from storage.deliveries import Deliveries, Delivery
from storage.images import Images
from storage.tasks import State, Task
from webhooks.events import Event, event_between, event_body, event_id


@dataclass(frozen=True, kw_only=True)
class Outbox:
    """Knows what to say, and writes nothing itself."""

    clock: Clock
    deliveries: Deliveries
    images: Images
    showing: Showing

    async def telling(self, was: Task, will: Task) -> Sequence[Statement]:
        """Return the statement that writes the event of a change, or none; it may run twice."""
        event = event_between(was.status, will.status)
        if event is None or will.callback_url is None:
            return ()
        return (self.deliveries.adding(await self._delivery(will, will.callback_url, event)),)

    async def _delivery(self, task: Task, url: str, event: Event) -> Delivery:
        now = self.clock.now()
        images = await self.images.of(task.id, "result") if task.state == State.SUCCEEDED else []
        return Delivery(
            id=event_id(task.id, event),
            task_id=task.id,
            type=event.value,
            url=url,
            host=_host(url),
            body=event_body(event, iso(now) or "", self.showing.document(task, images, "en")),
            due_at=now,
            created_at=now,
        )


def _host(url: str) -> str:
    """Empty for an address that cannot be read: it will be refused when it is tried, and holds up no end of a task."""
    try:
        return parse_url(url).authority
    except EgressBlocked:
        return ""
