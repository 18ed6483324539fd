"""The broker's own format: Standard Webhooks with the body of a poll."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from broker.clock import iso
from broker.notifications.formats.base import FormatContext
from storage.deliveries import Delivery
from storage.images import StoredImage
from storage.tasks import Task
from webhooks.events import Event, event_body
from webhooks.signatures.standard import StandardSignature


class NativeFormat:
    """`{"type", "timestamp", "data"}`, signed by every key of the owner."""

    def __init__(self, context: FormatContext) -> None:
        self._presenter = context.presenter
        self._signing_keys = context.signing_keys

    def make_body(self, event: Event, at: float, task: Task, images: Sequence[StoredImage]) -> str | None:
        return event_body(event, iso(at) or "", self._presenter.task(task, images, "en").to_document())

    def sign(self, delivery: Delivery, at: float, body: bytes) -> Mapping[str, str]:
        return StandardSignature(self._signing_keys.of_owner(delivery.caller)).sign(delivery.id, at, body)
