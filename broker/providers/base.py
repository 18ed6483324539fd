"""The contract of a provider: what the broker calls, and what an adapter must keep.

A provider is one package in this folder and one line in `registry`. Packages do not import each other; what they share
is here and in `job_api` (an adapter's base), `responses` (classes of responses), `parsing` (fields of a body),
`error_codes` (classes of errors) and `health` (findings).
"""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass
from importlib.resources.abc import Traversable
from typing import Any, Final, Literal, Protocol

from pydantic import SecretStr

from broker.catalog import Catalog
from broker.errors import FieldError
from broker.net.api_client import ApiClient
from broker.net.fetcher import Fetcher
from broker.orders import Order
from broker.providers.signing_keys import CallbackSignature, FixedKeys
from broker.reports import Failed, Report
from broker.settings.types import PackageSettings
from webhooks.signatures.base import Unsigned

NO_KEY_ID: Final = "none"
"""Key id of a provider that needs no key."""


def key_id_of(key: SecretStr) -> str:
    """Return the stable name of a key: it survives a new order of the keys, and reveals nothing of them."""
    return hashlib.sha256(key.get_secret_value().encode()).hexdigest()[:8]


class ResultSink(Protocol):
    """Where `submit` puts a result that the provider's response contains."""

    async def store(self, chunks: AsyncIterator[bytes]) -> str:
        """Store one result durably, chunk by chunk, and return its output for `Finished`.

        Memory use does not grow with the result. Raises `SinkError` if it cannot be stored.
        """


class Provider(Protocol):
    """One account at one upstream, bound to one key.

    What it says of an order before its submission (obstacle, ignored fields, price, unit, deadline) depends on the
    model, the mode, and which other fields have which values; on a prompt by its length alone, and on a seed not at
    all. It is asked once for such a shape (`broker.ordering.appraisals`).

    An adapter knows no route, no table and no other provider. It never loops or sleeps, and never repeats a submission.
    """

    name: str
    """Used in URLs, rows and metrics."""
    key_id: str
    """Stable, non-secret name of the key; stored with each attempt."""
    holds_submit: bool
    """True if `submit` may wait for the result, for minutes, instead of for a job id."""
    keeps_history: bool
    """True if it gets the turns of a conversation (`Order.turns`). The others get `Order.without_history`: one prompt,
    and the images of the last turn and before it."""
    base_url: str
    """Where requests are sent; shown to the operator."""
    api_name: str
    """Name of its API, in the operation ids of its callback endpoints; the same for the sandbox."""
    callback_path: str
    """Path below the public URL at which the provider calls back."""
    creates_per_10s: int
    """Limit of submissions per account."""
    concurrency: int
    """Limit of running jobs per account."""

    def supports(self, model: str) -> bool:
        """Return True if this canonical model can be ordered here."""

    def build_request(self, order: Order, callback_url: str | None) -> dict[str, Any]:
        """Return the request that `submit` would send: `{"method", "url", "json", "price", "unit"}`.

        price: of one image, or None if unknown; unit: the provider's currency. No I/O and no secret: the callback's
        query is masked, and a reference that needs an upload appears as `upload:<name>`. An order that the provider
        works on for longer than usual has `deadline_seconds` in addition.
        """

    def price(self, order: Order) -> float | None:
        """Return the price of one image of an order, in the provider's unit; None if unknown."""

    def expects_callback(self, order: Order) -> bool:
        """Return True if the provider calls back about this order when it gets a URL."""

    def find_obstacle(self, order: Order, references: int) -> tuple[str, FieldError] | None:
        """Return why the order cannot be served here, as error code and field; None if it can.

        references: number of reference images, which the order does not have yet.
        """

    def ignored(self, order: Order) -> tuple[str, ...]:
        """Return the names of order fields, as the native API spells them, that this provider cannot use."""

    async def upload_references(self, order: Order) -> Order | Failed:
        """Return the order with references that the provider can fetch. Free and repeatable.

        Failed(billed="no") if that is impossible. `submit` does the same for references not yet uploaded.
        """

    async def submit(self, order: Order, callback_url: str | None, sink: ResultSink) -> Report:
        """Order one image, once. May cost money; called at most once per attempt.

        Pending(job_id): accepted. Failed(billed="no"): certainly not accepted (not sent, or refused).
        Finished: completed at once; results in the response itself go to `sink` before this returns.
        Raises `ProviderError` if the outcome is unknown: the job may exist.
        """

    async def check(self, job_id: str, sink: ResultSink) -> Report:
        """Return the state of a job. Free and repeatable. Raises `ProviderError` if nothing was learned.

        Results in the response itself go to `sink`, as with `submit`.

        Never returns `Pending(check_in=0)`, which would poll without a pause.
        """

    def parse_callback(self, body: Any) -> Report:
        """Return the report in a callback body (parsed JSON). Never raises; `Pending(check_in=0)`: poll the provider.

        The report's job_id is the body's most specific id, which may be a task id where callbacks are simulated.
        """

    def job_ids(self, body: Any) -> tuple[str, ...]:
        """Return the ids in a callback body (the provider's or the broker's), most specific first."""

    async def cancel(self, job_id: str) -> bool:
        """Ask the provider to stop the job; False if it offers no cancellation."""

    async def refresh_url(self, url: str) -> str | None:
        """Return a fresh link for a result URL that stopped working; None if the provider offers none."""

    async def balance(self) -> float | None:
        """Return what is left on the account, in the provider's unit; None if the provider does not report it."""


@dataclass(frozen=True, kw_only=True)
class ProviderContext:
    """One key of a provider, and everything that its adapter and its health checks may use."""

    name: str
    """Name of the adapter: that of its package, or `sandbox`."""
    key_id: str
    api_key: SecretStr | None
    """None for a provider that needs no key."""
    settings: Any
    """An instance of the package's settings class."""
    client: ApiClient
    """For the addresses of the settings."""
    fetcher: Fetcher
    """For addresses that the provider names."""
    catalog: Catalog
    now: Callable[[], float]
    """Seconds since the epoch."""
    creates_per_10s: int
    concurrency: int


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One line of a health report: sentences for a person, without any secret."""

    name: str
    status: Literal["ok", "warning", "failed", "skipped"]
    found: str
    cure: str | None = None


@dataclass(frozen=True, kw_only=True)
class HealthCheck:
    """One check of `broker doctor`; free of charge, and it changes nothing."""

    name: str
    run: Callable[[Provider, ProviderContext], Awaitable[Sequence[Finding]]]
    needs: frozenset[str] = frozenset()
    """Fields of the settings that must be right; otherwise the check is skipped."""


@dataclass(frozen=True, kw_only=True)
class ProviderPackage:
    """A provider as the registry knows it."""

    name: str
    settings: type[PackageSettings]
    factory: Callable[[ProviderContext], Provider]
    catalog: Traversable
    """TOML file with the models it serves, its prices and limits."""
    checks: Sequence[HealthCheck] = ()
    signature: Callable[[Sequence[ProviderContext]], CallbackSignature] = lambda _: FixedKeys(Unsigned())
    """The provider's keys, the preferred one first → verifier of its callbacks."""
    signature_advice: str | None = None
    """A question to the operator whose callbacks are all rejected."""
    is_configured: Callable[[Any], bool] = lambda settings: bool(settings.is_configured)
    """Settings → True if this provider is to be used."""
    takes_own_keys: Callable[[Any], bool] = lambda _: True
    """Settings → True if users can have keys of their own there."""
    key_check: str = "key"
    """Name of the check whose first finding says whether the key is accepted."""
