"""Offers: what each provider accepts and charges for a model, and what the providers in use accept together."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import date
from itertools import groupby

from broker.catalog import MODES, Catalog, Model, ProviderTerms, Wire
from broker.orders import Mode, OutputFormat


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Values that a model accepts. A parameter that cannot be chosen has none."""

    aspect_ratios: tuple[str, ...]
    resolutions: tuple[str, ...]
    output_formats: tuple[OutputFormat, ...]
    prompt_limit: int
    """Characters."""


@dataclass(frozen=True, kw_only=True)
class Offer:
    """A provider's modes, limits and prices of a model."""

    provider: str
    modes: tuple[Mode, ...]
    limits: Limits
    max_references: int
    """0 if none of the modes takes any."""
    prices: tuple[tuple[str, float], ...]
    """By resolution; empty if unknown."""
    usd_prices: tuple[tuple[str, float], ...]
    """The same in USD; empty if unknown."""
    unit: str | None
    """Of `prices`."""
    is_metered: bool
    """True if it charges by tokens or seconds: then the prices are those of a usual image."""
    priced_on: date | None
    """When the prices were read."""


def list_offers(catalog: Catalog, model: Model) -> tuple[Offer, ...]:
    """Return the offers of a model; modes of one provider with equal limits and prices are one offer."""
    return tuple(
        _merge_modes(list(equal))
        for provider, wires in model.providers.items()
        for _, equal in groupby(
            (
                _make_offer(model, mode, wires[mode], provider, catalog.terms(provider))
                for mode in MODES
                if mode in wires
            ),
            key=lambda offer: replace(offer, modes=(), max_references=0),
        )
    )


def most_references(catalog: Catalog, model: Model, apis: Collection[str]) -> int:
    """Return the most reference images that one provider takes for a model. apis: the catalogs of those in use."""
    taken = [offer.max_references for offer in list_offers(catalog, model) if offer.provider in apis]
    return max(taken, default=model.max_references)


def combine_limits(model: Model, offers: Collection[Offer]) -> Limits:
    """Return what at least one of these offers accepts, in the order of the model; its own limits without offers."""
    if not offers:
        return Limits(
            aspect_ratios=model.aspect_ratios,
            resolutions=model.resolutions,
            output_formats=model.output_formats,
            prompt_limit=model.prompt_limit,
        )
    limits = [offer.limits for offer in offers]
    return Limits(
        aspect_ratios=_select(model.aspect_ratios, (one.aspect_ratios for one in limits)),
        resolutions=_select(model.resolutions, (one.resolutions for one in limits)),
        output_formats=tuple(
            name for name in model.output_formats if any(name in one.output_formats for one in limits)
        ),
        prompt_limit=max(one.prompt_limit for one in limits),
    )


def _make_offer(model: Model, mode: Mode, wire: Wire, provider: str, terms: ProviderTerms) -> Offer:
    most = model.max_references if wire.max_references is None else wire.max_references
    rate = terms.usd_per_unit
    prices = tuple(wire.prices.items())
    return Offer(
        provider=provider,
        modes=(mode,),
        limits=Limits(
            aspect_ratios=(wire.aspect_ratios or model.aspect_ratios) if wire.ratio else (),
            resolutions=(tuple(wire.resolutions) or model.resolutions) if wire.resolution else model.resolutions[:1],
            output_formats=tuple(name for name in model.output_formats if wire.format and name in wire.formats),
            prompt_limit=wire.prompt_limit or model.prompt_limit,
        ),
        max_references=most if mode == "image-to-image" else 0,
        prices=prices,
        usd_prices=() if rate is None else tuple((resolution, price * rate) for resolution, price in prices),
        unit=terms.unit if prices else None,
        is_metered=terms.is_metered,
        priced_on=terms.priced_on if prices else None,
    )


def _merge_modes(offers: Sequence[Offer]) -> Offer:
    modes = tuple(mode for offer in offers for mode in offer.modes)
    return replace(offers[0], modes=modes, max_references=max(offer.max_references for offer in offers))


def _select(values: Sequence[str], accepted: Iterable[Sequence[str]]) -> tuple[str, ...]:
    known = {value for values in accepted for value in values}
    return tuple(value for value in values if value in known)
