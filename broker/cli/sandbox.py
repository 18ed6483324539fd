"""The sandbox provider: alone on a port, or beside a broker without a key."""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from urllib.parse import urlsplit

from broker.cli.screen import Unable, say
from broker.cli.signals import told_to_end
from broker.errors import SettingsError
from broker.providers.registry import point_to_sandbox, sandbox_upstream
from broker.sandbox.moods import Mood, UnknownMood, listed
from broker.sandbox.options import Options
from broker.sandbox.server import serve_sandbox
from broker.settings import Settings

LOOPBACK = "127.0.0.1"
ENDLESS_CREDITS = 1e9


async def sandbox(
    *,
    host: str,
    port: int,
    mood: str,
    duration: float,
    credits_: float,
    api_key: str | None,
    webhook_key: str | None,
    data_dir: Path | None,
) -> None:
    """Serve until told to end."""
    _check_mood("--mood", mood)
    if port and not _is_free(host, port):
        raise Unable(f"Port {port} of {host} cannot be used: take another one with --port, or 0 for any free one.")
    options = Options(
        api_key=api_key,
        webhook_key=webhook_key,
        duration=duration,
        credits=credits_,
        mood=mood,
        data_dir=data_dir,
    )
    with told_to_end() as told:
        async with serve_sandbox(host, port, options) as url:
            _introduce(url, api_key)
            await told()


def _introduce(url: str, api_key: str | None) -> None:
    say(f"The sandbox provider is at {url}", style="bold")
    say(f"  its ledger     {url}/sandbox/jobs")
    say(f"  for a broker   NANO_BANANA_API_URL={url}")
    say(f"                 NANO_BANANA_UPLOAD_URL={url}")
    say(f"                 NANO_BANANA_API_KEY={'the key given here' if api_key else 'any'}")
    say(f"                 BROKER_DOWNLOAD_ALLOW={urlsplit(url).netloc}")


def list_moods() -> None:
    """Every mood and what it does. VALUE follows the name: late:30."""
    for mood in Mood:
        value = f" (VALUE is {mood.value_if_none:g} if not given)" if mood.value_if_none else ""
        say(f"{mood.value:<18} {mood.doc}{value}")


@asynccontextmanager
async def beside(settings: Settings, port: int) -> AsyncIterator[Settings]:
    """Settings that lead to a sandbox in this process, for as long as the block lasts.

    port: preferred, so that links of jobs from before a restart still lead here; if it is taken, any free one.
    """
    mood = settings.sandbox_mood or Mood.GOOD.value
    _check_mood("BROKER_SANDBOX_MOOD", mood)
    folder = settings.data_dir / "sandbox"
    _make(folder)
    upstream = sandbox_upstream(settings)
    options = Options(
        webhook_key=upstream.webhook_key.get_secret_value() if upstream.webhook_key else None,
        credits=ENDLESS_CREDITS,
        creates_per_window=upstream.creates_per_10s or Options.creates_per_window,
        mood=mood,
        data_dir=folder,
    )
    async with serve_sandbox(LOOPBACK, port if _is_free(LOOPBACK, port) else 0, options) as url:
        yield _leading_to(url, settings)


def _leading_to(url: str, settings: Settings) -> Settings:
    """A public address would only be a detour, and a key must not go astray."""
    allowed = (*settings.download_allow, urlsplit(url).netloc)
    return point_to_sandbox(settings.model_copy(update={"webhook_base_url": "", "download_allow": allowed}), url)


def _check_mood(where: str, mood: str) -> None:
    try:
        listed(mood)
    except UnknownMood as error:
        raise SettingsError(f"{where} is wrong: {error}") from None


def _make(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise SettingsError(
            f"BROKER_DATA_DIR cannot be used ({error.strerror}): make {folder.parent} writable, or set another"
        ) from error


def _is_free(host: str, port: int) -> bool:
    try:
        socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET).close()
    except (OSError, OverflowError):
        return False
    return True
