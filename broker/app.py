"""The HTTP application: every dialect and middleware on one screen."""

from __future__ import annotations

import platform
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from functools import cached_property, partial
from importlib import metadata
from typing import Any, Final

from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from broker.api.accel import AccelRedirects
from broker.api.accounts.api_keys import ApiKeyRoutes
from broker.api.accounts.logins import LoginRoutes
from broker.api.accounts.me import MeRoutes
from broker.api.accounts.own_data import OwnDataRoutes
from broker.api.accounts.provider_keys import ProviderKeyRoutes
from broker.api.accounts.users import UserRoutes
from broker.api.admin.attempts import AttemptRoutes
from broker.api.admin.callbacks import CallbackInboxRoutes
from broker.api.admin.costs import CostRoutes
from broker.api.admin.deliveries import DeliveryRoutes
from broker.api.admin.providers import ProviderRoutes
from broker.api.admin.visibility import VisibilityReader
from broker.api.callbacks import CallbackRoutes
from broker.api.dialects.banana_service import banana_service_dialect
from broker.api.dialects.chat_service import chat_service_dialect
from broker.api.dialects.fal import fal_dialect
from broker.api.dialects.gemini import gemini_dialect
from broker.api.dialects.image_service import image_service_dialect
from broker.api.dialects.kie import kie_dialect
from broker.api.dialects.openai import openai_dialect
from broker.api.dialects.replicate import replicate_dialect
from broker.api.docs import DocsRoutes
from broker.api.health import HealthRoutes
from broker.api.http.auth import Authenticator
from broker.api.http.endpoint import Dialect, Endpoint, EndpointRoute, EndpointRouter, build_routes
from broker.api.http.errors import ErrorRenderer
from broker.api.http.middleware import EndpointApp, RequestMiddleware, complete_headers
from broker.api.http.request_body import max_form_bytes
from broker.api.http.responses import ErrorResponse, error_response
from broker.api.images import ImageRoutes
from broker.api.models import ModelRoutes
from broker.api.native.completed_tasks import CompletedTasks
from broker.api.native.ready_polls import Headers, ReadyPollMiddleware, ReadyPolls
from broker.api.native.routes import batch_endpoints, task_endpoints
from broker.api.native.task_cache import TaskCache
from broker.api.native.tasks import TaskRoutes
from broker.api.root import RootRoutes
from broker.api.shared.dialect import shared_dialect
from broker.i18n import Messages
from broker.monitoring.cost_sums import CostSums
from broker.services import Services
from broker.tasks.provider_admin import ProviderAdmin
from webhooks.tokens import ChallengeResponse

_CORS_METHODS: Final = ("GET", "POST", "PUT", "PATCH", "DELETE")
_CORS_REQUEST_HEADERS: Final = (
    *"Authorization Idempotency-Key If-None-Match Last-Event-ID Cache-Control X-Request-ID Prefer".split(),
    *"X-Goog-Api-Key X-Goog-Api-Client X-Server-Timeout OpenAI-Organization OpenAI-Project OpenAI-Beta".split(),
    *(f"X-Stainless-{name}" for name in "Lang Package-Version OS Arch Runtime Runtime-Version".split()),
    *(f"X-Fal-{name}" for name in "Target-Url Queue-Priority Runner-Hint Request-Timeout".split()),
    *("X-Fal-Object-Lifecycle", "X-Fal-Object-Lifecycle-Preference"),
    *(f"X-Goog-Upload-{name}" for name in "Protocol Command Offset File-Name".split()),
    *(f"X-Goog-Upload-Header-Content-{name}" for name in ("Length", "Type")),
    *(f"X-Stainless-{name}" for name in "Retry-Count Timeout Read-Timeout Async Helper-Method".split()),
)
"""Beside those that browsers always allow: what the SDKs of the dialects send from a page."""
_CORS_RESPONSE_HEADERS: Final = (
    *("ETag", "Retry-After", "Location", "Warning", "X-Request-ID"),
    *("X-Should-Retry", "X-Ignored", "X-Delivered-Size", "Preference-Applied"),
    *(f"X-Goog-Upload-{name}" for name in ("URL", "Status", "Size-Received")),
    *("X-Fal-Request-Id", "X-Fal-Error-Type", "X-Fal-Retryable", "X-Fal-Request-Timeout-Type"),
)


