"""Planning: validates an order request against the catalog and the providers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from broker.catalog import Catalog
from broker.clock import Clock, day
from broker.errors import ApiError, EgressBlocked
from broker.net.fetcher import Fetcher
from broker.ordering.validation import validate_params
from broker.orders import OrderRequest, Plan, Quote
from broker.providers.base import Provider

MAX_IMAGES: Final = 6
MAX_CALLBACK_URL_CHARACTERS: Final = 2048


@dataclass(frozen=True, kw_only=True)
class Planner:
    """Makes the plan of an order request."""

    clock: Clock
    catalog: Catalog
    providers: Mapping[str, Provider]
    """In order of preference."""
    caller_fetcher: Fetcher
    """With the rules on which addresses of callers may be called."""

    def make_plan(self, request: OrderRequest) -> Plan:
        """Return the plan of a request. Raises `ApiError` for a field that is wrong."""
        if not 1 <= request.count <= MAX_IMAGES:
            raise ApiError("invalid_request", f"numberOfImages must be from 1 to {MAX_IMAGES}.", field="numberOfImages")
        order = validate_params(self.catalog, request.params, mode=request.mode, references=len(request.sources))
        candidates = self._find_candidates(order.params.model)
        provider = self.providers[candidates[0]]
        offer = provider.build_request(order, None)
        return Plan(
            order=order,
            candidates=candidates,
            quote=Quote(price=offer.get("price"), count=request.count, unit=offer.get("unit")),
            warnings=self.catalog.warnings(request.params.model or None, day(self.clock.now())),
            ignored=provider.ignored(order),
        )

    async def check_callback_url(self, url: str | None) -> None:
        """Raise `ApiError` for an address that is never called, before anything is ordered."""
        if url is None:
            return
        try:
            if len(url) > MAX_CALLBACK_URL_CHARACTERS:
                raise EgressBlocked(f"the address is longer than {MAX_CALLBACK_URL_CHARACTERS} characters")
            await self.caller_fetcher.validate(url)
        except EgressBlocked as error:
            raise ApiError(
                "invalid_request",
                f"callbackUrl is not an address that we call: {error}. "
                "Use a public https:// address, without user name and on the usual port.",
                field="callbackUrl",
            ) from error

    def _find_candidates(self, model: str) -> tuple[str, ...]:
        candidates = tuple(name for name, provider in self.providers.items() if provider.supports(model))
        if not candidates:
            raise ApiError(
                "unsupported_parameter",
                f"The provider in use ({', '.join(self.providers)}) does not serve {model}.",
                field="model",
            )
        return candidates
