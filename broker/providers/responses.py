"""What an answer comes to: accepted, refused, unknown or not sent; why; and how long to wait.

Shared by adapters of one family of APIs. Why something failed is looked up in `error_codes`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

from broker.errors import ProviderError
from broker.net.api_client import HttpResponse
from broker.orders import Order
from broker.providers.error_codes import classify_error
from broker.providers.parsing import FINE, TASK_IDS, ParsedResponse, asked_wait, whole
from broker.reports import Failed
from webhooks.retry_after import parse_retry_after

Redact = Callable[[str], str]
"""Takes secrets out of words."""

MAX_WAIT: Final = 600.0
"""The longest wait, in seconds, that a provider can talk us into."""

WAITS: Final[dict[int, float]] = {429: 5.0, 455: 60.0}
"""Seconds to wait where the provider does not say (kie.ai: a window of ten seconds; maintenance takes minutes)."""

OPERATOR_WAITS: Final = dict.fromkeys((401, 402, 403, 433), 60.0)
"""Seconds between questions that only the operator can make succeed, by renewing a key or an account."""


@dataclass(frozen=True, kw_only=True)
class ProviderResponse:
    """An answer as it came and as it reads. body: its JSON or None. wait: seconds that it asks for."""

    status: int
    body: Any
    said: ParsedResponse
    wait: float | None

    @classmethod
    def from_http(cls, answer: HttpResponse, now: float, *, id_fields: Sequence[str] = TASK_IDS) -> ProviderResponse:
        body = _json(answer)
        said = ParsedResponse.from_body(body, id_fields=id_fields)
        wait = parse_retry_after(answer.headers.get("retry-after"), now)
        return cls(
            status=answer.status, body=body, said=said, wait=_within_reason(asked_wait(body) if wait is None else wait)
        )

    @property
    def code(self) -> int:
        """The code that tells why: the body's, unless it has none or says "fine" beside a bad HTTP status."""
        return self.status if self.said.code is None or self.said.code in FINE else self.said.code

    @property
    def fine(self) -> bool:
        """Neither the HTTP status nor the body, if it has a code, speaks of an error."""
        return 200 <= self.status < 300 and 200 <= self.code < 300

    @property
    def proves_refusal(self) -> bool:
        """Whether the answer, if it names no job, proves that there is none.

        The body's code speaks before the HTTP status, because kie.ai answers errors with HTTP 200. 408, 409, 425 and
        5xx prove nothing: the order may have gone through. A permanent redirect comes from somebody who takes no
        orders.
        """
        if self.said.code in {505, 531} or self.code in {301, 307, 308}:
            return True
        return 400 <= self.code < 500 and self.code not in {408, 409, 425}

    @property
    def words(self) -> str:
        return self.said.message if self.body is not None else "the answer is not JSON"

    def refusal(self, redact: Redact) -> Failed:
        """What it refused, once it is certain that nothing was accepted."""
        means = classify_error(self.code, self.words, self.said.names)
        wait = self.wait if self.wait is not None else WAITS.get(self.code)
        return Failed(
            code=means.code,
            message=redact(self.words),
            retryable=means.retryable,
            billed="no",
            provider_code=str(self.code),
            retry_in=wait if means.retryable else None,
            known=means.known,
        )

    def trouble(self, who: str, redact: Redact, *, permanent: bool = False) -> ProviderError:
        """An answer that does not help. who: name and verb. permanent: a refusal of this verb is for good."""
        wait = self.wait if self.wait is not None else (OPERATOR_WAITS | WAITS).get(self.code)
        final = permanent and self.proves_refusal and self.code not in WAITS
        summary = f"{who} answered HTTP {self.status}, code {self.said.code}"
        message = f"{summary}: {redact(self.words)}"
        code = classify_error(self.code, self.words, self.said.names).code
        return ProviderError(message, permanent=final, retry_in=wait, summary=summary, code=code)


def _json(answer: HttpResponse) -> Any:
    """None for what is no JSON: what it is instead (a proxy's page, half a record) is for the adapter to judge."""
    try:
        return answer.json()
    except ProviderError:
        return None


def failed(said: ParsedResponse, job_id: str | None, redact: Redact) -> Failed:
    """A job that failed."""
    means = classify_error(whole(said.fail_code), said.message, said.names)
    refunded = said.fail_code == "531"  # kie.ai: whatever it consumed at first
    return Failed(
        code=means.code,
        message=redact(said.message),
        retryable=means.retryable,
        billed=means.billed or "unknown" if said.cost is None or refunded else said.billed,
        job_id=job_id,
        ended_at=said.ended_at,
        provider_code=said.fail_code or (said.names[0] if said.names else None),
        known=means.known,
    )


def unsent(error: ProviderError, redact: Redact) -> Failed:
    """An order that never left the house, or that we gave up before it could cost anything."""
    return Failed(
        code="provider_unavailable",
        message=redact(str(error)),
        retryable=not error.permanent,
        billed="no",
        retry_in=error.retry_in,
        sent=False,
    )


def not_served(name: str, order: Order) -> Failed:
    """An order for what the catalog no longer has at this provider: nothing was sent."""
    message = f"{name} does not serve {order.model} ({order.mode})"
    return Failed(code="provider_rejected", message=message, retryable=False, billed="no", sent=False)


def _within_reason(seconds: float | None) -> float | None:
    return None if seconds is None else min(max(seconds, 0.0), MAX_WAIT)
