"""Every error of the client, as one tree, and the rules by which failures of HTTP become one of them.

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

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import KW_ONLY, dataclass
from typing import Any, Final

import httpx
from httpx_sse import SSEError
from pydantic import TypeAdapter, ValidationError

from broker.client.models import ErrorDetail, Image, Task

_TRANSIENT_STATUSES: Final = frozenset({429, 502, 503, 504})
_OBJECT_ADAPTER: Final = TypeAdapter(dict[str, Any])


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


def check_completed(task: Task, made: Sequence[Image] = ()) -> None:
    """Raise `TaskFailed` unless the task has an image."""
    if task.status != "completed":
        raise (TaskCanceled if task.status == "canceled" else TaskFailed)(task, made)


def is_transient(error: BaseException) -> bool:
    """Return whether the same request may succeed at once or after a pause."""
    if isinstance(error, BrokerApiError):
        return error.status in _TRANSIENT_STATUSES and error.retryable
    return isinstance(error, Unreachable) and error.passing


def api_error(response: httpx.Response) -> BrokerApiError:
    """Return the error that a response describes."""
    status, retry_after = response.status_code, response.headers.get("retry-after", "")
    try:
        document = _OBJECT_ADAPTER.validate_json(response.content)
    except ValidationError:  # of a proxy
        document = {}
    return BrokerApiError(
        document.get("error", f"HTTP {status} from {response.url}"),
        status=status,
        code=document.get("code"),
        field=document.get("field"),
        retryable=document.get("retryable", status in _TRANSIENT_STATUSES),
        retry_after=float(retry_after) if retry_after.isdecimal() else None,
    )


@contextmanager
def translate_errors(base: str) -> Iterator[None]:
    """Raise every failure of HTTP inside as `Unreachable`."""
    try:
        yield
    except (httpx.InvalidURL, httpx.LocalProtocolError, UnicodeEncodeError):
        # their messages quote values, for example a key with a line break
        message = "The request cannot be sent: check the key (header Authorization), the language and the address."
        raise Unreachable(message, passing=False) from None
    except (ValidationError, SSEError, httpx.TooManyRedirects) as error:
        detail = error.errors()[0]["msg"] if isinstance(error, ValidationError) else error
        raise Unreachable(f"What answers at {base} is not a broker: {detail}", passing=False) from None
    except httpx.HTTPError as error:
        reason = str(error) or type(error).__name__
        raise Unreachable(
            f"No complete response ({reason}). Is there a broker at {base}? `broker serve` starts one."
        ) from None
