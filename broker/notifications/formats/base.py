"""The contract of a webhook format."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

from broker.notifications.signing import WebhookKeys
from broker.presenter import TaskPresenter
from storage.batches import StoredBatch
from storage.deliveries import Delivery
from storage.images import StoredImage
from storage.tasks import Task
from webhooks.events import BatchEvent, Event


@dataclass(frozen=True, kw_only=True)
class FormatContext:
    """Parts that formats are made of."""

    presenter: TaskPresenter
    signing_keys: WebhookKeys
    """Of Standard Webhooks, by owner."""
    secret: bytes = field(repr=False)
    """Our secret, to derive other keys from."""
    public_base: Callable[[], str | None]
    """Our public URL; None without one."""


@runtime_checkable
class BatchFormat(Protocol):
    """How one dialect tells the end of a batch of different orders, by webhooks to the addresses of the batch."""

    def make_batch_body(self, event: BatchEvent, at: float, batch: StoredBatch) -> str:
        """Return the JSON body about an event, in ASCII. at: seconds since the epoch. Pure."""


@runtime_checkable
class RequestFormat(Protocol):
    """How one dialect tells the end of a request for several images, by one webhook with all of them."""

    def make_request_body(self, at: float, tasks: Sequence[Task], images: Sequence[StoredImage]) -> str:
        """Return the JSON body, in ASCII. Pure.

        tasks: all of the request, ended; some may be deleted since, but not the one that ended last. images: their
        results, in order.
        """


class WebhookFormat(Protocol):
    """How one dialect tells the end of a task."""

    def make_body(self, event: Event, at: float, task: Task, images: Sequence[StoredImage]) -> str | None:
        """Return the JSON body about an event, in ASCII; None if the receiver did not ask for this event.

        at: seconds since the epoch. images: the results of a completed task, in order. Pure: it may be called twice.
        """

    def sign(self, delivery: Delivery, at: float, body: bytes) -> Mapping[str, str]:
        """Return the headers of one attempt. at: time of sending, in seconds since the epoch."""


@runtime_checkable
class StartFormat(Protocol):
    """A webhook format that also tells when a provider has begun to work on a task."""

    def make_start_body(self, at: float, task: Task) -> str | None:
        """Return the JSON body about the start, like `WebhookFormat.make_body`."""
