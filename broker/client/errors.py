"""Every error of the client, as one tree.

Exception
└── BrokerError
    ├── Unreachable       no broker answers there, or its answer broke off
    ├── Refused           the broker does not do this: status, code, field, retryable, retry_after
    ├── TaskFailed        the task ended without an image: task, code, retryable, billed, made
    │   └── TaskCanceled  because somebody canceled it
    ├── TimedOut          your time is over; the task goes on without you
    └── Damaged           the bytes that came are not those of the image
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from broker.client.results import ErrorDetail, Image, Task


class BrokerError(Exception):
    """Whatever goes wrong between a client and its broker."""


class Unreachable(BrokerError):
    """No answer, or none that makes sense.

    passing: whether it may be better in a moment. sent: whether the broker may have heard the request.
    """

    def __init__(self, message: str, *, passing: bool = True, sent: bool = True) -> None:
        super().__init__(message)
        self.passing = passing
        self.sent = sent


class Refused(BrokerError):
    """The broker answered with an error.

    status: of HTTP. code: of the broker's closed set; None where something before the broker answered. field: of the
    request, that is at fault. retryable: whether the same request may succeed later. retry_after: in seconds.
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

    code: why, of the broker's closed set. retryable: whether another try is worth it. billed: `yes`, `no` or `unknown`.
    made: the images that other tasks of the same order did make.
    """

    def __init__(self, task: Task, made: Sequence[Image] = ()) -> None:
        super().__init__(failure(task))
        detail = task.error_detail or ErrorDetail()
        self.task = task
        self.made = tuple(made)
        self.code = detail.code
        self.retryable = detail.retryable
        self.billed = detail.billed


class TaskCanceled(TaskFailed):
    """A task was canceled. What the provider had begun may still be billed."""


class TimedOut(BrokerError):
    """The task was not done in the time you gave. It goes on: ask for `task_id` later."""

    def __init__(self, task_id: str, seconds: float) -> None:
        super().__init__(f"{task_id} is not done after {seconds:g} seconds. It goes on: ask for it later.")
        self.task_id = task_id


class Damaged(BrokerError):
    """What arrived is not what the broker keeps: something on the way changes or cuts images."""


def failure(task: Task) -> str:
    """Why a task did not end well, and what it means for the bill."""
    detail = task.error_detail or ErrorDetail()
    facts = [f"code {detail.code}"] if detail.code else []
    facts += [f"billed: {detail.billed}"]
    facts += ["worth another try"] if detail.retryable else []
    return f"{task.id} is {task.status}: {task.error or 'no reason given'} ({', '.join(facts)})"


def ending(task: Task, made: Sequence[Image] = ()) -> TaskFailed:
    """The error that an end without an image is."""
    return TaskCanceled(task, made) if task.status == "canceled" else TaskFailed(task, made)
