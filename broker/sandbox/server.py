"""The server of a sandbox on a port, with the routes that all dialects have."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Any, Final

import anyio
import uvicorn
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route
from uvicorn.protocols.http.h11_impl import H11Protocol

from broker.sandbox.answers import json_response
from broker.sandbox.dialect import SandboxDialect
from broker.sandbox.dialects import DIALECTS
from broker.sandbox.engine import JobRunner, Options
from broker.sandbox.orders import RejectedRequest
from broker.sandbox.service import JobService

POLL_SECONDS: Final = 0.005
"""Between two looks for open connections when the server stops."""


@asynccontextmanager
async def serve_sandbox(host: str = "127.0.0.1", port: int = 0, options: Options | None = None) -> AsyncIterator[str]:
    """Serve for the duration of the context and yield the base URL. Port 0 takes any free one."""
    options = options or Options()
    dialect = DIALECTS[options.dialect]
    runner = JobRunner(options, dialect.faults, dialect.callbacks(options))
    with _bind_socket(host, port) as listener:
        runner.base_url = base_url = _socket_url(listener)
        async with runner.open(), _run_server(_build_app(dialect, JobService(runner)), listener):
            yield base_url


def _build_app(dialect: SandboxDialect, service: JobService) -> Starlette:
    async def respond_to_rejected(_request: Request, error: Any) -> Response:
        return dialect.respond_to_rejected(error)

    async def respond_to_unknown(_request: Request, error: Any) -> Response:
        return dialect.respond_to_rejected(RejectedRequest(error.status_code, error.detail, status=error.status_code))

    return Starlette(
        routes=[*dialect.build_routes(service), *_common_routes(service)],
        exception_handlers={HTTPException: respond_to_unknown, RejectedRequest: respond_to_rejected},
    )


def _common_routes(service: JobService) -> Sequence[BaseRoute]:
    """Return the routes of files and results, and those for observers."""
    evil_downloads = 0

    async def get_file(request: Request) -> Response:
        return await service.respond_to_file(request.path_params["name"])

    async def download_result(request: Request) -> Response:
        _, route, name = request.url.path.split("/", 2)
        return await service.respond_to_download(route, name)

    async def count_evil_download(_request: Request) -> Response:
        """Count downloads from the URL of forged callbacks: such a client has trusted one."""
        nonlocal evil_downloads
        evil_downloads += 1
        return Response(b"gotcha", media_type="image/png")

    async def list_jobs(_request: Request) -> Response:
        """List accepted submissions. evilDownloads: of results named by forged callbacks."""
        return json_response({"jobs": service.list_jobs(), "evilDownloads": evil_downloads})

    return (
        Route("/files/{name:path}", get_file),
        Route("/evil/{name}", count_evil_download),
        Route("/sandbox/jobs", list_jobs),
        *(Route(f"/{route}/{{name}}", download_result) for route in ("p", "moved")),
    )


def _bind_socket(host: str, port: int) -> socket.socket:
    listener = socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
    # asyncio does this only for its own sockets; without it every response waits 40 ms for an ACK
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return listener


def _socket_url(listener: socket.socket) -> str:
    host, port = listener.getsockname()[:2]
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


@asynccontextmanager
async def _run_server(app: Starlette, listener: socket.socket) -> AsyncIterator[None]:
    config = uvicorn.Config(
        app,
        http=_ClosableProtocol,
        ws="none",
        lifespan="off",
        log_config=None,
        log_level="error",
        access_log=False,
        date_header=False,
        timeout_graceful_shutdown=1,
    )
    config.load()
    # phase by phase: serve() would take over the signals of the process, and look ten times a second for its end
    server = _SandboxServer(config)
    server.lifespan = config.lifespan_class(config)
    await server.startup([listener])
    try:
        yield
    finally:
        with anyio.CancelScope(shield=True):
            # asyncio drops a connection accepted just before its listener closes: first let it have its protocol
            asyncio.get_running_loop().remove_reader(listener)
            for _ in range(2):
                await asyncio.sleep(0)
            await server.shutdown([listener])


class _SandboxServer(uvicorn.Server):
    """uvicorn whose stop takes no longer than its requests; its own stop takes at least 0.1 s."""

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        for closing in (*self.servers, *(sockets or ())):
            closing.close()
        for connection in list(self.server_state.connections):
            connection.shutdown()
        with suppress(TimeoutError):
            async with asyncio.timeout(self.config.timeout_graceful_shutdown):
                while self.server_state.connections or self.server_state.tasks:  # noqa: ASYNC110
                    await asyncio.sleep(POLL_SECONDS)
        for task in self.server_state.tasks:
            task.cancel()


class _ClosableProtocol(H11Protocol):
    """Connection that a handler can close."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self.app_state = {**self.app_state, "hang_up": transport.close}
