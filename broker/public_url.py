"""Where the internet finds us: as configured, else what a tunnel on this machine says of itself.

ngrok's agent lists its endpoints (new) or tunnels (old) with the local port each leads to; cloudflared's metrics
server names the host of a quick tunnel, on the first free of five ports. Without an answer we are not reachable, and
results are polled for.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final, Literal
from urllib.parse import urlsplit

from broker.addresses import read_link
from broker.errors import EgressRefused, ProviderError, SettingsError
from broker.outgoing import ApiClient

CLOUDFLARED: Final = tuple(f"http://127.0.0.1:{port}" for port in range(20241, 20246))
"""Where cloudflared serves its metrics when nothing else is configured."""

ASK_SECONDS: Final = 1.0


@dataclass(frozen=True, kw_only=True)
class PublicUrl:
    """Our address as the internet sees it, without a slash at the end."""

    url: str
    source: Literal["configured", "ngrok", "cloudflared"]


async def find(
    configured: str,
    *,
    port: int,
    tunnel_api: str,
    client: ApiClient,
    cloudflared: Sequence[str] = CLOUDFLARED,
    seconds: float = ASK_SECONDS,
) -> PublicUrl | None:
    """The configured address, else ngrok's tunnel to our port, else cloudflared's; None within `seconds` otherwise.

    cloudflared does not say which port its tunnel leads to, so it comes last. Raises `SettingsError` for a wrong
    configured address, and nothing for strange answers: whoever answers at these ports need not be a tunnel.
    """
    if configured.strip():
        return PublicUrl(url=check_configured(configured), source="configured")
    agent = tunnel_api.rstrip("/")
    questions = [f"{agent}/api/endpoints", f"{agent}/api/tunnels"] if agent else []
    answers = await asyncio.gather(
        *(_ask(client, url, seconds) for url in [*questions, *(f"{base}/quicktunnel" for base in cloudflared)])
    )
    for answer in answers[: len(questions)]:
        for url in _ngrok(answer, port):
            return PublicUrl(url=url, source="ngrok")
    for answer in answers[len(questions) :]:
        for url in _cloudflared(answer):
            return PublicUrl(url=url, source="cloudflared")
    return None


def check_configured(text: str) -> str:
    """WEBHOOK_BASE_URL as we use it; a path in front of ours is kept."""
    text = text.strip()
    try:
        link = read_link(text)
    except EgressRefused as exc:
        raise _wrong(str(exc)) from None
    if "?" in text or "#" in text:
        raise _wrong("the address has a query or a fragment")
    return link.url.rstrip("/")


def _wrong(why: str) -> SettingsError:
    cure = "set it to our public address, like https://broker.example.com, or leave it empty"
    return SettingsError(f"WEBHOOK_BASE_URL: {why}; {cure}")


async def _ask(client: ApiClient, url: str, seconds: float) -> Any:
    """What is said there, or None; nobody there is the usual case."""
    with suppress(ProviderError, TimeoutError):
        async with asyncio.timeout(seconds):
            answer = await client.request("GET", url, timeout=seconds)
            return answer.json() if answer.status == 200 else None
    return None


def _ngrok(answer: Any, port: int) -> Iterator[str]:
    """The https addresses of tunnels that lead to our port."""
    for entry in [*_entries(answer, "endpoints"), *_entries(answer, "tunnels")]:
        url = _public(entry.get("url") or entry.get("public_url"))
        target = _field(entry.get("upstream"), "url") or _field(entry.get("config"), "addr")
        if url is not None and _port(target) == port:
            yield url


def _cloudflared(answer: Any) -> Iterator[str]:
    hostname = _field(answer, "hostname")
    url = _public(f"https://{hostname}") if isinstance(hostname, str) and hostname else None
    if url is not None:
        yield url


def _entries(answer: Any, name: str) -> list[dict[str, Any]]:
    entries = _field(answer, name)
    return [entry for entry in entries if isinstance(entry, dict)] if isinstance(entries, list) else []


def _field(value: Any, name: str) -> Any:
    return value.get(name) if isinstance(value, dict) else None


def _public(url: Any) -> str | None:
    """An https address as we use it, or None for anything else (tcp://, http://, nonsense)."""
    if not isinstance(url, str) or not url.startswith("https://"):
        return None
    with suppress(SettingsError):
        return check_configured(url)
    return None


def _port(target: Any) -> int | None:
    """The port of `http://localhost:8000`, `localhost:8000`, `8000` or 8000; a scheme alone means its usual port."""
    text = str(target)
    if text.isdecimal():
        text = f"localhost:{text}"
    with suppress(ValueError):
        parts = urlsplit(text if "://" in text else f"//{text}")
        return parts.port or {"http": 80, "https": 443}.get(parts.scheme)
    return None
