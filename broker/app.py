"""The HTTP application: every dialect and middleware on one screen."""

from __future__ import annotations

import platform
from functools import partial
from typing import Final

from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware

from broker.api.admin.callbacks import CallbackInboxRoutes, callback_inbox_endpoints
from broker.api.admin.deliveries import DeliveryRoutes, delivery_endpoints
from broker.api.callbacks import CallbackRoutes, callback_endpoints
from broker.api.docs import DocsRoutes, docs_endpoints
from broker.api.health import HealthRoutes, health_endpoints, installed_version
from broker.api.http.auth import Authenticator
from broker.api.http.endpoint import Dialect, build_routes
from broker.api.http.errors import ErrorRenderer
from broker.api.http.middleware import RequestLogMiddleware, SecurityHeadersMiddleware, UnhandledErrorMiddleware
from broker.api.http.responses import ErrorResponse, error_response
from broker.api.images import ImageRoutes, image_endpoints
from broker.api.models import ModelRoutes, model_endpoints
from broker.api.native.batches import BatchRoutes
from broker.api.native.routes import batch_endpoints, order_endpoints, task_endpoints
from broker.api.native.task_cache import TaskCache
from broker.api.native.tasks import TaskRoutes
from broker.repeats import Repeats
from broker.services import Services

_CORS_METHODS: Final = ("GET", "POST", "DELETE")
_CORS_REQUEST_HEADERS: Final = (
    "Authorization Idempotency-Key If-None-Match Last-Event-ID Cache-Control X-Request-ID".split()
)
_CORS_RESPONSE_HEADERS: Final = ("ETag", "Retry-After", "Location", "Warning", "X-Request-ID")


def build_app(services: Services) -> Starlette:
    """Return the HTTP side of an opened system."""
    version = installed_version()
    services.metrics.build.info({"version": version, "python": platform.python_version()})
    docs = DocsRoutes(version=version)
    native = native_dialect(services, docs, version)
    dialects = [native, *(make_dialect(services) for make_dialect in services.extra_dialects)]
    docs.dialects = dialects
    errors = ErrorRenderer(native, services.metrics)
    app = Starlette(
        routes=build_routes(dialects),
        middleware=[
            Middleware(RequestLogMiddleware, metrics=services.metrics),
            Middleware(SecurityHeadersMiddleware),
            *_cors_middleware(services.settings.cors_origins),
            Middleware(UnhandledErrorMiddleware, errors=errors),
        ],
        exception_handlers=errors.exception_handlers(),
        debug=False,
    )
    app.state.dialects = dialects
    app.router.redirect_slashes = False  # a redirect would be built from the Host of the request
    return app


def native_dialect(services: Services, docs: DocsRoutes, version: str) -> Dialect:
    """Return all endpoints of the native dialect, in the order in which they are matched."""
    broker, messages = services.broker, services.broker.presenter.messages
    cache = TaskCache(broker)
    tasks = TaskRoutes(broker=broker, cache=cache, messages=messages, repeats=Repeats(services.clock))
    health = HealthRoutes(
        broker=broker, worker=services.worker, collector=services.collector, messages=messages, version=version
    )
    return Dialect(
        name="native",
        authenticate=Authenticator(services.settings, broker.tokens.secret).authenticate,
        render_error=partial(error_response, messages),
        error_model=ErrorResponse,
        endpoints=[
            *order_endpoints(tasks),
            *task_endpoints(tasks),
            *batch_endpoints(BatchRoutes(broker=broker, cache=cache)),
            *model_endpoints(ModelRoutes(broker=broker)),
            *callback_endpoints(CallbackRoutes(broker=broker)),
            *image_endpoints(ImageRoutes(broker=broker)),
            *callback_inbox_endpoints(CallbackInboxRoutes(inbox=services.inbox)),
            *delivery_endpoints(DeliveryRoutes(broker=broker)),
            *health_endpoints(health),
            *docs_endpoints(docs),
        ],
    )


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
