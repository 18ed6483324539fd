"""Client of the running broker, and of the application in this process where none runs; documents that it shows."""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any, Final, TypeAlias
from urllib.parse import quote

import anyio
from pydantic import SecretStr
from starlette.types import ASGIApp

from broker import logs
from broker.app import build_app
from broker.bootstrap import load_settings, missing_database_file, open_services
from broker.cli.console import CommandError, clear_screen, print_json, print_note
from broker.client import AsyncClient, BrokerApiError
from broker.net.hosts import local_base_url
from broker.settings import Settings

PATIENCE_SECONDS: Final = 120.0
"""Long enough for a restart of the broker."""
WATCH_SECONDS: Final = 1.0

Document: TypeAlias = dict[str, Any]
"""JSON object of the API."""


@dataclass(frozen=True, kw_only=True)
class Connection:
    """A client, and whether a broker is running, which executes tasks."""

    client: AsyncClient
    is_running: bool


@asynccontextmanager
async def connect_broker(*, makes_database: bool = False) -> AsyncIterator[Connection]:
    """Connect to the running broker, or else open its database. Raises `CommandError` if there is none either.

    makes_database: make one instead, for what an operator prepares before the first start. Once there are users or API
    keys, a running broker serves nobody without a key. The operator, who can open the database, needs none: it is
    opened then, too.
    """
    settings = load_settings()
    quiet_logs(settings)
    async with find_running_broker(settings) as client:
        is_running = client is not None
        if client is not None and (has_key(settings) or await _is_served(client)):
            yield Connection(client=client, is_running=True)
            return
    base = local_base_url(settings.host, settings.port)
    missing = missing_database_file(settings)
    if missing is not None and makes_database:
        print_note(f"There is no database yet: {missing.resolve()} is made.")
    elif missing is not None:
        raise CommandError(
            f"No broker answers at {base}, and there is no database {missing.resolve()}: is this the right folder?"
        )
    key = secrets.token_urlsafe(32)  # known to this process alone
    changes = {"webhook_base_url": "", "tunnel_api": "", "api_keys": (SecretStr(key),)}
    async with (
        open_services(settings.model_copy(update=changes), joins=False) as services,
        make_client(base, settings, key, app=build_app(services)) as client,
    ):
        yield Connection(client=client, is_running=is_running)


async def _is_served(client: AsyncClient) -> bool:
    """Return False if the broker refuses requests without a key."""
    try:
        await client.ask("GET", "/api/me")
    except BrokerApiError as error:
        if error.status != HTTPStatus.UNAUTHORIZED:
            raise
        return False
    return True


@asynccontextmanager
async def find_running_broker(settings: Settings) -> AsyncIterator[AsyncClient | None]:
    """Yield a client of the broker at BROKER_URL, or at BROKER_HOST and BROKER_PORT; None if there is none.

    Raises `CommandError` if no broker answers at a BROKER_URL: then another one must not get the order.
    """
    base, key = broker_address(settings)
    async with make_client(base, settings, key) as client:
        is_running = await client.alive()
        if settings.broker_url and not is_running:
            raise CommandError(f"No broker answers at {base}: check BROKER_URL, and that the broker runs there.")
        yield client if is_running else None


def broker_address(settings: Settings) -> tuple[str, str | None]:
    """Return the URL of the broker that commands talk to, and the key that they send."""
    key = settings.broker_key.get_secret_value() if settings.broker_key else None
    if settings.broker_url:  # the keys of the broker configured here are not for another one
        return settings.broker_url, key
    return local_base_url(settings.host, settings.port), key or first_key(settings)


def has_key(settings: Settings) -> bool:
    """Return whether commands have a key to send; with a BROKER_URL they need the one for it."""
    return bool(settings.broker_url) or broker_address(settings)[1] is not None


def first_key(settings: Settings) -> str | None:
    """Return the first of BROKER_API_KEYS."""
    return settings.api_keys[0].get_secret_value() if settings.api_keys else None


def make_client(base: str, settings: Settings, key: str | None, *, app: ASGIApp | None = None) -> AsyncClient:
    """Return a client; the caller closes it."""
    return AsyncClient(base, key=key, timeout=settings.request_timeout, patience=PATIENCE_SECONDS, app=app)


async def show_document(
    path: str,
    print_text: Callable[[Document], None],
    *,
    as_json: bool,
    watch: bool = False,
    until: Callable[[Document], bool] | None = None,
    filters: Mapping[str, str | int | None] = {},
) -> Document:
    """Print a document of the API as text or JSON, and return it.

    filters: query parameters, None for absent ones. watch: print each change, until `until` is true of the document;
    without `until`, the terminal is cleared before each.
    """
    params = {name: str(value) for name, value in filters.items() if value is not None}
    previous: Document | None = None
    async with connect_broker() as broker:
        while True:
            document = await broker.client.ask("GET", path, params=params)
            if document != previous and as_json:
                print_json(document)
            elif document != previous:
                if watch and until is None:
                    clear_screen()
                print_text(document)
            if not watch or (until is not None and until(document)):
                return document
            previous = document
            await anyio.sleep(WATCH_SECONDS)


def record_path(collection: str, record_id: str) -> str:
    """Return the API path of a task, callback or webhook."""
    return f"/api/{collection}/{quote(record_id, safe='')}"


def quiet_logs(settings: Settings) -> None:
    """Configure logs for commands that print their own progress: INFO lines are left out."""
    level = "WARNING" if settings.log_level == "INFO" else settings.log_level
    logs.configure_logging(level, settings.log_format, None)
