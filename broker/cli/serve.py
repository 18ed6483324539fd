"""`broker serve` and `broker worker`: open the system, print its addresses, run until a signal."""

from __future__ import annotations

import platform
import socket
import sqlite3
import sys
from collections.abc import Iterable, Iterator
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

import anyio

from broker import logs
from broker.bootstrap import load_settings, open_services, serving_database
from broker.callbacks.public_url import is_private_url
from broker.cli import TERMINATION_SIGNALS
from broker.cli.console import print_line, print_note
from broker.cli.opening import open_system
from broker.cli.running import explain_errors, run_lasting
from broker.doctor.python_version import COOKIE_FLAW, NEWER_PYTHON, has_cookie_flaw
from broker.errors import SettingsError, unusable_folder
from broker.logs import log
from broker.net.hosts import EVERY_INTERFACE, is_loopback_host, local_base_url
from broker.server.processes.link import SupervisorLink
from broker.server.processes.supervisor import Supervisor
from broker.server.sockets import bind_socket, reserve_port, socket_port
from broker.server.uvicorn import serve as serve_http
from broker.services import Services
from broker.settings import Settings


def serve(host: str | None, port: int | None, workers: int | None) -> int:
    """Run API, webhooks and worker until SIGINT or SIGTERM; running requests and steps are finished.

    Arguments that are not None replace the variables. Returns the exit code.
    """
    given: dict[str, Any] = {"host": host, "port": port, "workers": workers}
    settings = load_settings(**{name: value for name, value in given.items() if value is not None})
    if settings.workers > 1:
        return _serve_with_processes(settings)
    _configure_logs(settings)
    _print_database(settings)
    return run_lasting(partial(_serve_alone, settings))


async def _serve_alone(settings: Settings) -> None:
    with closing(bind_socket(settings.host, settings.port)) as sock:
        port = socket_port(sock)
        async with open_system(settings, port, isolates_images=True) as services:
            await serve_http(services, [sock], ready=lambda: print_summary(_summarize(services, port)))


def _serve_with_processes(settings: Settings) -> int:
    """Run `settings.workers` processes on one port, and this one as their supervisor."""
    require_processes(settings)
    _configure_logs(settings)
    _print_database(settings)
    with closing(reserve_port(settings.host, settings.port)) as reserved:
        run_process = partial(_run_process, settings, socket_port(reserved))
        return Supervisor(settings.workers, run_process, print_summary).run()


def _run_process(settings: Settings, port: int, number: int, sock: socket.socket) -> int:
    """Run one of several processes; return its exit code."""
    _configure_logs(settings, process=number)
    return explain_errors(lambda: run_lasting(partial(_serve_supervised, settings, port, SupervisorLink(sock))))


async def _serve_supervised(settings: Settings, port: int, link: SupervisorLink) -> None:
    async with (
        open_services(settings, port=port, isolates_images=True, read_sums=link.read_sums) as services,
        link.run(services.metrics.registry),
    ):
        with closing(bind_socket(settings.host, port, is_one_of_many=True)) as sock:
            await serve_http(
                services,
                [sock],
                ready=lambda: link.report_ready(list(_summarize(services, port))),
                is_supervised=True,
            )


def require_processes(settings: Settings) -> None:
    """Raise `SettingsError` with the cure if these settings do not work in several processes."""
    setting = f"WORKERS={settings.workers} (--workers)"
    if not settings.shared:
        raise SettingsError(
            f"{setting} needs Postgres. SQLite has one writer, and one process commits the writes that wait for it "
            "together, which a second one would only slow down: set WORKERS=1, or delete the variable; or set "
            "DATABASE_URL=postgresql://user:password@host:5432/name"
        )
    if sys.platform != "linux":
        raise SettingsError(f"{setting} needs Linux, which spreads connections over processes: set WORKERS=1")
    if settings.sandboxed:
        raise SettingsError(
            f"{setting} needs a provider key: without one each process would have a sandbox provider of its own. Set a "
            "key (see .env.example), or WORKERS=1"
        )


def run_worker() -> int:
    """Run the worker until SIGINT or SIGTERM; its steps are finished or released. Returns the exit code."""
    settings = load_settings()
    _print_unread(settings)
    if settings.sandboxed:
        raise SettingsError(
            "no provider key is set (see .env.example), and the sandbox provider runs in `broker serve`: "
            "set a key, or run `broker serve` instead of a worker"
        )
    _configure_logs(settings)
    _print_database(settings)
    return run_lasting(partial(_work, settings))


async def _work(settings: Settings) -> None:
    with anyio.open_signal_receiver(*TERMINATION_SIGNALS) as signals:
        async with (
            open_services(settings, isolates_images=True, open_database=serving_database) as services,
            services.url_monitor.run(),
            services.conversation_parts.keeper.run(),
            anyio.create_task_group() as tasks,
        ):
            print_line(f"Worker for {', '.join(services.providers)} on {settings.database_shown}")
            print_line(f"  results    {_describe_results(services)}")
            tasks.start_soon(services.worker.run)
            await anext(signals)
            services.worker.stop()


def _summarize(services: Services, port: int) -> Iterator[tuple[str, str | None]]:
    """Yield the lines about addresses, the provider and how results arrive, then warnings.

    Each comes with None, or with the style of a warning.
    """
    settings = services.settings
    everywhere = " (all interfaces)" if settings.host in EVERY_INTERFACE else ""
    processes = f", {settings.workers} processes" if settings.workers > 1 else ""
    yield f"Broker at {local_base_url(settings.host, port)}{everywhere}{processes}", None
    for provider in services.providers.values():
        yield f"  provider   {provider.name} at {provider.base_url}", None
    yield f"  results    {_describe_results(services)}", None
    yield f"  data       {_describe_storage(settings)}", None
    if settings.sandboxed:
        yield (
            "NO PROVIDER KEY: the sandbox makes PRETEND PICTURES. Set a provider key for real ones (see .env.example).",
            "bold yellow reverse",
        )
    for advice in (*settings.unread_variables, *deployment_warnings(settings, sys.version_info[:3])):
        yield f"Warning: {advice}", "yellow"


def print_summary(lines: Iterable[tuple[str, str | None]]) -> None:
    for text, style in lines:
        if style is None:
            print_line(text)
        else:
            print_note(text, style=style)


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


def _configure_logs(settings: Settings, *, process: int | None = None) -> None:
    try:
        logs.configure_logging(settings.log_level, settings.log_format, settings.log_dir, process=process)
    except OSError as error:
        raise unusable_folder("BROKER_LOG_DIR", settings.log_dir or Path(), error) from error
    log.info("starting", action="starting", python=platform.python_version(), sqlite=sqlite3.sqlite_version)


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
