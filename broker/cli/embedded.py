"""The whole system inside this process, for commands that run a broker of their own."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing

from broker.cli.connection import first_key, make_client
from broker.cli.opening import open_system
from broker.cli.sandbox import LOOPBACK
from broker.client import AsyncClient
from broker.net.hosts import local_base_url
from broker.server.sockets import bind_socket, socket_port
from broker.server.uvicorn import running_server
from broker.services import Services
from broker.settings import Settings


@asynccontextmanager
async def run_embedded_broker(settings: Settings) -> AsyncIterator[tuple[Services, AsyncClient]]:
    """Run a broker on a free local port and yield it with a client over HTTP. Unfinished tasks stay in its database."""
    settings = settings.model_copy(update={"host": LOOPBACK})
    with closing(bind_socket(LOOPBACK, 0)) as sock:
        async with (
            open_system(settings, socket_port(sock)) as services,
            running_server(services, sock),
            make_client(local_base_url(LOOPBACK, socket_port(sock)), settings, first_key(settings)) as client,
        ):
            yield services, client
