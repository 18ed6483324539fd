"""Discovery of tunnels: reads what the tunnel agents on this machine report.

ngrok's agent lists its endpoints (new) or tunnels (old) with the local port of each; cloudflared's metrics server names
the host of a quick tunnel, on the first free of five ports. Without an answer the broker cannot be reached, and results
are polled.

The agents are trusted as far as this machine is: a process that listens on their ports could divert our callbacks. On a
machine shared with untrusted users, set WEBHOOK_BASE_URL.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final, Literal
from urllib.parse import urlsplit

from broker.callbacks.public_url import PublicUrl, check_configured
from broker.errors import ProviderError, SettingsError
from broker.net.api_client import ApiClient
from broker.net.documents import parse_off_loop
from broker.net.hosts import is_loopback_host
from broker.net.url_policy import DEFAULT_PORTS

CLOUDFLARED_URLS: Final = tuple(f"http://127.0.0.1:{port}" for port in range(20241, 20246))
"""The addresses at which cloudflared serves its metrics unless configured otherwise."""

AGENT_SECONDS: Final = 1.0

Agent = Literal["ngrok", "cloudflared"]


@dataclass(frozen=True, kw_only=True)
class Tunnel:
    """One tunnel, as its agent reports it."""

    url: str
    port: int | None
    """Port on this machine; None where the agent does not report it."""
    agent: Agent


@dataclass(frozen=True, kw_only=True)
class TunnelAgents:
    """The tunnel agents of this machine, all queried at once.

    Unexpected answers raise no error: the program at these ports need not be a tunnel agent.
    """

    client: ApiClient
    tunnel_api: str
    """Base URL of ngrok's agent API; empty to skip ngrok."""
    port: int
    """The broker's port."""
    cloudflared: Sequence[str] = CLOUDFLARED_URLS
    seconds: float = AGENT_SECONDS
    """Time-out of each agent."""

    async def list_tunnels(self) -> list[Tunnel]:
        """Return all reported tunnels, whatever port they lead to; those of ngrok first."""
        agent = self.tunnel_api.rstrip("/")
        urls = [f"{agent}/api/endpoints", f"{agent}/api/tunnels"] if agent else []
        urls += [f"{base}/quicktunnel" for base in self.cloudflared]
        answers = await asyncio.gather(*(self._query_agent(url) for url in urls))
        return list(dict.fromkeys(tunnel for answer in answers for tunnel in _parse_answer(answer)))

    async def list_candidates(self) -> list[PublicUrl]:
        """Return the URLs that may lead to this broker, the likeliest first."""
        return list(candidate_urls(await self.list_tunnels(), self.port))

    async def _query_agent(self, url: str) -> Any:
        """Return the JSON answer, or None; usually no agent listens there."""
        with suppress(ProviderError, TimeoutError):
            async with asyncio.timeout(self.seconds):
                response = await self.client.request("GET", url)
                return await parse_off_loop(len(response.body), response.json) if response.status == 200 else None
        return None


def candidate_urls(tunnels: Sequence[Tunnel], port: int) -> Iterator[PublicUrl]:
    """Yield ngrok's tunnels to the port, then quick tunnels, which may lead anywhere and need verification."""
    for tunnel in tunnels:
        url = _usable_url(tunnel.url)
        if url is not None and (tunnel.port == port or tunnel.agent == "cloudflared"):
            yield PublicUrl(url=url, source=tunnel.agent)


def _parse_answer(answer: Any) -> Iterator[Tunnel]:
    """Yield the endpoints or tunnels of an answer of ngrok, or the quick tunnel of cloudflared."""
    with suppress(AttributeError, LookupError, TypeError):  # of any other answer
        for entry in answer.get("endpoints") or answer.get("tunnels") or ():
            target = (entry.get("upstream") or {}).get("url") or (entry.get("config") or {}).get("addr")
            url = str(entry.get("url") or entry.get("public_url"))
            yield Tunnel(url=url, port=_parse_port(target), agent="ngrok")
        if hostname := answer.get("hostname"):
            scheme = "http" if is_loopback_host(hostname.rpartition(":")[0]) else "https"
            yield Tunnel(url=f"{scheme}://{hostname}", port=None, agent="cloudflared")


def _usable_url(url: str) -> str | None:
    """Return an https URL normalized, or None for another scheme.

    http:// would expose callback tokens on the network; it is accepted for loopback only.
    """
    with suppress(SettingsError):
        normalized = check_configured(url)
        parts = urlsplit(normalized)
        return normalized if parts.scheme == "https" or is_loopback_host(parts.hostname or "") else None
    return None


def _parse_port(target: Any) -> int | None:
    """Return the port of `http://localhost:8000`, `localhost:8000`, `8000` or 8000; else the scheme's default."""
    text = str(target)
    if text.isdecimal():
        text = f"localhost:{text}"
    with suppress(ValueError):
        parts = urlsplit(text if "://" in text else f"//{text}")
        return parts.port or DEFAULT_PORTS.get(parts.scheme)
    return None
