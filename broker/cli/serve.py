"""`broker serve` and `broker worker`: open the system, say what it is, run until told to end."""

from __future__ import annotations

import platform
import sqlite3
import sys
from collections.abc import Iterator
from contextlib import closing
from functools import partial
from typing import Any

import anyio

from broker import logs
from broker.bootstrap import load_settings, open_services
from broker.callbacks.public_url import is_private_url
from broker.cli.client import address
from broker.cli.house import opened
from broker.cli.screen import note, say
from broker.cli.signals import told_to_end
from broker.doctor.access import COOKIE_FLAW, NEWER_PYTHON, has_cookie_flaw
from broker.errors import SettingsError
from broker.logs import log
from broker.net.hosts import is_loopback_host
from broker.server.sockets import bind_socket, socket_port
from broker.server.uvicorn import serve as serve_http
from broker.services import Services
from broker.settings import Settings

ANYWHERE = {"0.0.0.0", "::"}  # noqa: S104


async def serve(host: str | None, port: int | None) -> None:
    """API, webhooks and worker until SIGINT or SIGTERM; then what is running is finished first."""
    given: dict[str, Any] = {"host": host, "port": port}
    settings = load_settings(**{name: value for name, value in given.items() if value is not None})
    _configure_logs(settings)
    with closing(bind_socket(settings.host, settings.port)) as sock:
        async with opened(settings, sock) as services:
            await serve_http(services, [sock], ready=partial(_introduce, services, socket_port(sock)))


async def work() -> None:
    """The worker alone until SIGINT or SIGTERM; then its steps are finished or given back."""
    settings = load_settings()
    if settings.sandboxed:
        raise SettingsError(
            "NANO_BANANA_API_KEY is not set, and the sandbox provider lives in `broker serve`: "
            "set the key, or run `broker serve` instead of a worker"
        )
    _configure_logs(settings)
    with told_to_end() as told:
        async with (
            open_services(settings) as services,
            services.url_monitor.run(),
            anyio.create_task_group() as tasks,
        ):
            say(f"Worker for {', '.join(services.providers)} on {settings.database_shown}")
            say(f"  results    {_results(services)}")
            tasks.start_soon(services.worker.run)
            await told()
            services.worker.stop()


def _introduce(services: Services, port: int) -> None:
    """Where we are, who paints, how results come, and what will not please for long."""
    settings = services.settings
    say(f"Broker at {address(settings.host, port)}" + (" (all interfaces)" if settings.host in ANYWHERE else ""))
    for provider in services.providers.values():
        say(f"  provider   {provider.name} at {provider.base_url}")
    say(f"  results    {_results(services)}")
    say(f"  data       {_data(settings)}")
    _warn(services)


def _results(services: Services) -> str:
    address = services.address.current
    if address is None:
        return f"polling every {services.settings.poll_every:g} s (no public address: see README, Tunnels)"
    source = "" if address.source == "local" else f" ({address.source})"
    return f"webhook at {address.url}{services.provider.callback_path}{source}"


def _data(settings: Settings) -> str:
    """Where everything is kept."""
    bucket = settings.bucket
    places = [] if settings.database.startswith("sqlite:") else [settings.database_shown]
    places += [] if bucket is None else [f"s3://{bucket.name}/{bucket.prefix}"]
    return ", ".join([str(settings.data_dir.resolve()), *places])


def _configure_logs(settings: Settings) -> None:
    try:
        logs.configure(settings.log_level, settings.log_format, settings.log_dir)
    except OSError as error:
        raise SettingsError(
            f"BROKER_LOG_DIR cannot be used ({error.strerror}): make {settings.log_dir} writable, or set another"
        ) from error
    log.info("starting", action="starting", python=platform.python_version(), sqlite=sqlite3.sqlite_version)


def _warn(services: Services) -> None:
    settings = services.settings
    if settings.sandboxed:
        note(
            "NO PROVIDER KEY: the sandbox paints PRETEND PICTURES. Set NANO_BANANA_API_KEY for real ones.",
            style="bold yellow reverse",
        )
    for advice in warnings(settings, sys.version_info[:3]):
        note(f"Warning: {advice}", style="yellow")


def warnings(settings: Settings, python: tuple[Any, ...]) -> Iterator[str]:
    """Yield settings that work now but may cause problems, each with its cure."""
    if has_cookie_flaw(python):
        yield f"Python: {COOKIE_FLAW}; {NEWER_PYTHON}"
    open_wide = not is_loopback_host(settings.host)
    if open_wide and settings.allow_anonymous:
        yield f"everybody who reaches {settings.host} may spend your credits (BROKER_ALLOW_ANONYMOUS)"
    elif open_wide and not settings.api_keys:
        yield "other machines can reach the broker but not use it: set BROKER_API_KEYS"
    if settings.webhook_base_url and is_private_url(settings.webhook_base_url):
        yield (
            "WEBHOOK_BASE_URL names a host that only this machine or its network can reach, so no callback arrives: "
            "set a public URL, or leave it empty"
        )
