"""The events that callers may rely on: their names, their ids, and what is said."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from enum import StrEnum
from typing import Any


class Event(StrEnum):
    """A task came to this end. One that failed may be completed later; each happens to a task at most once."""

    COMPLETED = "task.completed"
    FAILED = "task.failed"
    CANCELED = "task.canceled"


def event_between(was: str, now: str) -> Event | None:
    """What is to be told when the public status of a task goes from one to another."""
    ends = {event.removeprefix("task."): event for event in Event}
    return ends.get(now) if was != now else None


def event_id(task_id: str, event: Event) -> str:
    """The `webhook-id`: always the same for the same event, so that it cannot be written down twice."""
    return f"evt_{hashlib.sha256(f'{event.value}:{task_id}'.encode()).hexdigest()[:32]}"


def event_body(event: Event, at: str, data: Mapping[str, Any]) -> str:
    """at: ISO 8601. In ASCII: what a text can hold, every database and every receiver can."""
    return json.dumps({"type": event.value, "timestamp": at, "data": data}, allow_nan=False, separators=(",", ":"))
