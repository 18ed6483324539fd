"""The events that webhooks announce: names, ids and bodies."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from enum import StrEnum
from typing import Any


class Event(StrEnum):
    """What happens to a task. Each event happens to it at most once; a failed task may still complete later.

    STARTED: a provider works on it; only some formats of webhooks announce it. The others are ends.
    """

    STARTED = "task.started"
    COMPLETED = "task.completed"
    FAILED = "task.failed"
    CANCELED = "task.canceled"


class BatchEvent(StrEnum):
    """The end of a batch of different orders."""

    SUCCEEDED = "batch.succeeded"
    FAILED = "batch.failed"
    CANCELED = "batch.cancelled"


def event_between(before: str, after: str) -> Event | None:
    """Return the end that a change of the public status causes, or None."""
    ends = {event.removeprefix("task."): event for event in Event if event != Event.STARTED}
    return ends.get(after) if before != after else None


def event_id(task_id: str, event: Event | BatchEvent) -> str:
    """Return the `webhook-id`: a function of task (or batch) and event, so that an event is stored only once."""
    return f"evt_{hashlib.sha256(f'{event.value}:{task_id}'.encode()).hexdigest()[:32]}"


def event_body(event: Event, at: str, data: Mapping[str, Any]) -> str:
    """Return the JSON body, in ASCII so that every database and receiver accepts it. at: ISO 8601."""
    return json.dumps({"type": event.value, "timestamp": at, "data": data}, allow_nan=False, separators=(",", ":"))
