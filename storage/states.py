"""States of a task: which are active, final or cancelable, and the public status that each is shown as.

QUEUED ──► SUBMITTING ──► WAITING ──► FETCHING ──► SUCCEEDED ──► EXPIRED ──► (row gone)
  ▲            │   │         │  ▲        │
  │            │   │         │  └─ a check reports Pending
  │            │   │         └──► QUEUED   Failed, worth another attempt
  └─ refused ──┘   └─ Finished at once, or the callback was faster ──► FETCHING
first four ──► FAILED        first three ──► CANCELED        FAILED, CANCELED ──► EXPIRED
FAILED ──► FETCHING                  a success after the deadline is still stored
FAILED(unknown_outcome) ──► WAITING  the job appeared after all; both are still shown as failed
"""

from __future__ import annotations

from enum import StrEnum
from typing import Final


class TaskState(StrEnum):
    QUEUED = "queued"
    SUBMITTING = "submitting"
    WAITING = "waiting"
    FETCHING = "fetching"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELED = "canceled"
    EXPIRED = "expired"


ACTIVE_STATES: Final = (TaskState.QUEUED, TaskState.SUBMITTING, TaskState.WAITING, TaskState.FETCHING)
"""States whose step works on the image."""
FINAL_STATES: Final = (TaskState.SUCCEEDED, TaskState.FAILED, TaskState.CANCELED, TaskState.EXPIRED)
"""States whose step is retention: it deletes something."""
RETAINED_STATES: Final = frozenset({TaskState.SUCCEEDED, TaskState.FAILED, TaskState.CANCELED})
"""Final states of a task that is kept: its step deletes the content."""
CANCELABLE_STATES: Final = frozenset({TaskState.QUEUED, TaskState.SUBMITTING, TaskState.WAITING})
"""States before the first success: a task can still be canceled."""
LATE_RESULT_STATES: Final = frozenset({TaskState.WAITING, TaskState.FETCHING})
"""States of a task that is shown as failed and whose image may still come."""

_LATE: Final = "state IN ('waiting', 'fetching') AND ended_at IS NOT NULL"
STATUS_FILTERS: Final = {
    "pending": ("ended_at IS NULL AND state = 'queued' AND attempt = 0",),
    "processing": (
        """ended_at IS NULL AND state IN ('queued', 'submitting', 'waiting', 'fetching')
        AND (state <> 'queued' OR attempt > 0)""",
    ),
    "completed": ("state = 'succeeded'",),
    "failed": (
        "state = 'failed'",
        f"{_LATE} AND state = 'waiting'",
        f"{_LATE} AND state = 'fetching'",
    ),
    "canceled": ("state = 'canceled'",),
}
"""SQL conditions of each public status, of which one holds; the same rule as `public_status`. With the condition of
the partial index, word for word: SQLite does not see that one state is one of those after IN."""
ACTIVE_STATUSES: Final = frozenset({"pending", "processing"})
ENDED_STATUSES: Final = frozenset({"completed", "failed", "canceled", "expired"})


def public_status(state: TaskState, *, attempt: int, ended_at: float | None) -> str:
    """Return the status that callers see. It never goes back: not to pending, and not from failed to processing."""
    if state in LATE_RESULT_STATES and ended_at is not None:
        return "failed"
    if state in ACTIVE_STATES:
        return "pending" if state == TaskState.QUEUED and attempt == 0 else "processing"
    return "completed" if state == TaskState.SUCCEEDED else state.value
