"""The outbox: the webhook about the end of a task, for the transaction that ends it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from broker.clock import Clock, iso
from broker.errors import EgressBlocked
from broker.net.url_policy import parse_url
from broker.presenter import TaskPresenter
from storage.deliveries import Delivery
from storage.sql.database import Statement
from storage.states import TaskState
from storage.tables import Tables
from storage.tasks import Task
from webhooks.events import Event, event_between, event_body, event_id


@dataclass(frozen=True, kw_only=True)
class Outbox:
    """Builder of the statements that write webhooks; executes nothing itself."""

    clock: Clock
    tables: Tables
    presenter: TaskPresenter

    async def enqueue_event(self, before: Task, after: Task) -> Sequence[Statement]:
        """Return the statement that writes the event of a change, or none. It may run twice."""
        event = event_between(before.status, after.status)
        if event is None or after.callback_url is None:
            return ()
        return (self.tables.deliveries.insert_delivery(await self._delivery(after, after.callback_url, event)),)

    async def _delivery(self, task: Task, url: str, event: Event) -> Delivery:
        now = self.clock.now()
        images = await self.tables.images.list_of_owner(task.id, "result") if task.state == TaskState.SUCCEEDED else []
        return Delivery(
            id=event_id(task.id, event),
            task_id=task.id,
            type=event.value,
            url=url,
            host=_host_of(url),
            body=event_body(event, iso(now) or "", self.presenter.task(task, images, "en").to_document()),
            due_at=now,
            created_at=now,
        )


def _host_of(url: str) -> str:
    """Return host and port; empty for an invalid URL, which is refused at delivery and must not block the task."""
    try:
        return parse_url(url).authority
    except EgressBlocked:
        return ""
