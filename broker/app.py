"""Every door on one screen."""

from __future__ import annotations

import asyncio
import platform
from collections.abc import Awaitable, Callable
from typing import Any, Final

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from broker.api.access import Access
from broker.api.answers import GUARDS, answer, language, refused
from broker.api.batches import Batches
from broker.api.deliveries import DeliveryDoor
from broker.api.docs import Docs
from broker.api.hooks import Hooks
from broker.api.images import ImageDoor
from broker.api.inbox import InboxDoor
from broker.api.models import Models
from broker.api.native import Native, max_form_bytes
from broker.api.operations import Operations, installed_version
from broker.api.views import Views
from broker.errors import Refusal
from broker.logs import bare, log
from broker.metrics import Metrics
from broker.sentences import Sentences
from broker.services import Services
from storage.database import StorageError
from webhooks.tokens import ChallengeResponse

Door = Callable[[Request], Awaitable[Response]]

TRY_AGAIN: Final = "5"
_CODES: Final = {404: "not_found", 413: "payload_too_large"}
_SENTENCES: Final = {
    404: "There is nothing at this address.",
    405: "This address does not know that method.",
    413: "The request is too large: send less.",
}


def build_app(services: Services) -> Starlette:
    """The HTTP side of an opened system."""
    sentences = services.showing.sentences
    secret = services.tokens.secret
    access = Access(services.settings, secret)
    views = Views(clock=services.clock, queries=services.queries, eta=services.eta, showing=services.showing)
    native = Native(
        orders=services.orders,
        queries=services.queries,
        canceler=services.canceler,
        access=access,
        views=views,
        sentences=sentences,
        max_form_bytes=max_form_bytes(services.catalog, services.settings.max_file_size),
    )
    batches = Batches(queries=services.queries, canceler=services.canceler, access=access, views=views)
    hooks = Hooks(
        clock=services.clock,
        receiver=services.callbacks,
        challenge=ChallengeResponse(secret),
        metrics=services.metrics,
        sentences=sentences,
        access=access,
    )
    images = ImageDoor(
        clock=services.clock,
        images=services.images,
        blobs=services.blobs,
        queries=services.queries,
        thumbnails=services.thumbnails,
        showing=services.showing,
        access=access,
    )
    inbox = InboxDoor(inbox=services.inbox, access=access)
    deliveries = DeliveryDoor(log=services.delivery_log, access=access)
    version = installed_version()
    services.metrics.build.info({"version": version, "python": platform.python_version()})
    operations = Operations(
        clock=services.clock,
        database=services.database,
        blobs=services.blobs,
        queries=services.queries,
        worker=services.worker,
        collector=services.collector,
        access=access,
        sentences=sentences,
        version=version,
    )
    models = Models(
        clock=services.clock,
        catalog=services.catalog,
        provider_name=services.provider.name,
        supports=services.provider.supports,
        max_file_size=services.settings.max_file_size,
        access=access,
    )
    docs = Docs(access=access, version=version)
    routes = [
        _at("/api/task/{id}", GET=native.poll, DELETE=native.cancel),
        _at("/api/task/{id}/events", GET=native.events),
        _at("/api/task/{id}/retry", POST=native.retry),
        _at("/api/batch/{id}", GET=batches.poll, DELETE=batches.cancel),
        _at("/api/tasks", GET=native.listing),
        _at("/api/generate/image", POST=native.create),
        _at("/api/models", GET=models.listing),
        _at("/api/webhook/nano-banana", GET=hooks.greet, POST=hooks.hear),
        _at("/api/webhook/{provider}", GET=hooks.greet, POST=hooks.hear),
        _at("/uploads/images/{name}.json", GET=images.about_result),
        _at("/uploads/references/{name}.json", GET=images.about_reference),
        _at("/api/hooks", GET=inbox.listing),
        _at("/api/hooks/{id}", GET=inbox.show),
        _at("/api/hooks/{id}/replay", POST=inbox.replay),
        _at("/api/hooks/{id}/fixture", GET=inbox.fixture),
        _at("/api/deliveries", GET=deliveries.listing),
        _at("/api/deliveries/{id}", GET=deliveries.show),
        _at("/api/deliveries/{id}/replay", POST=deliveries.replay),
        _at("/uploads/images/{name}", GET=images.result),
        _at("/uploads/references/{name}", GET=images.reference),
        _at("/health", GET=operations.health),
        _at("/ready", GET=operations.ready),
        _at("/metrics", GET=operations.metrics),
        _at("/openapi.json", GET=docs.document),
        _at("/docs", GET=docs.page),
        _at("/docs/{file}", GET=docs.file),
    ]
    app = Starlette(
        routes=routes,
        middleware=[
            Middleware(Guarded),
            *_cors(services.settings.cors_origins),
            Middleware(LastResort, sentences=sentences),
        ],
        exception_handlers=_handlers(sentences, services.metrics),
        debug=False,
    )
    app.router.redirect_slashes = False  # a redirect would be built from whatever Host the request names
    return app


