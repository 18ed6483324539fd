"""The catalog of models: parameters and limits of each, and how each provider spells and prices it.

Read from the `catalog.toml` files: data, not code.
"""

from __future__ import annotations

import difflib
import tomllib
from collections.abc import Mapping, Sequence
from datetime import date
from importlib import resources
from typing import Any, Final, Literal, NamedTuple, cast, get_args

from pydantic import BaseModel, ConfigDict, PositiveInt, TypeAdapter, field_validator

from broker.errors import ApiError, FieldError
from broker.orders import Mode, Order, OutputFormat

Status = Literal["live", "deprecated", "retired"]
TokenKind = Literal["input", "text", "image"]

MODES: Final[tuple[Mode, ...]] = get_args(Mode)
NEVER_IGNORED: Final = ("google_search",)
"""Other parameters (`ImageParams.extra`) without which the image shows something else."""


class _Entry(BaseModel):
    """Base of a table in a catalog file; an unknown key is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class PixelSize(NamedTuple):
    """Width and height of an image in pixels."""

    width: int
    height: int


class Wire(_Entry):
    """One provider's spelling of one mode of one model, and its limits where they are narrower than the model's.

    A field without a name does not exist there. A value that a provider does not serve makes it no candidate.
    """

    enabled: bool = True
    """False for an entry whose id or fields at the provider are not confirmed: checked, but not served."""
    model: str | None = None
    ratio: str | None = None
    default_ratio: str | None = None
    aspect_ratios: tuple[str, ...] = ()
    """Those it serves; empty: all of the model's."""
    ratios: Mapping[str, str] = {}
    """Its spelling of ratios, where it differs from ours; "" for the one that is its default without the field."""
    resolution: str | None = None
    default_resolution: str | None = None
    """Sent where the order names none, because the provider's own default is another than the model's first."""
    resolutions: Mapping[str, str] = {}
    """Its spelling of those that it serves; empty: all of the model's, spelled as ours."""
    format: str | None = None
    formats: Mapping[OutputFormat, str] = {}
    """Its spelling of the formats that it serves."""
    seed: str | None = None
    references: str | None = None
    empty_references: bool = False
    max_references: int | None = None
    prompt_limit: int | None = None
    """Characters."""
    prices: Mapping[str, float] = {}
    token_prices: Mapping[TokenKind, float] = {}
    """USD per million tokens, where the provider reports tokens: of the input, of text and of images."""
    extra: Mapping[str, str] = {}
    """Names of other parameters (`ImageParams.extra`), by ours."""

    def spell(self, order: Order, references: Sequence[str]) -> dict[str, Any]:
        """Return the provider's input object of an order, without the model's id."""
        ratio = order.params.aspect_ratio or self.default_ratio
        resolution = order.params.resolution or self.default_resolution
        fields = {
            self.ratio: (self.ratios.get(ratio, ratio) or None) if ratio else None,
            self.resolution: self.resolutions.get(resolution, resolution) if resolution else None,
            self.format: self.formats.get(cast("OutputFormat", order.params.output_format)) if self.format else None,
            self.seed: order.params.seed,
            self.references: list(references) if references or self.empty_references else None,
        }
        fields |= {name: order.params.extra.get(ours) for ours, name in self.extra.items()}
        return {"prompt": order.params.prompt} | {
            name: value for name, value in fields.items() if name and value is not None
        }


class Alias(_Entry):
    """Another name of a model."""

    name: str
    until: date | None = None
    """The day on which its vendor withdrew it; the broker still accepts it."""


class ProviderTerms(_Entry):
    """Documented terms of a provider, for all its models."""

    unit: str | None = None
    """Currency of its prices; None if none is known."""
    usd_per_unit: float | None = None
    """Value of one unit in USD; None if unknown."""
    priced_on: date | None = None
    """When its prices were read."""
    is_metered: bool = False
    """True if it charges by tokens or seconds: then its prices are those of a usual image."""
    creates_per_10s: PositiveInt = 20
    """Submissions per account."""
    concurrency: PositiveInt = 100
    """Running jobs per account."""
    result_seconds: PositiveInt | None = None
    """How long results are kept, where that is less than a day; None: as long as is usual."""


_DEFAULT_TERMS: Final = ProviderTerms()


