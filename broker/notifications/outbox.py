"""The outbox: the webhook about a change of a task, for the transaction that changes it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from broker.clock import Clock
from broker.errors import EgressBlocked
from broker.net.url_policy import parse_url
from broker.notifications.formats import ORIGIN_KEY
from broker.notifications.formats.base import StartFormat, WebhookFormat
from storage.deliveries import Delivery
from storage.images import StoredImage
from storage.sql.database import Statement
from storage.states import TaskState
from storage.tables import Tables
from storage.tasks import Task
from webhooks.events import Event, event_between, event_id


@dataclass(frozen=True, kw_only=True)
class Outbox:
    """Builder of the statements that write webhooks; executes nothing itself."""

    clock: Clock
    tables: Tables
    formats: Mapping[str, WebhookFormat]

    async def enqueue_event(self, before: Task, after: Task) -> Sequence[Statement]:
        """Return the statement that writes the event of a change, or none. It may run twice."""
        if after.callback_url is None:
            return ()
        name, now = str(after.origin.get(ORIGIN_KEY, "native")), self.clock.now()
        event, body = await self._event_of_change(before, after, self.formats[name], now)
        if event is None or body is None:
            return ()
        delivery = Delivery(
            id=event_id(after.id, event),
            task_id=after.id,
            type=event.value,
            url=after.callback_url,
            host=_host_of(after.callback_url),
            body=body,
            format=name,
            due_at=now,
            created_at=now,
        )
        return (self.tables.deliveries.insert_delivery(delivery),)

    async def _event_of_change(
        self, before: Task, after: Task, webhook_format: WebhookFormat, now: float
    ) -> tuple[Event | None, str | None]:
        """Return the event of a change, and its body; None if there is none, or if it is not announced."""
        if event := event_between(before.status, after.status):
            images = list[StoredImage]()
            if after.state == TaskState.SUCCEEDED:
                images = await self.tables.images.list_of_owner(after.id, "result")
            return event, webhook_format.make_body(event, now, after, images)
        was_accepted = before.state == TaskState.SUBMITTING and after.state in {TaskState.WAITING, TaskState.FETCHING}
        if was_accepted and isinstance(webhook_format, StartFormat):
            return Event.STARTED, webhook_format.make_start_body(now, after)
        return None, None


def _host_of(url: str) -> str:
    """Return host and port; empty for an invalid URL, which is refused at delivery and must not block the task."""
    try:
        return parse_url(url).authority
    except EgressBlocked:
        return ""
