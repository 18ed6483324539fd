"""The outbox: the webhook about the end of a task, for the transaction that ends it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from broker.clock import Clock
from broker.errors import EgressBlocked
from broker.net.url_policy import parse_url
from broker.notifications.formats import ORIGIN_KEY
from broker.notifications.formats.base import WebhookFormat
from storage.deliveries import Delivery
from storage.images import StoredImage
from storage.sql.database import Statement
from storage.states import TaskState
from storage.tables import Tables
from storage.tasks import Task
from webhooks.events import event_between, event_id


@dataclass(frozen=True, kw_only=True)
class Outbox:
    """Builder of the statements that write webhooks; executes nothing itself."""

    clock: Clock
    tables: Tables
    formats: Mapping[str, WebhookFormat]

    async def enqueue_event(self, before: Task, after: Task) -> Sequence[Statement]:
        """Return the statement that writes the event of a change, or none. It may run twice."""
        event, url = event_between(before.status, after.status), after.callback_url
        if event is None or url is None:
            return ()
        name = str(after.origin.get(ORIGIN_KEY, "native"))
        now, images = self.clock.now(), list[StoredImage]()
        if after.state == TaskState.SUCCEEDED:
            images = await self.tables.images.list_of_owner(after.id, "result")
        body = self.formats[name].make_body(event, now, after, images)
        if body is None:
            return ()
        delivery = Delivery(
            id=event_id(after.id, event),
            task_id=after.id,
            type=event.value,
            url=url,
            host=_host_of(url),
            body=body,
            format=name,
            due_at=now,
            created_at=now,
        )
        return (self.tables.deliveries.insert_delivery(delivery),)


def _host_of(url: str) -> str:
    """Return host and port; empty for an invalid URL, which is refused at delivery and must not block the task."""
    try:
        return parse_url(url).authority
    except EgressBlocked:
        return ""