DIALECTS: Final[tuple[Callable[[Services], Dialect], ...]] = (
    banana_service_dialect,
    chat_service_dialect,
    kie_dialect,
    image_service_dialect,
    gemini_dialect,
    openai_dialect,
    fal_dialect,
    replicate_dialect,
)
"""Factories of the dialects of other APIs, mounted after the native one."""


class _Application(Starlette):
    """Starlette without the layers of its own that route and handle errors: `EndpointApp` does."""

    def __init__(
        self, routes: Sequence[EndpointRoute], middleware: Sequence[Middleware], errors: ErrorRenderer
    ) -> None:
        super().__init__(routes=routes, middleware=middleware)
        self._endpoints = EndpointApp(EndpointRouter(routes), errors)

    def __call__(self, scope: Scope, receive: Receive, send: Send) -> Awaitable[None]:  # type: ignore[override]
        return self._stack(scope, receive, send)  # without a frame of ours

    @cached_property
    def _stack(self) -> ASGIApp:
        return self.build_middleware_stack()

    def build_middleware_stack(self) -> ASGIApp:
        app: ASGIApp = self._endpoints
        for middleware in reversed(self.user_middleware):
            app = middleware.cls(app, *middleware.args, **middleware.kwargs)
        return app


def build_app(services: Services) -> Starlette:
    """Return the HTTP side of an opened system."""
    version = metadata.version("nano-banana-broker")
    services.metrics.build.info({"version": version, "python": platform.python_version()})
    docs = DocsRoutes(version=version)
    cache = TaskCache(
        clock=services.clock,
        queries=services.queries,
        eta=services.eta,
        presenter=services.presenter,
        completed=CompletedTasks(database=services.database, presenter=services.presenter),
        changes=services.task_changes,
    )
    native = native_dialect(services, docs, cache, version)
    dialects = [native, *(make(services) for make in (*DIALECTS, *services.extra_dialects))]
    dialects.append(shared_dialect(services, dialects))
    docs.dialects = dialects
    errors, polls = ErrorRenderer(dialects, services.metrics), ready_polls(services, cache)
    app = _Application(
        routes=build_routes(dialects),
        middleware=[
            Middleware(ReadyPollMiddleware, polls=polls),
            Middleware(RequestMiddleware, metrics=services.metrics),
            *_cors_middleware(services.settings.cors_origins),
        ],
        errors=errors,
    )
    app.state.dialects = dialects
    app.state.ready_polls = polls
    return app


def native_dialect(services: Services, docs: DocsRoutes, cache: TaskCache, version: str) -> Dialect:
    """Return the native dialect; its endpoints are matched in this order."""
    clock, queries, messages = services.clock, services.queries, services.presenter.messages
    visibility = VisibilityReader(owners=services.tables.owners)
    models = ModelRoutes(
        clock=clock,
        catalog=services.catalog,
        provider_names=tuple(services.providers),
        supports=services.supports,
        apis=frozenset(provider.api_name for provider in services.providers.values()),
        max_file_size_bytes=services.settings.max_file_size,
    )
    images = ImageRoutes(
        clock=clock,
        images=services.tables.images,
        blobs=services.blobs,
        accel=AccelRedirects(blobs=services.blobs, prefix=services.settings.accel_prefix.get_secret_value()),
        queries=queries,
        thumbnails=services.thumbnails,
        presenter=services.presenter,
    )
    health = HealthRoutes(
        clock=clock,
        cluster_state=services.tables.cluster_state,
        blobs=services.blobs,
        queries=queries,
        worker=services.worker,
        collector=services.collector,
        messages=messages,
        version=version,
    )
    return Dialect(
        name="native",
        authenticate=Authenticator.from_services(services).authenticate,
        render_error=partial(error_response, messages),
        error_model=ErrorResponse,
        endpoints=[
            *_task_endpoints(services, cache, messages, visibility),
            *models.endpoints(),
            *_callback_routes(services, messages).endpoints(),
            *images.endpoints(),
            *_operator_endpoints(services, visibility),
            *_account_endpoints(services),
            *RootRoutes.load(messages, pretend_pictures=services.settings.sandboxed).endpoints(),
            *health.endpoints(),
            *docs.endpoints(),
        ],
    )


