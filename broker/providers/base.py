"""What every provider is to us: a few verbs over an order, a job id and a callback body.

Modules beside this one: one per upstream (`kie`, `legacy`), none of which imports another; and what they
share: `error_codes` (classes of errors), `parsing` (fields of a body), `responses` (classes of responses),
`addresses` (which adapter is meant).
"""

from __future__ import annotations

from typing import Any, Final, Protocol

from broker.orders import Order
from broker.reports import Failed, Report

STATUS_SECONDS: Final = 30.0
"""For a question about a job. It can be asked again, so a provider that hangs must not hold the asker for long."""


class Provider(Protocol):
    """One upstream. It knows no door, no table and no other provider; it never loops, sleeps or retries a submit.

    name: in URLs, rows, metrics. creates_per_10s, concurrency: its documented limits per account.
    """

    name: str
    creates_per_10s: int
    concurrency: int

    def supports(self, model: str) -> bool:
        """Whether this canonical model can be ordered here."""
        ...

    def build_request(self, order: Order, callback_url: str | None) -> dict[str, Any]:
        """The request that `submit` would send: `{"method", "url", "json", "price", "unit"}`.

        price: of one image, or None where that is not known; unit: what it is counted in. No I/O and no secret: the
        callback's query is cut off, an upload to come appears as `upload:<name>`.
        """
        ...

    def ignored(self, order: Order) -> tuple[str, ...]:
        """Names of order fields (as the native API spells them) that this provider cannot use."""
        ...

    async def upload_references(self, order: Order) -> Order | Failed:
        """The same order, its references where the provider can fetch them. Free and repeatable; nothing is ordered.

        Failed(billed="no") where that does not work. `submit` does it for references that were not handed over.
        """
        ...

    async def submit(self, order: Order, callback_url: str | None) -> Report:
        """Order one image, once. May cost money; called at most once per attempt.

        Pending(job_id) = accepted. Failed(billed="no") = certainly not accepted (nothing was sent, or it said no).
        Finished = done at once. Raises `ProviderError` when the outcome is unknown: the job may exist.
        """
        ...

    async def check(self, job_id: str) -> Report:
        """What became of a job. Free and repeatable. Raises `ProviderError` when nothing could be learned.

        Never `Pending(check_in=0)`, which would ask for ever.
        """
        ...

    def parse_callback(self, body: Any) -> Report:
        """What a callback body (parsed JSON) says. Never raises on strange bodies: `Pending(check_in=0)` = ask.

        The report's job_id is the body's most telling id; where people simulate callbacks it may be a task's of ours.
        """
        ...

    def job_ids(self, body: Any) -> tuple[str, ...]:
        """Ids (the provider's or ours) that a callback body names, most telling first."""
        ...

    async def cancel(self, job_id: str) -> bool:
        """Ask to stop the job; False where the provider has no such thing."""
        ...

    async def refresh_url(self, url: str) -> str | None:
        """A fresh link for a result URL that no longer answers; None where there is no such thing."""
        ...

    async def balance(self) -> float | None:
        """What is left on the account, in the provider's unit; None where it cannot tell."""
        ...
