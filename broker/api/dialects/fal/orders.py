"""Orders of fal's clients: an app, its input, the query and the headers → a durable order."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from starlette.requests import Request

from broker.api.dialects.fal.apps import ModelApp, find_app
from broker.api.dialects.fal.schemas import SPELLING, FalInput
from broker.api.dialects.fal.targets import FalTarget
from broker.api.http.addresses import own_base_url
from broker.api.http.request_body import MAX_JSON_BYTES, read_json_model
from broker.api.shared.held_answers import HeldAnswers, PlacedOrder
from broker.catalog import Catalog
from broker.notifications.formats import ORIGIN_KEY
from broker.notifications.formats.fal import BASE_KEY
from broker.orders import DEFAULT_PRIORITY

WEBHOOK: Final = "fal_webhook"
PRIORITY: Final = "x-fal-queue-priority"
APP_KEY: Final = "app"
"""Key in the origin of an order: the app, without its sub-path."""
INLINE_KEY: Final = "sync_mode"
"""Key in the origin of an order: its images are wanted as data URIs."""
START_TIMEOUT: Final = "x-fal-request-timeout"
_IGNORED_HEADERS: Final = ("x-fal-no-retry", "x-fal-runner-hint", "x-fal-object-lifecycle-preference")


@dataclass(frozen=True, kw_only=True)
class FalOrder:
    """A durable order of an app, without the images of its request."""

    placed: PlacedOrder
    app: ModelApp
    is_inline: bool
    """The images are wanted as data URIs."""


@dataclass(frozen=True, kw_only=True)
class FalOrders:
    held: HeldAnswers
    catalog: Catalog
    public_base: Callable[[], str | None]
    """Our public URL; None without one."""

    def base_for(self, request: Request) -> str:
        """Return where the client of a request reaches us, without a trailing slash."""
        return own_base_url(request, self.public_base())

    async def place(self, request: Request, target: FalTarget, *, is_held: bool) -> FalOrder:
        """Make the order in a request durable. Raises `ApiError`; then nothing was ordered."""
        app = find_app(target.app, self.catalog)
        parsed = await read_json_model(request, MAX_JSON_BYTES, FalInput)
        webhook = target.query.get(WEBHOOK) or None
        priority = "low" if request.headers.get(PRIORITY) == "low" else DEFAULT_PRIORITY
        order = parsed.to_order(app, callback_url=webhook, priority=priority, origin=self._origin(request, app, parsed))
        placed = await self.held.place(
            request, order, is_held=is_held, ignored=_ignored(request, parsed, is_held=is_held), spelling=SPELLING
        )
        return FalOrder(placed=placed, app=app, is_inline=bool(parsed.sync_mode))

    def _origin(self, request: Request, app: ModelApp, parsed: FalInput) -> dict[str, object]:
        return {
            "dialect": "fal",
            APP_KEY: app.name,
            INLINE_KEY: bool(parsed.sync_mode),
            BASE_KEY: self.base_for(request),
            ORIGIN_KEY: "fal",
        }


def start_timeout(request: Request) -> float | None:
    """Return how many seconds a request may wait before it starts; None without a limit that is a plain number."""
    text = request.headers.get(START_TIMEOUT, "")
    return float(text) if re.fullmatch(r"[0-9]{1,6}(\.[0-9]{1,6})?", text) else None


def _ignored(request: Request, parsed: FalInput, *, is_held: bool) -> list[str]:
    """Return the fields and headers without an effect. A request in the queue is canceled by its client alone."""
    names = _IGNORED_HEADERS if is_held else (START_TIMEOUT, *_IGNORED_HEADERS)
    headers = [name for name in names if name in request.headers]
    return [*(parsed.model_extra or ()), *headers]
