"""Every error of the client, as one tree.

Exception
└── BrokerError
    ├── Unreachable       no broker answers, or its response is incomplete or makes no sense
    ├── BrokerApiError    the broker answered with an error: status, code, field, retryable, retry_after
    ├── TaskFailed        the task ended without an image: task, code, retryable, billed, made
    │   └── TaskCanceled  the task was canceled
    ├── WaitTimeout       the task did not end within `timeout`; it continues
    └── ChecksumMismatch  the received bytes are not those of the image
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass

from broker.client.models import ErrorDetail, Image, Task


class BrokerError(Exception):
    """Base of every error of the client."""


@dataclass(eq=False, repr=False)
class Unreachable(BrokerError):
    """No response, or one that makes no sense."""

    message: str
    _: KW_ONLY
    passing: bool = True
    """The next attempt may succeed."""


@dataclass(eq=False, repr=False)
class BrokerApiError(BrokerError):
    """The broker answered with an error."""

    message: str
    _: KW_ONLY
    status: int
    """HTTP status."""
    code: str | None = None
    """Of the broker's closed set; None for an answer of a proxy."""
    field: str | None = None
    """Of the request, if one is wrong."""
    retryable: bool = False
    """The same request may succeed later."""
    retry_after: float | None = None
    """Seconds."""


class TaskFailed(BrokerError):
    """A task ended without an image.

    code: of the broker's closed set. retryable: another attempt may succeed. billed: `yes`, `no` or `unknown`.
    made: images of the other tasks of the order.
    """

    def __init__(self, task: Task, made: Sequence[Image] = ()) -> None:
        super().__init__(describe_failure(task))
        detail = task.error_detail or ErrorDetail()
        self.task, self.made = task, tuple(made)
        self.code, self.retryable, self.billed = detail.code, detail.retryable, detail.billed


class TaskCanceled(TaskFailed):
    """A task was canceled. A job that the provider has started may still be billed."""


class WaitTimeout(BrokerError):
    """The task did not end within `timeout`. It continues; wait for `task_id` again."""

    def __init__(self, task_id: str, seconds: float) -> None:
        super().__init__(f"{task_id} is not done after {seconds:g} seconds. It continues: wait for it again.")
        self.task_id = task_id


class ChecksumMismatch(BrokerError):
    """The received bytes are not those of the stored image: a proxy in between changes or truncates images."""


def describe_failure(task: Task) -> str:
    """Return the reason why a task has no image and whether it is billed, in one sentence."""
    detail = task.error_detail or ErrorDetail()
    facts = [f"code {detail.code}"] if detail.code else []
    facts += [f"billed: {detail.billed}"]
    facts += ["worth another try"] if detail.retryable else []
    return f"{task.id} is {task.status}: {task.error or 'no reason given'} ({', '.join(facts)})"


def task_error(task: Task, made: Sequence[Image] = ()) -> TaskFailed:
    """Return the error for a task that ended without an image."""
    return TaskCanceled(task, made) if task.status == "canceled" else TaskFailed(task, made)