def _task_endpoints(
    services: Services, cache: TaskCache, messages: Messages, visibility: VisibilityReader
) -> list[Endpoint]:
    tasks = TaskRoutes(
        orders=services.orders,
        queries=services.queries,
        canceler=services.canceler,
        deleter=services.deleter,
        pins=services.pins,
        catalog=services.catalog,
        cache=cache,
        visibility=visibility,
        messages=messages,
        max_form_bytes=max_form_bytes(services.catalog, services.settings.max_file_size),
    )
    return [*task_endpoints(tasks), *batch_endpoints(tasks)]


def _account_endpoints(services: Services) -> list[Endpoint]:
    users, logins, delete_user = services.users, services.logins, services.account_deleter.delete_user
    return [
        *LoginRoutes(users=users, logins=logins).endpoints(),
        *MeRoutes(users=users, logins=logins, quotas=services.quotas, delete_user=delete_user).endpoints(),
        *OwnDataRoutes(exporter=services.account_exporter, signing_keys=services.signing_keys).endpoints(),
        *UserRoutes(users=users, delete_user=delete_user).endpoints(),
        *ApiKeyRoutes(
            keys=services.key_service, users=users, delete_owner=services.account_deleter.delete_owner
        ).endpoints(),
        *ProviderKeyRoutes(service=services.provider_keys, own_keys=services.own_keys).endpoints(),
    ]


def _operator_endpoints(services: Services, visibility: VisibilityReader) -> list[Endpoint]:
    unit_of = services.presenter.unit_of
    inbox = CallbackInboxRoutes(inbox=services.inbox, callbacks=services.tables.callbacks, visibility=visibility)
    costs = CostRoutes(
        clock=services.clock,
        sums=CostSums(ledger=services.tables.ledger, clock=services.clock),
        owners=services.tables.owners,
        budget=services.budget,
        unit_of=unit_of,
    )
    deliveries = DeliveryRoutes(clock=services.clock, deliveries=services.tables.deliveries, visibility=visibility)
    attempts = AttemptRoutes(queries=services.queries, attempts=services.tables.attempts, unit_of=unit_of)
    providers = ProviderAdmin(
        clock=services.clock,
        tables=services.tables,
        router=services.router,
        balances=services.balances,
        registry=services.registry,
    )
    parts = (inbox, costs, deliveries, attempts, ProviderRoutes(providers=providers))
    return [endpoint for part in parts for endpoint in part.endpoints()]


def _callback_routes(services: Services, messages: Messages) -> CallbackRoutes:
    return CallbackRoutes(
        paths={provider.api_name: provider.callback_path for provider in services.registry.adapters.values()},
        clock=services.clock,
        receiver=services.receiver,
        challenge=ChallengeResponse(services.tokens.secret),
        metrics=services.metrics,
        messages=messages,
    )


def ready_polls(services: Services, cache: TaskCache) -> ReadyPolls:
    """Return what a server may ask for the response to a poll before it calls the application."""
    origins = services.settings.cors_origins
    return ReadyPolls(
        cache=cache,
        requests=services.metrics.requests,
        origins=frozenset(origin.encode() for origin in origins),
        complete=partial(_complete_response, _cors_middleware(origins)),
    )


async def _receive_nothing() -> Message:
    return {"type": "http.disconnect"}


def _complete_response(cors: Sequence[Middleware], response: Response, origin: bytes | None) -> Headers:
    """Return the headers of a response to a GET request with this Origin as the middlewares complete it."""
    app: ASGIApp = response
    for middleware in cors:
        app = middleware.cls(app, *middleware.args, **middleware.kwargs)
    headers = [] if origin is None else [(b"origin", origin)]
    started: list[Message] = []

    async def send(message: Message) -> None:
        started.append(message)

    call: Any = app({"type": "http", "method": "GET", "headers": headers}, _receive_nothing, send)
    with suppress(StopIteration):
        call.send(None)  # nothing in between waits for anything
    return complete_headers(started[0]["headers"])


def _cors_middleware(origins: tuple[str, ...]) -> list[Middleware]:
    """Allow exact origins only, without cookies."""
    if not origins:
        return []
    return [
        Middleware(
            CORSMiddleware,
            allow_origins=origins,
            allow_methods=_CORS_METHODS,
            allow_headers=_CORS_REQUEST_HEADERS,
            expose_headers=_CORS_RESPONSE_HEADERS,
        )
    ]