class Model(_Entry):
    """One model under its canonical name."""

    name: str
    title: str
    google: str
    aliases: tuple[Alias, ...]
    deprecated_on: date | None = None
    """Announced by Google, for its own id; as `shutdown_on`."""
    shutdown_on: date | None = None
    instead: str | None = None
    """Canonical name of the model to move to; required with a date."""
    prompt_limit: int
    """Characters."""
    aspect_ratios: tuple[str, ...]
    resolutions: tuple[str, ...]
    image_sizes: Mapping[str, Mapping[str, PixelSize]] = {}
    """By ratio and resolution, in the file the name of a table; a ratio that leaves the size to the model is absent."""
    output_tokens: Mapping[str, PositiveInt] = {}
    """Of one image, by resolution; one that is unknown is missing."""
    output_formats: tuple[OutputFormat, ...]
    max_references: int
    max_reference_bytes: int
    providers: Mapping[str, Mapping[Mode, Wire]]
    """By name; only modes that are enabled."""

    @field_validator("providers")
    @classmethod
    def _drop_disabled(cls, given: Mapping[str, Mapping[Mode, Wire]]) -> Mapping[str, Mapping[Mode, Wire]]:
        enabled = {name: {mode: wire for mode, wire in wires.items() if wire.enabled} for name, wires in given.items()}
        return {name: wires for name, wires in enabled.items() if wires}

    @property
    def names(self) -> tuple[str, ...]:
        """Return all its names, the canonical one first."""
        return (self.name, self.google, *(alias.name for alias in self.aliases))

    def pixel_size(self, aspect_ratio: str | None, resolution: str | None) -> PixelSize | None:
        """Return the size of an image with these parameters; None if the model chooses it, or it is unknown."""
        sizes = self.image_sizes.get(aspect_ratio or "", {})
        return sizes.get(resolution or self.resolutions[0])

    def status(self, on: date) -> Status:
        """Return its status at Google on a day; a reseller may still sell a retired model."""
        if self.shutdown_on and on >= self.shutdown_on:
            return "retired"
        return "deprecated" if self.deprecated_on and on >= self.deprecated_on else "live"

    def warning(self, on: date) -> str | None:
        """Return the warning for an order on that day, in ASCII, because a header carries it; None for a live model."""
        name = f"{self.name} ({self.google})"
        match self.status(on):
            case "retired":
                known = f"Google shut {name} down on {self.shutdown_on}; it is served while the provider sells it."
            case "deprecated":
                end = f", to be shut down on {self.shutdown_on}" if self.shutdown_on else ""
                known = f"Google deprecated {name} on {self.deprecated_on}{end}."
            case "live":
                return None
        return f"{known} Use {self.instead} instead."


