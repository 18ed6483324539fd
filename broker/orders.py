"""Values of an order: what a caller requested, and what is ordered from a provider."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Final, Literal

Mode = Literal["text-to-image", "image-to-image"]
OutputFormat = Literal["png", "jpg"]
RoutePolicy = Literal["order", "price"]
Qualifier = Literal["exact", "estimate"]

USD_DIGITS: Final = 6
"""Digits after the point of an amount in USD."""

PRIORITIES: Final = ("low", "normal", "high")
"""In ascending order; a task stores the index."""
DEFAULT_PRIORITY: Final = "normal"

_COLUMNS: Final = ("prompt", "model", "aspect_ratio", "resolution")
_STORED_TOGETHER: Final = ("output_format", "steps", "seed")


@dataclass(frozen=True, kw_only=True)
class ImageParams:
    """The parameters of one image: as a caller sent them in a request, validated in an order.

    A parameter of one dialect or provider goes into `extra`: the dialect sets it, and the catalog says how a provider
    spells it. Storage, planning and idempotency pass it on unread.
    """

    prompt: str
    model: str = ""
    """A canonical name of the catalog in an order; in a request also an alias, or empty for the default."""
    aspect_ratio: str | None = None
    """None: the model's default."""
    resolution: str | None = None
    """None: the model's default."""
    output_format: str | None = None
    steps: int | None = None
    seed: int | None = None
    extra: Mapping[str, Any] = field(default_factory=dict)
    """Other parameters by name; JSON values."""

    def to_columns(self) -> dict[str, Any]:
        """Return the columns of a task: those that are queried, and the others in one mapping."""
        values = vars(self)
        others = {**self.extra, **{name: values[name] for name in _STORED_TOGETHER}}
        params = {name: value for name, value in others.items() if value is not None}
        return {**{name: values[name] for name in _COLUMNS}, "params": params}

    @classmethod
    def from_columns(cls, columns: Mapping[str, Any]) -> ImageParams:
        """Return the parameters in the columns of a task."""
        params = dict(columns["params"])
        together = {name: params.pop(name, None) for name in _STORED_TOGETHER}
        return cls(**{name: columns[name] for name in _COLUMNS}, **together, extra=params)


@dataclass(frozen=True, kw_only=True)
class TurnPart:
    """A text or an image of a turn, and the signature that its provider needs to get back with it."""

    text: str | None = None
    reference: int | None = None
    """Position of the image among the references of the order."""
    signature: str | None = None
    """Byte for byte as the provider wrote it."""
    output: str | None = None
    """Of an image that an earlier task made: what stands for it in `Turn.content`."""
    is_past: bool = False
    """True for an image that only a provider with a history gets, because a later image shows more."""


@dataclass(frozen=True, kw_only=True)
class Turn:
    """One turn of a conversation."""

    role: Literal["user", "model"]
    parts: tuple[TurnPart, ...]
    task: str | None = None
    """Id of the earlier task whose model made this turn; None for a turn that the caller wrote out."""
    content: str | None = field(default=None, repr=False)
    """The same turn as `Finished.turn` had it, for an order at the provider that wrote it; read from the earlier task,
    and not stored again."""

    def to_column(self) -> dict[str, Any]:
        """Return the entry of this turn in a task."""
        parts = [
            {name: value for name, value in vars(part).items() if value is not None and value is not False}
            for part in self.parts
        ]
        return {"role": self.role, "parts": parts} | ({"task": self.task} if self.task else {})

    @classmethod
    def from_column(cls, column: Mapping[str, Any]) -> Turn:
        parts = tuple(TurnPart(**part) for part in column["parts"])
        return cls(role=column["role"], parts=parts, task=column.get("task"))


@dataclass(frozen=True, kw_only=True)
class Reference:
    """A stored reference image, as a provider can use it."""

    name: str
    media_type: str
    size: int
    """Bytes."""
    sha256: str
    """Lower-case hex."""
    url: str | None
    """Where a provider can download it; None without a public URL."""
    read: Callable[[], AsyncIterator[bytes]]
    """Streams its bytes."""
    is_uploaded: bool = False
    """True if `url` leads to the provider's own store."""


@dataclass(frozen=True, kw_only=True)
class Order:
    """The validated order for one image."""

    params: ImageParams
    mode: Mode
    references: tuple[Reference, ...] = ()
    turns: tuple[Turn, ...] = ()
    """The whole conversation, its last turn included, for providers that keep a history; empty without one."""
    priority: str = DEFAULT_PRIORITY
    """A provider may have a cheaper and slower way for `low`."""

    @property
    def past_positions(self) -> frozenset[int]:
        """Positions of the references that only a provider with a history gets."""
        parts = (part for turn in self.turns for part in turn.parts)
        return frozenset(part.reference for part in parts if part.reference is not None and part.is_past)

    def without_history(self) -> Order:
        """Return the order for a provider without a history: the prompt, and the images that are not past."""
        if not self.turns:
            return self
        past = self.past_positions
        kept = tuple(reference for position, reference in enumerate(self.references) if position not in past)
        return replace(self, references=kept, turns=())


