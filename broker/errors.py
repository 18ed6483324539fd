"""The broker's errors, as one tree.

Exception
├── ApiError           a request that cannot be served; becomes the HTTP error of its code
│   └── FailedTask     its task failed
├── SettingsError      a wrong environment variable; stops the start with name, expected form and cure
├── ProviderError      no usable answer of a provider (permanent: repeating does not help)
│   └── NotSent        no byte of the request was sent
├── SinkError          a result in a provider's response could not be stored (code from the task error codes)
└── DownloadError      a result could not be downloaded (code from the task error codes)
    └── EgressBlocked  the URL is one that is never requested
"""

from __future__ import annotations

import errno
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

STATUS_OF: Final[dict[str, int]] = {
    "invalid_request": 400,
    "invalid_prompt": 400,
    "invalid_image": 400,
    "too_many_images": 400,
    "unsupported_parameter": 400,
    "payload_too_large": 413,
    "rate_limited": 429,
    "quota_exceeded": 429,
    "unauthorized": 401,
    "forbidden": 403,
    "not_found": 404,
    "task_not_found": 404,
    "task_expired": 410,
    "conflict": 409,
    "idempotency_mismatch": 422,
    "storage_full": 507,
    "internal_error": 500,
    "unavailable": 503,
}
"""HTTP status of each code that a request can be answered with."""

TASK_CODES: Final[frozenset[str]] = frozenset(
    """safety_input safety_output no_image provider_rejected provider_auth provider_credits provider_rate_limited
    provider_unavailable provider_error unknown_outcome deadline_exceeded result_gone invalid_result download_failed
    storage_full canceled""".split()
)
"""The closed set of codes a task can end with."""


@dataclass(frozen=True, kw_only=True)
class FieldError:
    """One error of a request: the field and the cure."""

    field: str
    message: str


class ApiError(Exception):
    """The request cannot be served; the caller can change that.

    code: a key of `STATUS_OF`. message: one sentence naming the cure. field: the request field at fault.
    retry_after: seconds until the same request may succeed. status: overrides the code's status (405). message_key: of
    a message in three languages that is more precise than the code's.
    """

    def __init__(
        self,
        code: str,
        message: str,
        *,
        field: str | None = None,
        details: Sequence[FieldError] = (),
        retryable: bool = False,
        retry_after: float | None = None,
        status: int | None = None,
        message_key: str | None = None,
    ) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.field = field
        self.details = tuple(details)
        self.retryable = retryable
        self.retry_after = retry_after
        self.status = status or STATUS_OF[code]
        self.message_key = message_key or code


class FailedTask(ApiError):
    """The task of a request failed, which a dialect tells as an error of the request.

    code: one of `TASK_CODES`. billed: whether the provider charged for it.
    """

    def __init__(self, code: str, message: str, *, status: int, task_id: str, billed: str, retryable: bool) -> None:
        super().__init__(code, message, status=status, retryable=retryable)
        self.task_id = task_id
        self.billed = billed


class SettingsError(Exception):
    """A wrong environment variable. The message holds its name, the expected form and the cure; never a secret."""


def unusable_folder(variable: str, folder: Path, error: OSError) -> SettingsError:
    """Return the error of a folder in which nothing can be written."""
    is_full = error.errno in {errno.ENOSPC, errno.EDQUOT}
    cure = "free some space on its disk" if is_full else f"make {folder} writable"
    return SettingsError(f"{variable} cannot be used ({error.strerror}): {cure}, or set another")


class ProviderError(Exception):
    """The provider's answer is missing or unusable: the state of the job is not known.

    From `submit` it means that the outcome is unknown and may cost money. The message never holds a secret.
    permanent: repeating does not help. retry_in: seconds to wait, where the provider named them. summary: the message
    without the provider's own words, which may repeat a prompt; for logs. code: the task error code, where the
    provider named the reason.
    """

    def __init__(
        self,
        message: str,
        *,
        permanent: bool = False,
        retry_in: float | None = None,
        summary: str | None = None,
        code: str | None = None,
    ) -> None:
        super().__init__(message)
        self.summary = message if summary is None else summary
        self.permanent = permanent
        self.retry_in = retry_in
        self.code = code


class NotSent(ProviderError):
    """DNS, connect, TLS or pool time-out: the provider cannot have seen the request, so repeating it is free.

    at: the stage that failed; None where that is not known.
    """

    def __init__(
        self,
        message: str,
        *,
        permanent: bool = False,
        at: Literal["name", "connection", "tls", "time-out"] | None = None,
    ) -> None:
        super().__init__(message, permanent=permanent)
        self.at = at


class SinkError(Exception):
    """A result that a provider's response contains could not be stored. code: `storage_full` or `invalid_result`."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


class DownloadError(Exception):
    """The bytes behind a URL from outside did not arrive as they should.

    code: `result_gone`, `invalid_result` or `download_failed`. The message never holds the URL's query.
    """

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code

    @property
    def reason(self) -> str:
        """Return the message without the address, which can open what is behind it."""
        return str(self).rpartition(": ")[2][:200]


class EgressBlocked(DownloadError):
    """The address is private, special or malformed; nothing was sent to it."""

    def __init__(self, message: str) -> None:
        super().__init__("invalid_result", message)
