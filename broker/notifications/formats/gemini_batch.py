"""Webhooks about batches of the Gemini API (ai.google.dev: Webhooks): Standard Webhooks, without the result."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Final

from broker.clock import iso
from broker.notifications.formats.base import FormatContext
from storage.batches import StoredBatch
from storage.deliveries import Delivery
from storage.images import StoredImage
from storage.tasks import Task
from webhooks.events import BatchEvent, Event
from webhooks.signatures.standard import StandardSignature

NAME_PREFIX: Final = "batches/"


class GeminiBatchFormat:
    """`{"type", "version", "timestamp", "data": {"id"}}`, once for the whole batch, which its receiver then gets."""

    def __init__(self, context: FormatContext) -> None:
        self._signing_keys = context.signing_keys

    def make_body(self, event: Event, at: float, task: Task, images: Sequence[StoredImage]) -> str | None:
        return None

    def make_batch_body(self, event: BatchEvent, at: float, batch: StoredBatch) -> str:
        metadata = {"user_metadata": batch.metadata} if batch.metadata else {}
        body = {
            "type": event.value,
            "version": "v1",
            "timestamp": iso(at),
            "data": {"id": batch_name(batch.id)},
            **metadata,
        }
        return json.dumps(body, allow_nan=False, separators=(",", ":"))

    def sign(self, delivery: Delivery, at: float, body: bytes) -> Mapping[str, str]:
        return StandardSignature(self._signing_keys.of_owner(delivery.caller)).sign(delivery.id, at, body)


def batch_name(batch_id: str) -> str:
    """Return the name of a batch in the Gemini API."""
    return f"{NAME_PREFIX}{batch_id.removeprefix('batch_')}"
