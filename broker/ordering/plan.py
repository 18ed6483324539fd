"""Planning: validates an order request against the catalog and the providers.

Every error of a request is reported, not only the first.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Final

from broker.catalog import MODES, Catalog, Model, quote_text
from broker.clock import Clock, day
from broker.errors import ApiError, EgressBlocked, FieldError
from broker.net.fetcher import Fetcher
from broker.ordering.appraisals import Appraiser, PriceTable
from broker.ordering.drafts import draft_task
from broker.ordering.known_plans import KnownPlan, KnownPlans, shape_of
from broker.ordering.routing import OrderRouter
from broker.orders import PRIORITIES, ImageParams, Order, OrderRequest, Plan, Route
from broker.providers.base import Provider
from broker.tasks.accounts.pools import ProviderAccounts
from storage.ids import is_own_account, provider_of
from storage.limits.budgets import day_of
from storage.sql.scope import is_private

MAX_IMAGES: Final = 10
"""Of one order, in the dialect that has most; the others have limits of their own."""
MAX_CALLBACK_URL_CHARACTERS: Final = 2048
_NO_TEXT: Final = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff]")
"""Control characters that do not occur in text, and halves of surrogate pairs."""

_Errors = Iterator[tuple[str, FieldError]]
"""Error codes with the field and the sentence."""


@dataclass(frozen=True, kw_only=True)
class Planner:
    """Makes the plan of an order request."""

    clock: Clock
    catalog: Catalog
    accounts: ProviderAccounts
    appraiser: Appraiser
    routing: OrderRouter
    prices: PriceTable
    known: KnownPlans = field(default_factory=KnownPlans)
    caller_fetcher: Fetcher
    """With the rules on which addresses of callers may be called."""

    async def make_plan(self, owner: str, request: OrderRequest, *, reserved: Mapping[str, int] | None = None) -> Plan:
        """Return the plan of a request of an owner. Raises `ApiError` for a field that is wrong.

        reserved: see `OrderRouter.find_routes`.
        """
        usable = await self.accounts.find_usable(owner)
        shape = shape_of(request) if reserved is None and self._reads_nothing(owner, usable) else None
        if shape is None or not self._fits_everywhere(request.params.prompt):
            return await self._make_plan(owner, request, usable, reserved)
        limits, on = await self.routing.router.read_limits(), day_of(self.clock.now())
        plan = self.known.find(shape, request, limits, on)
        if plan is None:
            plan = await self._make_plan(owner, request, usable, reserved)
            self.known.add(shape, KnownPlan(plan=plan, limits=limits, on=on))
        return plan

    def _reads_nothing(self, owner: str, usable: Collection[str]) -> bool:
        """Return whether a plan depends on nothing but limits of the operator's accounts."""
        if any(map(is_own_account, usable)):
            return False
        return len(usable) == 1 or (self.routing.budget.limit_usd is None and not is_private(owner))

    def _fits_everywhere(self, prompt: str) -> bool:
        """Return whether every provider takes a prompt, so that it makes no difference."""
        if len(prompt) > self.catalog.shortest_prompt_limit:
            return False
        is_plain = prompt.isprintable() and prompt.strip()  # one line of usual text, a tenth of the time of the rules
        return bool(is_plain) or not any(True for _ in _prompt_errors(prompt, self.catalog.default))

    async def _make_plan(
        self, owner: str, request: OrderRequest, usable: Mapping[str, Provider], reserved: Mapping[str, int] | None
    ) -> Plan:
        if not 1 <= request.count <= MAX_IMAGES:
            raise ApiError("invalid_request", f"numberOfImages must be from 1 to {MAX_IMAGES}.", field="numberOfImages")
        if request.priority not in PRIORITIES:
            raise ApiError(
                "unsupported_parameter",
                f"Unknown priority {quote_text(request.priority)}. Accepted: {', '.join(PRIORITIES)}.",
                field="priority",
            )
        order = validate_params(self.catalog, request.params, mode=request.mode, references=len(request.sources))
        if request.turns or request.priority != order.priority:
            order = replace(order, priority=request.priority, turns=request.turns)
        appraisals = {
            account: self.appraiser.appraise(provider, order, len(request.sources))
            for account, provider in usable.items()
        }
        routes = await self.routing.find_routes(
            owner, order, appraisals, count=request.count, pinned=request.provider, reserved=reserved
        )
        candidates = {route.provider: appraisals[route.provider] for route in routes if route.is_candidate}
        names = tuple(candidates)
        return Plan(
            order=order,
            candidates=names,
            routes=routes,
            roles=tuple((provider_of(route.provider), _role_of(route, names)) for route in routes),
            draft=draft_task(request, order, names, routes),
            quote=self.prices.make_quote(candidates, request.count),
            warnings=self.catalog.warnings(request.params.model or None, day(self.clock.now())),
            ignored=next(iter(candidates.values())).ignored,
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


def _role_of(route: Route, candidates: Sequence[str]) -> str:
    if route.provider == candidates[0]:
        return "first"
    return "other" if route.is_candidate else "excluded"


def validate_params(catalog: Catalog, params: ImageParams, *, mode: str | None, references: int) -> Order:
    """Return the order of a request, without its references; an empty optional value counts as absent.

    references: number of reference images. Raises one `ApiError` with all errors in `details`; code, message and field
    are those of the first one.
    """
    model, model_errors = _resolve_model(catalog, params.model)
    output_format = params.output_format or None
    params = replace(
        params,
        model=model.name,
        aspect_ratio=params.aspect_ratio or None,
        resolution=params.resolution.upper() if params.resolution else None,
        output_format="jpg" if output_format == "jpeg" else output_format,
    )
    errors = [
        *_prompt_errors(params.prompt, model),
        *model_errors,
        *_reference_errors(mode or None, references, model),
        *_choice_errors(params, model),
    ]
    if errors:
        code, first = errors[0]
        raise ApiError(code, first.message, field=first.field, details=[error for _, error in errors])
    return Order(params=params, mode="image-to-image" if references else "text-to-image")


def _resolve_model(catalog: Catalog, name: str) -> tuple[Model, Sequence[tuple[str, FieldError]]]:
    """Return the model, or the default one with an error, so that the rest of the request is validated too."""
    try:
        return catalog.resolve(name), ()
    except ApiError as error:
        return catalog.default, ((error.code, FieldError(field="model", message=error.message)),)


def _prompt_errors(prompt: str, model: Model) -> _Errors:
    """Length counts characters, not bytes; invisible characters alone are not a prompt."""
    if not any(char.isprintable() and not char.isspace() for char in prompt):
        yield _error("invalid_prompt", "prompt", "The prompt is empty: say what the image should show.")
    if len(prompt) > model.prompt_limit:
        text = f"The prompt has {len(prompt)} characters; {model.name} takes at most {model.prompt_limit}."
        yield _error("invalid_prompt", "prompt", text)
    if invalid := _NO_TEXT.search(prompt):
        text = f"The prompt has a character that no text has (U+{ord(invalid[0]):04X}): remove it."
        yield _error("invalid_prompt", "prompt", text)


def _reference_errors(mode: str | None, references: int, model: Model) -> _Errors:
    if mode is not None and mode not in MODES:
        text = f"Unknown mode {quote_text(mode)}. Accepted: {', '.join(MODES)}."
        yield _error("unsupported_parameter", "mode", text)
    if mode == "image-to-image" and not references:
        yield _error("invalid_request", "image", "image-to-image needs at least one image: add one.")
    if mode == "text-to-image" and references:
        text = "text-to-image takes no images: leave them out, or set mode to image-to-image."
        yield _error("invalid_request", "mode", text)
    if references > model.max_references:
        text = f"{references} images are too many; {model.name} takes at most {model.max_references}."
        yield _error("too_many_images", "image", text)


def _choice_errors(params: ImageParams, model: Model) -> _Errors:
    choices: Mapping[str, tuple[str | None, Sequence[str]]] = {
        "aspectRatio": (params.aspect_ratio, model.aspect_ratios),
        "resolution": (params.resolution, model.resolutions),
        "outputFormat": (params.output_format, model.output_formats),
    }
    for name, (value, accepted) in choices.items():
        if value is not None and value not in accepted:
            text = f"{model.name} has no {name} {quote_text(value)}. Accepted: {', '.join(accepted)}."
            yield _error("unsupported_parameter", name, text)


def _error(code: str, name: str, message: str) -> tuple[str, FieldError]:
    return code, FieldError(field=name, message=message)
