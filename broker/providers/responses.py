"""Classes of responses: accepted, refused, unknown or not sent; the reason; and how long to wait.

Shared by adapters of one family of APIs: an envelope `{"code", "msg", "data"}` around a job.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

from broker.errors import ProviderError
from broker.net.api_client import HttpResponse
from broker.orders import Order
from broker.providers.error_codes import ErrorTable
from broker.providers.parsing import SUCCESS_CODES, TASK_IDS, ParsedResponse, requested_wait, to_code
from broker.reports import Failed
from webhooks.retry_after import parse_retry_after

Redact = Callable[[str], str]
"""Removes secrets from a text."""

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
    """Its JSON, or None."""
    parsed: ParsedResponse
    wait_seconds: float | None
    """Wait that it asks for."""
    errors: ErrorTable

    @classmethod
    def from_http(
        cls, response: HttpResponse, now: float, errors: ErrorTable, *, id_fields: Sequence[str] = TASK_IDS
    ) -> ProviderResponse:
        """Parse a response. now: seconds since the epoch. errors: the provider's. id_fields: names of a job's id."""
        body = _json_of(response)
        wait = parse_retry_after(response.headers.get("retry-after"), now)
        wait = requested_wait(body) if wait is None else wait
        return cls(
            errors=errors,
            status=response.status,
            body=body,
            parsed=ParsedResponse.from_body(body, id_fields=id_fields),
            wait_seconds=None if wait is None else min(max(wait, 0.0), MAX_WAIT_SECONDS),
        )

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

        The body's code precedes the HTTP status, because kie.ai answers errors with HTTP 200. 408, 409, 425 and 5xx
        prove nothing: the order may have been accepted. A permanent redirect comes from a server that takes no orders.
        """
        if self.parsed.code in {505, 531} or self.code in {301, 307, 308}:
            return True
        return 400 <= self.code < 500 and self.code not in {408, 409, 425}

    @property
    def message(self) -> str:
        return self.parsed.message if self.body is not None else "the answer is not JSON"

    def to_refusal(self, redact: Redact) -> Failed:
        """Return the report of a refused order; only for responses that prove the refusal."""
        error = self.errors.classify(self.code, self.message, self.parsed.names)
        wait = self.wait_seconds if self.wait_seconds is not None else DEFAULT_WAIT_SECONDS.get(self.code)
        return Failed(
            code=error.code,
            message=redact(self.message),
            retryable=error.retryable,
            billed="no",
            provider_code=str(self.code),
            retry_in=wait if error.retryable else None,
            known=error.known,
        )

    def to_error(self, action: str, redact: Redact, *, permanent: bool = False) -> ProviderError:
        """Return the error of a response without a result. action: provider and verb.

        permanent: a refusal of this action will not change.
        """
        defaults = OPERATOR_WAIT_SECONDS | DEFAULT_WAIT_SECONDS
        summary = f"{action} answered HTTP {self.status}, code {self.parsed.code}"
        return ProviderError(
            f"{summary}: {redact(self.message)}",
            permanent=permanent and self.proves_refusal and self.code not in DEFAULT_WAIT_SECONDS,
            retry_in=self.wait_seconds if self.wait_seconds is not None else defaults.get(self.code),
            summary=summary,
            code=self.errors.classify(self.code, self.message, self.parsed.names).code,
        )


def _json_of(response: HttpResponse) -> Any:
    """Return None for a body that is not JSON; the adapter decides what a proxy's page or half a record means."""
    try:
        return response.json()
    except ProviderError:
        return None


def job_failed(parsed: ParsedResponse, job_id: str | None, errors: ErrorTable, redact: Redact) -> Failed:
    """Return the report of a job that ended without a result."""
    error = errors.classify(to_code(parsed.fail_code), parsed.message, parsed.names)
    is_refunded = parsed.fail_code == "531"  # kie.ai: whatever it consumed at first
    return Failed(
        code=error.code,
        message=redact(parsed.message),
        retryable=error.retryable,
        billed=error.billed or "unknown" if parsed.cost is None or is_refunded else parsed.billed,
        job_id=job_id,
        ended_at=parsed.ended_at,
        provider_code=parsed.fail_code or (parsed.names[0] if parsed.names else None),
        known=error.known,
    )


def order_not_sent(error: ProviderError, redact: Redact) -> Failed:
    """Return the report of an order whose submission never began, or ended before it could cost anything."""
    return Failed(
        code="provider_unavailable",
        message=redact(str(error)),
        retryable=not error.permanent,
        billed="no",
        retry_in=error.retry_in,
        sent=False,
    )


def model_not_served(name: str, order: Order) -> Failed:
    """Return the report of an order for a model that the catalog no longer has at this provider."""
    message = f"{name} does not serve {order.params.model} ({order.mode})"
    return Failed(code="provider_rejected", message=message, retryable=False, billed="no", sent=False)
