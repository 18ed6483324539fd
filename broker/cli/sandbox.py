"""The sandbox provider: on a port of its own, or next to a broker without a provider key."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from urllib.parse import urlsplit

import anyio

from broker.cli import TERMINATION_SIGNALS
from broker.cli.console import CommandError, print_line
from broker.errors import SettingsError, unusable_folder
from broker.providers.registry import point_to_sandbox, sandbox_upstream
from broker.sandbox.dialect import SandboxDialect
from broker.sandbox.dialects import DIALECTS
from broker.sandbox.engine import Options
from broker.sandbox.faults import Fault, UnknownFault, parse_fault_setting
from broker.sandbox.server import serve_sandbox
from broker.server.sockets import BindFailure, explain_bind_error, open_socket
from broker.settings import Settings

LOOPBACK = "127.0.0.1"
ENDLESS_CREDITS = 1e9


async def serve_alone(host: str, port: int, options: Options) -> None:
    """Serve until SIGINT or SIGTERM."""
    dialect = _find_dialect(options.dialect)
    _check_mood("--mood", options.mood, dialect)
    if port and (failure := _find_bind_failure(host, port)):
        raise CommandError(f"{failure.problem}: {failure.cure}")
    with anyio.open_signal_receiver(*TERMINATION_SIGNALS) as signals:
        async with serve_sandbox(host, port, options) as url:
            _print_addresses(url, dialect, options.api_key)
            await anext(signals)


def _find_dialect(name: str) -> SandboxDialect:
    """Return a dialect of the sandbox. Raises `CommandError`."""
    try:
        return DIALECTS[name]
    except KeyError:
        raise CommandError(f"no dialect is named {name!r}: use one of {', '.join(DIALECTS)}") from None


def _print_addresses(url: str, dialect: SandboxDialect, api_key: str | None) -> None:
    variables = dialect.variables(url, "the key given here" if api_key else "any")
    print_line(f"The sandbox provider is at {url}", style="bold")
    print_line(f"  its jobs       {url}/sandbox/jobs")
    heading = "for a broker"
    for name, value in {**variables, "BROKER_DOWNLOAD_ALLOW": urlsplit(url).netloc}.items():
        print_line(f"  {heading:<14} {name}={value}")
        heading = ""


async def list_moods(name: str) -> None:
    """Print every mood of a dialect and its effect. A value follows the mood, as in late:30."""
    for mood in _find_dialect(name).faults:
        value = f" (VALUE is {mood.value_if_none:g} if not given)" if mood.value_if_none else ""
        print_line(f"{mood.value:<18} {mood.doc}{value}")


@asynccontextmanager
async def run_sandbox(settings: Settings, port: int) -> AsyncIterator[Settings]:
    """Run a sandbox in this process and yield settings that use it.

    port: preferred, so that result URLs from before a restart stay valid; if it is in use, any free one.
    """
    mood = settings.sandbox_mood or Fault.GOOD.value
    _check_mood("BROKER_SANDBOX_MOOD", mood, _find_dialect(Options.dialect))
    folder = settings.data_dir / "sandbox"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise unusable_folder("BROKER_DATA_DIR", folder.parent, error) from error
    upstream = sandbox_upstream(settings)
    options = Options(
        webhook_key=upstream.webhook_key.get_secret_value() if upstream.webhook_key else None,
        credits=ENDLESS_CREDITS,
        creates_per_window=upstream.creates_per_10s or Options.creates_per_window,
        mood=mood,
        data_dir=folder,
    )
    async with serve_sandbox(LOOPBACK, 0 if _find_bind_failure(LOOPBACK, port) else port, options) as url:
        # no public URL, which is not needed, and no key, which must not leak
        allowed = (*settings.download_allow, urlsplit(url).netloc)
        yield point_to_sandbox(settings.model_copy(update={"webhook_base_url": "", "download_allow": allowed}), url)


def _check_mood(where: str, mood: str, dialect: SandboxDialect) -> None:
    try:
        parse_fault_setting(mood, dialect.faults)
    except UnknownFault as error:
        raise SettingsError(f"{where} is wrong: {error}") from None


def _find_bind_failure(host: str, port: int) -> BindFailure | None:
    try:
        open_socket(host, port).close()
    except (OSError, OverflowError, UnicodeError) as error:
        return explain_bind_error(host, port, error)
    return None
