"""Server that answers the reachability probe in place of a broker that does not run."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from broker.callbacks.probe import PROBE_PATH
from broker.server.sockets import open_socket
from webhooks.tokens import ChallengeResponse


@asynccontextmanager
async def probe_server(host: str, port: int, challenge: ChallengeResponse) -> AsyncIterator[None]:
    """Answer probes while the block runs. Raises OSError where the port cannot be bound."""

    async def answer_probe(request: Request) -> JSONResponse:
        answer = challenge.answer(request.query_params.get("probe", ""))
        return JSONResponse({"status": "ok", "probe": answer}, status_code=200 if answer else 404)

    app = Starlette(routes=[Route(PROBE_PATH, answer_probe, methods=["GET"])])
    config = uvicorn.Config(app, lifespan="off", ws="none", log_config=None, timeout_graceful_shutdown=1)
    server = uvicorn.Server(config)
    with closing(open_socket(host, port)) as sock:
        serving = asyncio.create_task(server.serve([sock]), name="probe_server")
        try:
            yield
        finally:
            server.should_exit = True
            await serving