class Catalog:
    """The models, by each of their names."""

    def __init__(
        self, models: Sequence[Model], *, default: str, providers: Mapping[str, ProviderTerms] | None = None
    ) -> None:
        self.models = tuple(models)
        self._by_name = _index(self.models)
        self._terms = providers or {}
        self.default = self._by_name[default]
        wires = (wire for model in self.models for modes in model.providers.values() for wire in modes.values())
        limits = (*(model.prompt_limit for model in self.models), *(wire.prompt_limit for wire in wires))
        self.shortest_prompt_limit = min(limit for limit in limits if limit is not None)
        """Characters that a prompt may have everywhere."""
        for model in self.models:
            _check_model(model, self._by_name, self._terms)

    @classmethod
    def load(cls, text: str | None = None, *, providers: Mapping[str, str] | None = None) -> Catalog:
        """Parse the models and each provider's catalog. Raises ValueError for a contradiction.

        text: TOML of the models; the file shipped with the broker by default. providers: TOML by provider name.
        """
        raw = tomllib.loads(text or resources.files("broker").joinpath("catalog.toml").read_text("utf-8"))
        tables = {name: tomllib.loads(toml) for name, toml in (providers or {}).items()}
        listed = [*raw["models"], *(model for table in tables.values() for model in table.get("new_models", []))]
        known = {model["name"] for model in listed}
        for name, table in tables.items():
            if unknown := table.get("models", {}).keys() - known:
                raise ValueError(f"catalog of {name}: no model is named {', '.join(sorted(unknown))}")
        sizes = raw.get("image_sizes", {})
        models = TypeAdapter(tuple[Model, ...]).validate_python([_expand(model, tables, sizes) for model in listed])
        terms = {
            name: {key: value for key, value in table.items() if "models" not in key} for name, table in tables.items()
        }
        return cls(
            models, default=raw["default"], providers=TypeAdapter(dict[str, ProviderTerms]).validate_python(terms)
        )

    def resolve(self, name: str | None) -> Model:
        """Return the model with this name or alias, or the default; raise ApiError("unsupported_parameter")."""
        if not name or not name.strip():
            return self.default
        found = self._by_name.get(_normalize_name(name))
        if found is None:
            raise ApiError("unsupported_parameter", self._unknown_model(name), field="model")
        return found

    def warnings(self, name: str | None, on: date) -> tuple[str, ...]:
        """Return the warnings for an order by this name on a day: about the name, and about the model."""
        model = self.resolve(name)
        withdrawn = [
            f"Google took the name {alias.name} back on {alias.until}. Use {model.name} instead."
            for alias in model.aliases
            if alias.until and on >= alias.until and _normalize_name(name or "") == _normalize_name(alias.name)
        ]
        return (*withdrawn, *filter(None, [model.warning(on)]))

    def terms(self, provider: str) -> ProviderTerms:
        """Return a provider's limits and unit; the defaults for one without a catalog."""
        return self._terms.get(provider, _DEFAULT_TERMS)

    def serves(self, provider: str, model: str) -> bool:
        """Return whether a provider has a canonical model, in one mode at least."""
        return any(model == known.name and provider in known.providers for known in self.models)

    def pixel_size(self, model: str, aspect_ratio: str | None, resolution: str | None) -> PixelSize | None:
        """Return the size of an image of a canonical model; None if the model chooses it, or it is unknown."""
        found = self._by_name.get(model)
        return found.pixel_size(aspect_ratio, resolution) if found else None

    def wire(self, provider: str, model: str, mode: Mode) -> Wire | None:
        """Return a provider's spelling of a mode of a canonical model; None if it does not serve it."""
        found = self._by_name.get(model)
        return found.providers.get(provider, {}).get(mode) if found else None

    def wire_by_id(self, provider: str, model: str) -> Wire | None:
        """Return a provider's spelling of a model by the provider's own id; None if it has none of that id."""
        wires = (wire for known in self.models for wire in known.providers.get(provider, {}).values())
        return next((wire for wire in wires if wire.model == model), None)

    def find_obstacle(self, provider: str, order: Order, references: int) -> tuple[str, FieldError] | None:
        """Return why a provider cannot serve an order, as error code and field; None if it can.

        references: number of reference images. An order that no provider of the model serves was refused before.
        """
        params, wire = order.params, self.wire(provider, order.params.model, order.mode)
        if wire is None:
            text = f"{provider} does not serve {params.model} ({order.mode})."
            return "unsupported_parameter", FieldError(field="model", message=text)
        model = self.resolve(params.model)
        choices: Mapping[str, tuple[str | None, Sequence[str]]] = {
            "aspectRatio": (params.aspect_ratio, wire.aspect_ratios or model.aspect_ratios),
            "resolution": (params.resolution, tuple(wire.resolutions) or model.resolutions),
            "outputFormat": (params.output_format if wire.format else None, tuple(wire.formats)),
        }
        for name, (value, accepted) in choices.items():
            if value is not None and value not in accepted:
                text = f"{model.name} has no {name} {quote_text(value)} here. Accepted: {', '.join(accepted)}."
                return "unsupported_parameter", FieldError(field=name, message=text)
        for name in NEVER_IGNORED:
            if params.extra.get(name) and name not in wire.extra:
                text = f"{model.name} has no {name} here: leave it out."
                return "unsupported_parameter", FieldError(field=name, message=text)
        most = model.max_references if wire.max_references is None else wire.max_references
        if references > most:
            text = f"{references} images are too many; {model.name} takes at most {most}."
            return "too_many_images", FieldError(field="image", message=text)
        longest = wire.prompt_limit or model.prompt_limit
        if len(params.prompt) > longest:
            text = f"The prompt has {len(params.prompt)} characters; {model.name} takes at most {longest}."
            return "invalid_prompt", FieldError(field="prompt", message=text)
        return None

    def price(self, provider: str, model: str, mode: Mode, resolution: str | None) -> float | None:
        """Return the price of one image in the provider's unit; None if unknown."""
        wire = self.wire(provider, model, mode)
        return wire.prices.get(resolution or self._by_name[model].resolutions[0]) if wire else None

    def lowest_price(self, provider: str) -> float | None:
        """Return the lowest price of an image in the provider's unit; None if none is known."""
        wires = (wire for model in self.models for wire in model.providers.get(provider, {}).values())
        return min((price for wire in wires for price in wire.prices.values()), default=None)

    def ignored(self, provider: str, order: Order) -> tuple[str, ...]:
        """Return the parameters of an order without a field at the provider, as the native API spells them.

        The only resolution of a model results without a field too, so it is not ignored.
        """
        wire = self.wire(provider, order.params.model, order.mode) or Wire()
        one_size = len(self.resolve(order.params.model).resolutions) == 1
        values = {
            "aspectRatio": (order.params.aspect_ratio, wire.ratio),
            "resolution": (order.params.resolution, wire.resolution or one_size),
            "outputFormat": (order.params.output_format, wire.format),
            "steps": (order.params.steps, None),
            "seed": (order.params.seed, wire.seed),
            **{name: (value, wire.extra.get(name)) for name, value in order.params.extra.items()},
        }
        return tuple(name for name, (value, spelled) in values.items() if value is not None and not spelled)

    def _unknown_model(self, name: str) -> str:
        close = difflib.get_close_matches(_normalize_name(name)[:80], self._by_name, n=1)
        hint = f' Did you mean "{self._by_name[close[0]].name}"?' if close else ""
        return f"Unknown model {quote_text(name)}.{hint} Accepted: {', '.join(model.name for model in self.models)}."


