"""Finding the broker that runs, as the settings say where."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from broker.client import AsyncClient
from broker.settings import Settings

SILENCE_SECONDS = 120.0
"""A broker that is silent for a while may be starting anew."""


def client_for(base: str, settings: Settings) -> AsyncClient:
    """A client of the broker at an address; whoever gets it closes it."""
    key = settings.api_keys[0].get_secret_value() if settings.api_keys else None
    return AsyncClient(base, key=key, timeout=settings.request_timeout, patience=SILENCE_SECONDS)


@asynccontextmanager
async def running_broker(settings: Settings) -> AsyncIterator[AsyncClient | None]:
    """The broker at BROKER_HOST:BROKER_PORT; None if none answers there."""
    async with client_for(address(settings.host, settings.port), settings) as client:
        yield client if await client.alive() else None


def address(host: str, port: int) -> str:
    """How this machine reaches a broker that listens on `host`."""
    host = {"0.0.0.0": "127.0.0.1", "::": "::1", "": "127.0.0.1"}.get(host, host)  # noqa: S104
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
