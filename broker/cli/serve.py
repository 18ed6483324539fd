"""`broker serve` and `broker worker`: open the system, print its addresses, run until a signal."""

from __future__ import annotations

import platform
import sqlite3
import sys
from collections.abc import Iterator
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

import anyio

from broker import logs
from broker.bootstrap import load_settings, open_services
from broker.callbacks.public_url import is_private_url
from broker.cli import TERMINATION_SIGNALS
from broker.cli.console import print_line, print_note
from broker.cli.embedded import open_system
from broker.doctor.machine import COOKIE_FLAW, NEWER_PYTHON, has_cookie_flaw
from broker.errors import SettingsError, unusable_folder
from broker.logs import log
from broker.net.hosts import EVERY_INTERFACE, is_loopback_host, local_base_url
from broker.server.sockets import bind_socket, socket_port
from broker.server.uvicorn import serve as serve_http
from broker.services import Services
from broker.settings import Settings


async def serve(host: str | None, port: int | None) -> None:
    """Run API, webhooks and worker until SIGINT or SIGTERM; running requests and steps are finished."""
    given: dict[str, Any] = {"host": host, "port": port}
    settings = load_settings(**{name: value for name, value in given.items() if value is not None})
    _configure_logs(settings)
    _print_database(settings)
    with closing(bind_socket(settings.host, settings.port)) as sock:
        async with open_system(settings, sock) as services:
            await serve_http(services, [sock], ready=partial(_print_summary, services, socket_port(sock)))


async def run_worker() -> None:
    """Run the worker until SIGINT or SIGTERM; its steps are finished or released."""
    settings = load_settings()
    _print_unread(settings)
    if settings.sandboxed:
        raise SettingsError(
            "no provider key is set (see .env.example), and the sandbox provider runs in `broker serve`: "
            "set a key, or run `broker serve` instead of a worker"
        )
    _configure_logs(settings)
    _print_database(settings)
    with anyio.open_signal_receiver(*TERMINATION_SIGNALS) as signals:
        async with (
            open_services(settings) as services,
            services.url_monitor.run(),
            services.conversation_parts.keeper.run(),
            anyio.create_task_group() as tasks,
        ):
            print_line(f"Worker for {', '.join(services.providers)} on {settings.database_shown}")
            print_line(f"  results    {_describe_results(services)}")
            tasks.start_soon(services.worker.run)
            await anext(signals)
            services.worker.stop()


def _print_summary(services: Services, port: int) -> None:
    """Print the addresses, the provider, how results arrive, and warnings."""
    settings = services.settings
    print_line(
        f"Broker at {local_base_url(settings.host, port)}"
        + (" (all interfaces)" if settings.host in EVERY_INTERFACE else "")
    )
    for provider in services.providers.values():
        print_line(f"  provider   {provider.name} at {provider.base_url}")
    print_line(f"  results    {_describe_results(services)}")
    print_line(f"  data       {_describe_storage(settings)}")
    _print_warnings(services)


def _describe_results(services: Services) -> str:
    public_url = services.address.current
    if public_url is None:
        return f"polling every {services.settings.poll_every:g} s (no public address: see README, Tunnels)"
    source = "" if public_url.source == "local" else f" ({public_url.source})"
    return f"webhook at {public_url.url}{services.provider.callback_path}{source}"


def _describe_storage(settings: Settings) -> str:
    """Return the folder, database and bucket in use."""
    bucket = settings.bucket
    places = [] if settings.database.startswith("sqlite:") else [settings.database_shown]
    places += [] if bucket is None else [f"s3://{bucket.name}/{bucket.prefix}"]
    return ", ".join([str(settings.data_dir.resolve()), *places])


def _configure_logs(settings: Settings) -> None:
    try:
        logs.configure_logging(settings.log_level, settings.log_format, settings.log_dir)
    except OSError as error:
        raise unusable_folder("BROKER_LOG_DIR", settings.log_dir or Path(), error) from error
    log.info("starting", action="starting", python=platform.python_version(), sqlite=sqlite3.sqlite_version)


def _print_warnings(services: Services) -> None:
    settings = services.settings
    _print_unread(settings)
    if settings.sandboxed:
        print_note(
            "NO PROVIDER KEY: the sandbox makes PRETEND PICTURES. Set a provider key for real ones (see .env.example).",
            style="bold yellow reverse",
        )
    for advice in deployment_warnings(settings, sys.version_info[:3]):
        print_note(f"Warning: {advice}", style="yellow")


def _print_database(settings: Settings) -> None:
    """Print what the POSTGRES_… variables name, before it is opened."""
    if settings.is_database_built:
        print_note(
            f"Database: {settings.database_shown}, built from POSTGRES_HOST and its relatives, as user "
            f"{settings.postgres_user}"
        )


def _print_unread(settings: Settings) -> None:
    for sentence in settings.unread_variables:
        print_note(f"Warning: {sentence}", style="yellow")


def deployment_warnings(settings: Settings, python: tuple[Any, ...]) -> Iterator[str]:
    """Yield risks of these settings, each with its cure."""
    if has_cookie_flaw(python):
        yield f"Python: {COOKIE_FLAW}; {NEWER_PYTHON}"
    is_exposed = not is_loopback_host(settings.host)
    if is_exposed and settings.allow_anonymous:
        yield f"every client that reaches {settings.host} may spend your credits (BROKER_ALLOW_ANONYMOUS)"
    elif is_exposed and not settings.api_keys:
        yield "other machines can reach the broker but not use it without an account: set BROKER_API_KEYS, or add users"
    if settings.registration == "open":
        yield "everyone who reaches the broker may register and order images (BROKER_REGISTRATION)"
    if settings.admin_sees_content:
        yield "admins read the prompts and pictures of all accounts (BROKER_ADMIN_SEES_CONTENT)"
    if settings.webhook_base_url and is_private_url(settings.webhook_base_url):
        yield (
            "WEBHOOK_BASE_URL names a host that only this machine or its network can reach, so no callback arrives: "
            "set a public URL, or leave it empty"
        )
