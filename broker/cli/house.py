"""The whole system inside this process: for `serve`, and for commands that are a broker for a moment."""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing
from dataclasses import dataclass

from broker import logs
from broker.bootstrap import open_services
from broker.callbacks.public_url import check_configured
from broker.cli.client import address, client_for
from broker.cli.sandbox import LOOPBACK, beside
from broker.client import AsyncClient
from broker.server.sockets import bind_socket, socket_port
from broker.server.uvicorn import running_server
from broker.services import Services
from broker.settings import Settings


@dataclass(frozen=True, kw_only=True)
class Moment:
    """A broker that runs as long as a command does. client: reaches it through real HTTP."""

    services: Services
    client: AsyncClient


@asynccontextmanager
async def opened(settings: Settings, sock: socket.socket) -> AsyncIterator[Services]:
    """The system for the port of `sock`, with a sandbox beside it if there is no provider key."""
    port = socket_port(sock)
    if settings.webhook_base_url:
        check_configured(settings.webhook_base_url)  # the sandbox does not need it, but wrong is wrong
    if not settings.sandboxed:
        async with open_services(settings, port=port) as services:
            yield services
        return
    async with (
        beside(settings, port + 1) as settled,
        open_services(settled, port=port, local_provider=True) as services,
    ):
        yield services


@asynccontextmanager
async def broker_for_a_moment(settings: Settings) -> AsyncIterator[Moment]:
    """A broker on a free port of this machine, gone at the end; what it was doing stays in its database."""
    settings = settings.model_copy(update={"host": LOOPBACK})
    with closing(bind_socket(LOOPBACK, 0)) as sock:
        async with (
            opened(settings, sock) as services,
            running_server(services, sock),
            client_for(address(LOOPBACK, socket_port(sock)), settings) as client,
        ):
            yield Moment(services=services, client=client)


def quiet_logs(settings: Settings) -> None:
    """For commands that show their progress themselves: only trouble is worth a log line."""
    level = "WARNING" if settings.log_level == "INFO" else settings.log_level
    logs.configure(level, settings.log_format, None)
