"""A provider's response: accepted, refused or unknown; how long to wait; and the report or error that it becomes.

Shared by adapters of one family of APIs: an envelope `{"code", "msg", "data"}` around a job.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from broker.errors import ProviderError
from broker.net.api_client import HttpResponse
from broker.net.documents import MAX_INLINE_BYTES
from broker.providers import parsing
from broker.providers.error_codes import ErrorTable
from broker.providers.parsing import SUCCESS_CODES, TASK_IDS, FailureWords, ParsedResponse
from broker.reports import Failed
from webhooks.retry_after import parse_retry_after

MAX_WAIT_SECONDS: Final = 600.0
"""Longest wait that a provider can impose."""

DEFAULT_WAIT_SECONDS: Final[dict[int, float]] = {429: 5.0, 455: 60.0}
"""Wait after a code whose response names none (kie.ai: a window of ten seconds; maintenance takes minutes)."""

OPERATOR_WAIT_SECONDS: Final = dict.fromkeys((401, 402, 403, 433), 60.0)
"""Wait after codes that only the operator can resolve, by renewing a key or topping up an account."""


@dataclass(frozen=True, kw_only=True)
class ProviderResponse:
    """A response as received and as parsed."""

    status: int
    body: Any
    """Its JSON; None for anything else, like a proxy's page or half a record."""
    content: bytes = field(repr=False)
    parsed: ParsedResponse
    wait_seconds: float | None
    """Wait that it asks for."""

    @classmethod
    def from_http(cls, response: HttpResponse, now: float, *, id_fields: Sequence[str] = TASK_IDS) -> ProviderResponse:
        """Parse a response. now: seconds since the epoch. id_fields: names of a job's id."""
        try:
            body = response.json()
        except ProviderError:
            body = None
        wait = parse_retry_after(response.headers.get("retry-after"), now)
        found = cls.from_body(
            body, status=response.status, wait_seconds=wait, id_fields=id_fields, content=response.body
        )
        if len(response.body) > MAX_INLINE_BYTES:  # in the parser thread
            found.parsed.read_parts()
        return found

    @classmethod
    def from_body(
        cls,
        body: Any,
        *,
        status: int,
        wait_seconds: float | None = None,
        id_fields: Sequence[str] = TASK_IDS,
        content: bytes = b"",
    ) -> ProviderResponse:
        """Return the response with this JSON. wait_seconds: the wait that it asks for, if any."""
        return cls(
            status=status,
            body=body,
            content=content,
            parsed=ParsedResponse(body, id_fields=id_fields),
            wait_seconds=None if wait_seconds is None else min(max(wait_seconds, 0.0), MAX_WAIT_SECONDS),
        )

    def unwrap_error(self) -> ProviderResponse:
        """Return the response with an error object where it belongs.

        Some send it as the only element of a list, and some within HTTP 200: then its code takes the place of the
        status.
        """
        body = self.body[0] if isinstance(self.body, list) and len(self.body) == 1 else self.body
        error = parsing.mapping(parsing.mapping(body).get("error"))
        is_hidden = 200 <= self.status < 300 and bool(error)
        status = (parsing.to_code(error.get("code")) or 500) if is_hidden else self.status
        return ProviderResponse.from_body(body, status=status, wait_seconds=self.wait_seconds, content=self.content)

    @property
    def code(self) -> int:
        """The code that explains the response: the body's, unless it is missing or contradicts a bad HTTP status."""
        code = self.parsed.code
        return self.status if code is None or code in SUCCESS_CODES else code

    @property
    def is_success(self) -> bool:
        """True if neither the HTTP status nor the body's code reports an error."""
        return 200 <= self.status < 300 and 200 <= self.code < 300

    @property
    def proves_refusal(self) -> bool:
        """True if the response, where it names no job, proves that none exists.

        The body's code precedes the HTTP status, because kie.ai answers errors with HTTP 200. 408, 409, 425, 499 (the
        request was canceled behind a gateway) and 5xx prove nothing: the order may have been accepted. A permanent
        redirect comes from a server that takes no orders.
        """
        if self.parsed.code in {505, 531} or self.code in {301, 307, 308}:
            return True
        return 400 <= self.code < 500 and self.code not in {408, 409, 425, 499}

    @property
    def is_unpaid(self) -> bool:
        """True if the account was refused, by code: nothing can be billed then, whenever the error came."""
        return self.code in {401, 402}

    @property
    def is_permanent(self) -> bool:
        """True for a refusal that will not change by waiting."""
        return self.proves_refusal and self.code not in DEFAULT_WAIT_SECONDS

    @property
    def message(self) -> str:
        return self.parsed.failure.message if self.body is not None else "the answer is not JSON"


@dataclass(frozen=True, kw_only=True)
class Reports:
    """Writer of the reports and errors of one account; no message has its key."""

    name: str
    """Of the adapter."""
    errors: ErrorTable
    secret: str = field(repr=False)

    def redact(self, text: str) -> str:
        return parsing.redact(text, (self.secret,))

    def not_sent(self, error: ProviderError) -> Failed:
        """Return the report of an order whose submission never began, or ended before it could cost anything."""
        return Failed(
            code="provider_unavailable",
            message=self.redact(str(error)),
            retryable=not error.permanent,
            billed="no",
            retry_in=error.retry_in,
            sent=False,
        )

    def refusal(self, response: ProviderResponse) -> Failed:
        """Return the report of a refused order; only for responses that prove the refusal."""
        error = self.errors.classify(response.code, response.message, response.parsed.failure.names)
        wait = response.wait_seconds
        wait = DEFAULT_WAIT_SECONDS.get(response.code) if wait is None else wait
        return Failed(
            code=error.code,
            message=self.redact(response.message),
            retryable=error.retryable,
            billed="no",
            provider_code=str(response.code),
            retry_in=wait if error.retryable else None,
            known=error.known,
        )

    def error(self, action: str, response: ProviderResponse, *, can_be_permanent: bool = False) -> ProviderError:
        """Return the error of a response without a result. can_be_permanent: a refusal ends the action for good."""
        defaults = OPERATOR_WAIT_SECONDS | DEFAULT_WAIT_SECONDS
        wait = response.wait_seconds
        summary = f"{self.name}: {action} answered HTTP {response.status}, code {response.parsed.code}"
        return ProviderError(
            f"{summary}: {self.redact(response.message)}",
            permanent=can_be_permanent and response.is_permanent,
            retry_in=defaults.get(response.code) if wait is None else wait,
            summary=summary,
            code=self.errors.classify(response.code, response.message, response.parsed.failure.names).code,
        )

    def job_failed(self, parsed: ParsedResponse, job_id: str | None, failure: FailureWords | None = None) -> Failed:
        """Return the report of a job that ended without a result. failure: in place of that in the body."""
        words = failure or parsed.failure
        error = self.errors.classify(parsing.to_code(words.code), words.message, words.names)
        code = words.code or next(iter(words.names), None)
        is_refunded = words.code == "531"  # kie.ai: whatever it consumed at first
        return Failed(
            code=error.code,
            message=self.redact(words.message),
            retryable=error.retryable,
            billed=error.billed or "unknown" if parsed.cost is None or is_refunded else parsed.billed,
            job_id=job_id,
            ended_at=parsed.ended_at,
            provider_code=self.redact(code) if code else None,
            known=error.known,
        )
