"""The outbox: the webhook about a change of a task, for the transaction that changes it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Final

from broker.clock import Clock
from broker.errors import EgressBlocked
from broker.net.url_policy import parse_url
from broker.notifications.formats import ORIGIN_KEY
from broker.notifications.formats.base import BatchFormat, RequestFormat, StartFormat, WebhookFormat
from storage.batches import Ending
from storage.deliveries import Delivery
from storage.images import StoredImage
from storage.sql.database import Statement
from storage.states import TaskState
from storage.tables import Tables
from storage.tasks import Task
from webhooks.events import BatchEvent, Event, event_between, event_id

BATCH_EVENTS: Final[Mapping[Ending, BatchEvent]] = {
    "succeeded": BatchEvent.SUCCEEDED,
    "failed": BatchEvent.FAILED,
    "canceled": BatchEvent.CANCELED,
}


@dataclass(frozen=True, kw_only=True)
class OutgoingEvents:
    """What a change of a task adds to its transaction."""

    statements: Sequence[Statement] = ()
    """Write the webhooks."""
    guards: Sequence[Statement] = ()
    """Come first; they raise `Stale` if another task has changed what the webhooks tell. Then they are made again."""


NO_EVENTS: Final = OutgoingEvents()


@dataclass(frozen=True, kw_only=True)
class Outbox:
    """Builder of the statements that write webhooks; executes no statement itself."""

    clock: Clock
    tables: Tables
    formats: Mapping[str, WebhookFormat]

    async def enqueue_event(self, before: Task, after: Task, results: Sequence[StoredImage] = ()) -> OutgoingEvents:
        """Return the statements that write the events of a change, if any. They may run twice.

        results: of the task, which the same transaction inserts.
        """
        name = str(after.origin.get(ORIGIN_KEY, "native"))
        if not self._may_announce(before, after, name):
            return NO_EVENTS
        chosen, url, now = self.formats[name], after.callback_url, self.clock.now()
        if isinstance(chosen, BatchFormat):
            return OutgoingEvents(statements=await self._enqueue_batch_events(before, after, chosen, now))
        if url is None:
            return NO_EVENTS
        if isinstance(chosen, RequestFormat):
            return await self._enqueue_request_event(before, after, url, chosen, results)
        event, body = await self._event_of_change(before, after, chosen, now, results)
        if event is None or body is None:
            return NO_EVENTS
        return OutgoingEvents(statements=[self._insert(after, event, url, body, now)])

    def _may_announce(self, before: Task, after: Task, name: str) -> bool:
        """Return False for the many changes that no address is told about, without a look at the format."""
        if after.callback_url is None and name not in self._batch_formats:
            return False
        return before.status != after.status or before.state == TaskState.SUBMITTING

    @cached_property
    def _batch_formats(self) -> frozenset[str]:
        """The formats whose webhooks go to the addresses of a batch; to ask for a protocol takes long."""
        return frozenset(name for name, one in self.formats.items() if isinstance(one, BatchFormat))

    async def _enqueue_request_event(
        self,
        before: Task,
        after: Task,
        url: str,
        chosen: RequestFormat,
        results: Sequence[StoredImage],
    ) -> OutgoingEvents:
        """Return the statement that writes the event of a request if this is the last of its tasks to end.

        Two of them may end at the same time, and neither sees the other: then one is Stale, and sees it afterwards.
        """
        event, now = event_between(before.status, after.status), self.clock.now()
        if event is None:
            return NO_EVENTS
        read = await self.tables.tasks.list_of_batch(after.batch)
        others = sum(task.ended_at is not None for task in read if task.id != after.id)
        tasks = [after if task.id == after.id else task for task in read]
        guards = [self.tables.tasks.lock_batch(after.batch), self.tables.tasks.check_ended(after, others)]
        if not all(task.has_ended for task in tasks):
            return OutgoingEvents(guards=guards)
        completed = [task for task in tasks if task.state == TaskState.SUCCEEDED]
        images = [
            image
            for task in completed
            for image in await self._list_results(task, results if task.id == after.id else ())
        ]
        body = chosen.make_request_body(now, tasks, images)
        event = Event.COMPLETED if completed else event
        return OutgoingEvents(statements=[self._insert(after, event, url, body, now)])

    def _insert(self, task: Task, event: Event, url: str, body: str, now: float) -> Statement:
        return self.tables.deliveries.insert_delivery(_make_delivery(task, event, url, body, now))

    async def _enqueue_batch_events(
        self, before: Task, after: Task, chosen: BatchFormat, now: float
    ) -> Sequence[Statement]:
        """Return the statements that write the event of a batch if this was the last of its tasks to end."""
        if event_between(before.status, after.status) is None:
            return ()
        batch = await self.tables.batches.get(after.batch)
        if batch is None:
            return ()
        statements = [self.tables.batches.touch(batch.id, now)]
        for url in batch.callback_urls:
            for ending, event in BATCH_EVENTS.items():
                delivery = _make_delivery(after, event, url, chosen.make_batch_body(event, now, batch), now)
                statements.append(self.tables.batches.insert_if_ended(batch.id, ending, delivery))
        return statements

    async def _event_of_change(
        self,
        before: Task,
        after: Task,
        webhook_format: WebhookFormat,
        now: float,
        results: Sequence[StoredImage],
    ) -> tuple[Event | None, str | None]:
        """Return the event of a change, and its body; None if there is none, or if it is not announced."""
        if event := event_between(before.status, after.status):
            images = list[StoredImage]()
            if after.state == TaskState.SUCCEEDED:
                images = await self._list_results(after, results)
            return event, webhook_format.make_body(event, now, after, images)
        was_accepted = before.state == TaskState.SUBMITTING and after.state in {TaskState.WAITING, TaskState.FETCHING}
        if was_accepted and isinstance(webhook_format, StartFormat):
            return Event.STARTED, webhook_format.make_start_body(now, after)
        return None, None

    async def _list_results(self, task: Task, inserted: Sequence[StoredImage]) -> list[StoredImage]:
        """Return the images of a task, in order. inserted: those that the transaction adds."""
        stored = {image.position: image for image in await self.tables.images.list_of_owner(task.id, "result")}
        return [image for _, image in sorted(({one.position: one for one in inserted} | stored).items())]


def _make_delivery(task: Task, event: Event | BatchEvent, url: str, body: str, now: float) -> Delivery:
    """Return a webhook. The event of a batch has one id for each address, whichever task ended last."""
    return Delivery(
        id=event_id(f"{task.batch} {url}" if isinstance(event, BatchEvent) else task.id, event),
        caller=task.caller,
        task_id=task.id,
        type=event.value,
        url=url,
        host=_host_of(url),
        body=body,
        format=str(task.origin.get(ORIGIN_KEY, "native")),
        due_at=now,
        created_at=now,
    )


def _host_of(url: str) -> str:
    """Return host and port; empty for an invalid URL, which is refused at delivery and must not block the task."""
    try:
        return parse_url(url).authority
    except EgressBlocked:
        return ""