def quote_text(text: str) -> str:
    """Return foreign text for use in a sentence: short, on one line, harmless to a terminal."""
    return ascii(text[:64]) if not text.isprintable() else f'"{text[:64]}"'


def _normalize_name(name: str) -> str:
    """Return one spelling for `Nano Banana Pro`, `nano_banana_pro` and Google's `models/…`."""
    return name.strip().lower().removeprefix("models/").replace(" ", "-").replace("_", "-")


def _expand(
    model: dict[str, Any], tables: Mapping[str, dict[str, Any]], sizes: Mapping[str, dict[str, Any]]
) -> dict[str, Any]:
    """Write out a model's abbreviated aliases and image sizes, and add the providers that serve it."""
    served = {name: table["models"] for name, table in tables.items() if model["name"] in table.get("models", {})}
    family = {"image_sizes": sizes.get(model["image_sizes"])} if "image_sizes" in model else {}
    return (
        model
        | family
        | {
            "aliases": [{"name": alias} if isinstance(alias, str) else alias for alias in model["aliases"]],
            "providers": {name: _per_mode(models[model["name"]]) for name, models in served.items()},
        }
    )


def _per_mode(table: dict[str, Any]) -> dict[str, Any]:
    """Return each mode's table: the shared values and its own. Without a table for any mode, all modes are served."""
    shared = {key: value for key, value in table.items() if key not in MODES}
    named = {mode: table[mode] for mode in MODES if mode in table} or {mode: {} for mode in MODES}
    return {mode: shared | own for mode, own in named.items()}


def _index(models: Sequence[Model]) -> dict[str, Model]:
    found: dict[str, Model] = {}
    for model in models:
        for name in model.names:
            if found.setdefault(_normalize_name(name), model) is not model:
                raise ValueError(f"catalog: {name} names both {found[_normalize_name(name)].name} and {model.name}")
    return found


def _check_model(model: Model, names: Mapping[str, Model], terms: Mapping[str, ProviderTerms]) -> None:
    """Check the successor and each provider's spelling of what the model promises; an order would fail otherwise."""
    has_successor = model.instead is not None and _normalize_name(model.instead) in names
    if (model.deprecated_on or model.shutdown_on) and not has_successor:
        raise ValueError(f"catalog: {model.name} has a date: instead must name a model to move to")
    for provider, mode, wire in ((name, *item) for name, wires in model.providers.items() for item in wires.items()):
        where = f"catalog: {model.name}, {provider}, {mode}"
        if wire.prices and terms[provider].unit is None:
            raise ValueError(f"{where}: unit must say what the prices are")
        if wire.format and not (wire.formats and set(wire.formats) <= set(model.output_formats)):
            raise ValueError(f"{where}: formats must spell some of {', '.join(model.output_formats)}")
        if not set(wire.aspect_ratios) | set(wire.ratios) <= set(model.aspect_ratios):
            raise ValueError(f"{where}: aspect ratios are {', '.join(model.aspect_ratios)}")
        if not set(wire.resolutions) <= set(model.resolutions):
            raise ValueError(f"{where}: resolutions are {', '.join(model.resolutions)}")
        if wire.token_prices and set(wire.token_prices) != set(get_args(TokenKind)):
            raise ValueError(f"{where}: token_prices need a price of {', '.join(get_args(TokenKind))}")
        if not set(wire.prices) <= set(model.resolutions):
            raise ValueError(f"{where}: prices are for {', '.join(model.resolutions)}")
        if mode == "image-to-image" and not wire.references:
            raise ValueError(f"{where}: references must name the field of the images")
