"""Which models there are, what each takes, who sells it for how much, and how long its vendor will have it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import date
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from broker.api.access import Access
from broker.api.answers import answer
from broker.catalog import MODES, Alias, Catalog, Model, Offer
from broker.clock import Clock, day


@dataclass(frozen=True, kw_only=True)
class Models:
    clock: Clock
    catalog: Catalog
    provider_name: str
    supports: Callable[[str], bool]
    max_file_size: int
    access: Access

    async def listing(self, request: Request) -> Response:
        """The whole catalog as it is today; a form can be built from it."""
        self.access.require(request)
        catalog, today = self.catalog, day(self.clock.now())
        return answer(
            {
                "success": True,
                "data": [self._document(model, today) for model in catalog.models],
                "default": catalog.default.name,
                "provider": self.provider_name,
            }
        )

    def _document(self, model: Model, today: date) -> dict[str, Any]:
        offers = self.catalog.offers(model)
        return {
            "name": model.name,
            "title": model.title,
            "default": model is self.catalog.default,
            "available": self.supports(model.name),
            "status": model.status(today),
            "deprecatedOn": _iso(model.deprecated_on),
            "shutdownOn": _iso(model.shutdown_on),
            "instead": model.instead,
            "aliases": [{"name": model.google, "until": _iso(model.shutdown_on)}, *map(_alias, model.aliases)],
            "modes": [mode for mode in MODES if any(mode in offer.modes for offer in offers)],
            "aspectRatios": model.aspect_ratios,
            "resolutions": model.resolutions,
            "outputFormats": model.output_formats,
            "maxReferences": model.max_references,
            "maxReferenceBytes": min(model.max_reference_bytes, self.max_file_size),
            "promptLimit": model.prompt_limit,
            "providers": [_offer(offer) for offer in offers],
        }


def _alias(alias: Alias) -> dict[str, Any]:
    return {"name": alias.name, "until": _iso(alias.until)}


def _offer(offer: Offer) -> dict[str, Any]:
    return {"name": offer.provider, "modes": offer.modes, "prices": dict(offer.prices), "unit": offer.unit}


def _iso(moment: date | None) -> str | None:
    return moment.isoformat() if moment else None