def _at(path: str, **doors: Door) -> Route:
    """One route per path, so that 405 names every method there is."""

    async def enter(request: Request) -> Response:
        return await doors["GET" if request.method == "HEAD" else request.method](request)

    return Route(path, enter, methods=list(doors), name=path)


def _cors(origins: tuple[str, ...]) -> list[Middleware]:
    """Exact origins only, and never with cookies, which we have none of."""
    if not origins:
        return []
    return [
        Middleware(
            CORSMiddleware,
            allow_origins=origins,
            allow_methods=("GET", "POST", "DELETE"),
            allow_headers=("Authorization", "Idempotency-Key", "If-None-Match", "Last-Event-ID", "Cache-Control"),
            expose_headers=("ETag", "Retry-After", "Location", "Warning"),
        )
    ]


def _handlers(sentences: Sentences, metrics: Metrics) -> Any:
    """What is raised becomes an answer of the one error shape."""

    async def refusal(request: Request, error: Refusal) -> Response:
        metrics.refusals.labels(error.code).inc()
        return refused(sentences, error, request, {})

    async def starlette(request: Request, error: HTTPException) -> Response:
        """Paths, methods and limits that Starlette itself refuses."""
        headers = dict(error.headers or {})
        if "Allow" in headers:
            headers["Allow"] = ", ".join(sorted(headers["Allow"].split(", ")))
        text = _SENTENCES.get(error.status_code, "The request cannot be understood.")
        refusal = Refusal(_CODES.get(error.status_code, "invalid_request"), text, status=error.status_code)
        return refused(sentences, refusal, request, headers)

    async def storage(request: Request, error: StorageError) -> Response:
        log.error("the store cannot be used", action="store_trouble", why=str(error))
        return _failure(sentences, request, 503)

    async def hung_up(request: Request, _: ClientDisconnect) -> Response:
        log.debug("a caller hung up", action="caller_gone", path=request.scope["path"])
        return Response(status_code=400)  # nobody reads it

    return {Refusal: refusal, HTTPException: starlette, StorageError: storage, ClientDisconnect: hung_up}


def _failure(sentences: Sentences, request: Request, status: int) -> Response:
    """Our own trouble, told without details; 503 passes, 500 may not.

    The closed set of codes has one for the store, and one for not knowing what became of a request.
    """
    passes = status == 503
    document = {
        "success": False,
        "error": sentences.say("unavailable" if passes else "unexpected", language(request)),
        "code": "storage_full" if passes else "unknown_outcome",
        "retryable": passes,
    }
    return answer(document, status, {"retry-after": TRY_AGAIN} if passes else {})


class Guarded:
    """`GUARDS` on every answer, whichever door gave it."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def sending(message: Message) -> None:
            if message["type"] == "http.response.start":
                said = {name for name, _ in message["headers"]}
                message["headers"] = [*message["headers"], *(one for one in GUARDS if one[0] not in said)]
            await send(message)

        await self._app(scope, receive, sending)


class LastResort:
    """Whatever nobody foresaw: logged once, answered blandly. Starlette's own would have uvicorn log it again."""

    def __init__(self, app: ASGIApp, sentences: Sentences) -> None:
        self._app = app
        self._sentences = sentences

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        begun = False

        async def sending(message: Message) -> None:
            nonlocal begun
            begun = True
            await send(message)

        try:
            await self._app(scope, receive, sending)
        except asyncio.CancelledError:  # we are stopping, and the time to drain is over
            log.warning("a request was cut off", action="request_cut_off")
            status = 503
        except Exception as error:
            log.error("a request failed unexpectedly", action="request_failed", exc_info=bare(error))
            status = 500
        else:
            return
        if not begun:
            await _failure(self._sentences, Request(scope), status)(scope, receive, send)
