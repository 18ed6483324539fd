"""What an answer comes to: accepted, refused, unknown or not sent; why; and how long to wait.

Shared by adapters of one family of APIs. The tables hold HTTP's codes and those that kie.ai (Getting Started) adds.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC
from email.utils import parsedate_to_datetime
from typing import Any, Final

from broker.errors import ProviderError
from broker.orders import Order
from broker.outgoing import Answer
from broker.providers.reading import FINE, TASK_IDS, Said, whole
from broker.reports import Failed

Verdict = tuple[str, bool]
"""A task error code, and whether another attempt may succeed."""

Harmless = Callable[[str], str]
"""Takes secrets out of words."""

MAX_WAIT: Final = 600.0
"""The longest wait, in seconds, that a provider can talk us into."""

ACCOUNT: Final[dict[int, Verdict]] = {
    401: ("provider_auth", False),
    402: ("provider_credits", False),
    403: ("provider_auth", False),
    429: ("provider_rate_limited", True),
    433: ("provider_credits", False),  # kie.ai: a sub-key's own limit
    455: ("provider_unavailable", True),  # kie.ai: maintenance
}
"""Codes about the account or the service: whatever the words beside them, they are not about this order."""

ORDER: Final[dict[int, Verdict]] = {
    408: ("provider_error", True),  # kie.ai, of a job: no result for more than ten minutes
    505: ("provider_rejected", False),  # kie.ai: feature disabled
    531: ("provider_error", True),  # kie.ai: failed, credits returned
}
"""Codes about one order, where the words beside them say nothing better."""

_FLAGGED: Final = re.compile(r"sensitive|flagged|\bpolic(y|ies)\b|moderat|nsfw|prohibited|safety|unsafe|violat", re.I)
_OUTPUT_ONLY: Final = re.compile(r"^(?!.*\b(inputs?|prompts?)\b).*\b(outputs?|generated|results?)\b", re.I | re.S)
_WORDS: Final[tuple[tuple[re.Pattern[str], Verdict], ...]] = (
    (re.compile(r"could not generate an? image|no image|no media", re.I), ("no_image", False)),
    (
        re.compile(
            r"not within the range|allowed options|is required|must be|unsupported|not supported|too (long|large|many)"
            r"|\binvalid (parameter|value|input|image|url|prompt|aspect|model|format)|exceeds",
            re.I,
        ),
        ("provider_rejected", False),
    ),
    (
        re.compile(r"internal (server )?error|try again later|temporar|overload|time.?out|unavailable|busy", re.I),
        ("provider_error", True),
    ),
)
"""Words of real failures, in the order in which they decide: kie.ai reports even a bad ratio as code 500."""

WAITS: Final[dict[int, float]] = {429: 5.0, 455: 60.0}
"""Seconds to wait where the provider does not say (kie.ai: a window of ten seconds; maintenance takes minutes)."""

OPERATOR_WAITS: Final = dict.fromkeys((401, 402, 403, 433), 60.0)
"""Seconds between questions that only the operator can make succeed, by renewing a key or an account."""


@dataclass(frozen=True, kw_only=True)
class Reply:
    """An answer as it came and as it reads. body: its JSON or None. wait: seconds that its Retry-After asks for."""

    status: int
    body: Any
    said: Said
    wait: float | None

    @classmethod
    def of(cls, answer: Answer, now: float, *, id_fields: Sequence[str] = TASK_IDS) -> Reply:
        body = _json(answer)
        said = Said.of(body, id_fields=id_fields)
        return cls(status=answer.status, body=body, said=said, wait=wait_of(answer.headers, now))

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

    def refusal(self, harmless: Harmless) -> Failed:
        """What it refused, once it is certain that nothing was accepted."""
        code, retryable = verdict(self.code, self.words)
        wait = self.wait if self.wait is not None else WAITS.get(self.code)
        return Failed(
            code=code,
            message=harmless(self.words),
            retryable=retryable,
            billed="no",
            provider_code=str(self.code),
            retry_in=wait if retryable else None,
        )

    def trouble(self, who: str, harmless: Harmless, *, permanent: bool = False) -> ProviderError:
        """An answer that does not help. who: name and verb. permanent: a refusal of this verb is for good."""
        wait = self.wait if self.wait is not None else (OPERATOR_WAITS | WAITS).get(self.code)
        final = permanent and self.proves_refusal and self.code not in WAITS
        message = f"{who} answered HTTP {self.status}, code {self.said.code}: {harmless(self.words)}"
        return ProviderError(message, permanent=final, retry_in=wait, code=verdict(self.code, self.words)[0])


def _json(answer: Answer) -> Any:
    """None for what is no JSON: what it is instead (a proxy's page, half a record) is for the adapter to judge."""
    try:
        return answer.json()
    except ProviderError:
        return None


def failed(said: Said, job_id: str | None, harmless: Harmless) -> Failed:
    """A job that failed."""
    code, retryable = verdict(whole(said.fail_code), said.message)
    return Failed(
        code=code,
        message=harmless(said.message),
        retryable=retryable,
        billed="no" if said.fail_code == "531" else said.billed,
        job_id=job_id,
        provider_code=said.fail_code,
    )


def unsent(error: ProviderError, harmless: Harmless) -> Failed:
    """An order that never left the house, or that we gave up before it could cost anything."""
    return Failed(
        code="provider_unavailable",
        message=harmless(str(error)),
        retryable=not error.permanent,
        billed="no",
        retry_in=error.retry_in,
    )


def not_served(name: str, order: Order) -> Failed:
    """An order for what the catalog no longer has at this provider: nothing was sent."""
    message = f"{name} does not serve {order.model} ({order.mode})"
    return Failed(code="provider_rejected", message=message, retryable=False, billed="no")


def verdict(code: int | None, words: str) -> Verdict:
    """What a code and the words beside it come to."""
    if code in ACCOUNT:
        return ACCOUNT[code]
    if _FLAGGED.search(words):
        return ("safety_output" if _OUTPUT_ONLY.match(words) else "safety_input"), False
    for pattern, found in _WORDS:
        if pattern.search(words):
            return found
    return ORDER.get(code or 0) or _by_class(code or 0)


def _by_class(code: int) -> Verdict:
    return ("provider_rejected", False) if 400 <= code < 500 else ("provider_error", code >= 500)


def wait_of(headers: Mapping[str, str], now: float) -> float | None:
    """Seconds that a Retry-After header asks for, 0 … 600; None without one that makes sense. now: since the epoch."""
    value = headers.get("retry-after", "").strip()[:64]
    try:
        seconds = float(value)
    except ValueError:
        seconds = _until(value, now)
    return None if math.isnan(seconds) else min(max(seconds, 0.0), MAX_WAIT)


def _until(date: str, now: float) -> float:
    try:
        moment = parsedate_to_datetime(date)
        return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp() - now
    except (ValueError, TypeError, OverflowError, IndexError):
        return math.nan