@dataclass(frozen=True, kw_only=True)
class UploadedReference:
    """A reference image sent as a file with the request."""

    chunks: AsyncIterator[bytes]
    """Can be read more than once, from the beginning each time."""


@dataclass(frozen=True, kw_only=True)
class DataUriReference:
    """A reference image written into the request; or the path of one of ours."""

    text: str


@dataclass(frozen=True, kw_only=True)
class UrlReference:
    """A reference image at an address: to be downloaded, or one of ours (`broker.ordering.own_images`)."""

    url: str


@dataclass(frozen=True, kw_only=True)
class StoredReference:
    """A reference image that we have: of an earlier order, or an uploaded file."""

    blob: str
    """Its name in the blob store."""
    sha256: str
    """Lower-case hex."""
    address: str | None = None
    """Our address of it, if the caller sent that."""


ReferenceSource = UploadedReference | DataUriReference | UrlReference | StoredReference


@dataclass(frozen=True, kw_only=True)
class OrderRequest:
    """A caller's request in any dialect, before it is validated against the catalog."""

    params: ImageParams
    mode: str | None = None
    count: int = 1
    """Number of images."""
    host: str | None = None
    """The host, with its port, by which the caller reached us: addresses there are ours."""
    sources: tuple[ReferenceSource, ...] = ()
    turns: tuple[Turn, ...] = ()
    """The conversation that the order continues, as in `Order`."""
    conversation: str | None = None
    """Which stored conversation it continues, and after which turn: equal requests are equal in this too."""
    origin: Mapping[str, Any] = field(default_factory=dict)
    """What the dialect keeps about the request, to answer in its own terms later; JSON values, no image data."""
    provider: str | None = None
    """The only provider that may get the order; None for any."""
    priority: str = DEFAULT_PRIORITY
    """Among the caller's own orders."""
    callback_url: str | None = field(default=None, repr=False)
    """Where the caller receives a webhook at the end."""
    idempotency_key: str | None = None
    """Identifies a repeated request as the same one."""
    retry_count: int | None = None
    """How many times the client says it has sent this request before; None if it does not count."""
    retry_seconds: float | None = None
    """For how long after an answer that was cut off an equal request gets the same order. None: the end of the answer
    is not recorded, unless the client counts."""

    @property
    def is_identified(self) -> bool:
        """Return whether an equal request may have been made before, and is to be looked for."""
        return self.idempotency_key is not None or self.retry_count is not None or self.retry_seconds is not None


@dataclass(frozen=True, kw_only=True)
class Quote:
    """The price of a request, by the catalog: what the first candidate charges, and the most it can cost."""

    price: float | None
    """Of one image at the first candidate, in its unit; None if unknown."""
    count: int
    unit: str | None
    usd_price: float | None
    """The same in USD."""
    max_usd_price: float | None
    """The most that one image can cost, by the price tables of all candidates; None if one is unknown."""
    max_house_usd: float | None
    """The most of it that the operator pays: without candidates that are accounts of the owner's own. It is what
    budgets and quotas count."""
    is_metered: bool = False
    """True if a candidate charges by use: its price is that of a usual image, and has no upper bound."""
    deadline_seconds: float | None = None
    """Longest time that one of the candidates may take, where that is longer than usual."""

    @property
    def total(self) -> float | None:
        return None if self.price is None else self.price * self.count

    @property
    def usd(self) -> float | None:
        return self._in_all(self.usd_price)

    @property
    def upper_bound_usd(self) -> float | None:
        return None if self.is_metered else self._in_all(self.max_usd_price)

    @property
    def qualifier(self) -> Qualifier:
        is_exact = self.usd_price is not None and self.usd_price == self.max_usd_price and not self.is_metered
        return "exact" if is_exact else "estimate"

    def _in_all(self, usd: float | None) -> float | None:
        return None if usd is None else round(usd * self.count, USD_DIGITS)


@dataclass(frozen=True, kw_only=True)
class Route:
    """One account at a provider, and whether it may get an order."""

    provider: str
    """Name of the account, as in tasks."""
    is_candidate: bool
    reason: str | None = None
    """A sentence why it is none, or why it is only tried after the others; None for the others."""

    def to_column(self) -> dict[str, Any]:
        """Return the entry of this route in the task."""
        return {"provider": self.provider, "candidate": self.is_candidate, "reason": self.reason}


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A validated request: what will be ordered, from which providers, and at what price. Made once per request."""

    order: Order
    """Without references: those are stored when the tasks are created."""
    candidates: tuple[str, ...]
    """Names of the accounts that can serve it, best first; at least one."""
    routes: tuple[Route, ...]
    """Every account that could: the candidates, in the same order, and then the others."""
    quote: Quote
    warnings: tuple[str, ...]
    ignored: tuple[str, ...]
    """Fields, as the native API spells them, that the first candidate cannot use."""
    roles: tuple[tuple[str, str], ...] = field(repr=False)
    """Provider and role of each route, for the metric of routes."""
    draft: Any = field(repr=False)
    """A task of storage, with the columns that the tasks of orders with other prompts have in common with it."""
