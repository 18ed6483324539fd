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

from collections.abc import Mapping, Sequence
from typing import Any

from broker.client.models import ErrorDetail, Image, Task


class BrokerError(Exception):
    """Base of every error of the client."""


class Unreachable(BrokerError):
    """No response, or one that makes no sense.

    passing: the next attempt may succeed. sent: the broker may have received the request.
    """

    def __init__(self, message: str, *, passing: bool = True, sent: bool = True) -> None:
        super().__init__(message)
        self.passing = passing
        self.sent = sent


class BrokerApiError(BrokerError):
    """The broker answered with an error.

    status: HTTP status. code: of the broker's closed set; None for an answer of a proxy. field: of the request, if one
    is wrong. retryable: the same request may succeed later. retry_after: seconds.
    """

    def __init__(
        self,
        message: str,
        *,
        status: int,
        code: str | None = None,
        field: str | None = None,
        retryable: bool = False,
        retry_after: float | None = None,
        details: Sequence[Mapping[str, Any]] = (),
    ) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.field = field
        self.retryable = retryable
        self.retry_after = retry_after
        self.details = tuple(details)


class TaskFailed(BrokerError):
    """A task ended without an image.

    code: of the broker's closed set. retryable: another attempt may succeed. billed: `yes`, `no` or `unknown`.
    made: images of the other tasks of the order.
    """

    def __init__(self, task: Task, made: Sequence[Image] = ()) -> None:
        super().__init__(describe_failure(task))
        detail = task.error_detail or ErrorDetail()
        self.task = task
        self.made = tuple(made)
        self.code = detail.code
        self.retryable = detail.retryable
        self.billed = detail.billed


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
