"""Where the internet finds us: as configured, else what a tunnel on this machine says of itself.

ngrok's agent lists its endpoints (new) or tunnels (old) with the local port each leads to; cloudflared's metrics
server names the host of a quick tunnel, on the first free of five ports. Without an answer we are not reachable, and
results are polled for.

The agents are believed as far as this machine is: whoever may listen at their ports here could send our callbacks
elsewhere. On a machine shared with strangers WEBHOOK_BASE_URL is the answer.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final, Literal
from urllib.parse import urlsplit

from broker.errors import EgressBlocked, ProviderError, SettingsError
from broker.net.api_client import ApiClient
from broker.net.hosts import is_loopback_host
from broker.net.url_policy import parse_url

CLOUDFLARED: Final = tuple(f"http://127.0.0.1:{port}" for port in range(20241, 20246))
"""Where cloudflared serves its metrics when nothing else is configured."""

ASK_SECONDS: Final = 1.0

Agent = Literal["ngrok", "cloudflared"]


@dataclass(frozen=True, kw_only=True)
class PublicUrl:
    """Our address as the internet sees it, without a slash at the end.

    source: `local` is no public one; the provider runs on this machine, too.
    """

    url: str
    source: Literal["configured", "ngrok", "cloudflared", "local"]


@dataclass(kw_only=True)
class PublicAddress:
    """The address of the moment, which the next order gives to its provider.

    current: None = we are not reachable, and providers are asked. since: from when on orders had this address; what
    was sent before had another one, or nobody can tell.
    """

    current: PublicUrl | None = None
    since: float = 0.0

    @property
    def base(self) -> str | None:
        return self.current.url if self.current else None


@dataclass(frozen=True, kw_only=True)
class Tunnel:
    """What an agent says of one tunnel. url: as it says it. port: of this machine, None where it does not say."""

    url: str
    port: int | None
    agent: Agent


@dataclass(frozen=True, kw_only=True)
class Agents:
    """The tunnel agents of this machine. port: ours. Each has `seconds` to answer; all are asked at once.

    Nothing is raised for strange answers: whoever answers at these ports need not be a tunnel.
    """

    client: ApiClient
    tunnel_api: str
    port: int
    cloudflared: Sequence[str] = CLOUDFLARED
    seconds: float = ASK_SECONDS

    async def tunnels(self) -> list[Tunnel]:
        """Everything they name, wherever it leads."""
        agent = self.tunnel_api.rstrip("/")
        ngrok = [f"{agent}/api/endpoints", f"{agent}/api/tunnels"] if agent else []
        quick = [f"{base}/quicktunnel" for base in self.cloudflared]
        answers = await asyncio.gather(*(_ask(self.client, url, self.seconds) for url in [*ngrok, *quick]))
        found = [tunnel for answer in answers[: len(ngrok)] for tunnel in _ngrok(answer)]
        found += [tunnel for answer in answers[len(ngrok) :] for tunnel in _cloudflared(answer)]
        return list(dict.fromkeys(found))

    async def ours(self) -> list[PublicUrl]:
        """The addresses that may be ours, the likeliest first."""
        return list(candidates(await self.tunnels(), self.port))


def candidates(tunnels: Sequence[Tunnel], port: int) -> Iterator[PublicUrl]:
    """ngrok's tunnels to our port, then quick tunnels: they may lead to anybody, and must prove that it is us."""
    for tunnel in tunnels:
        url = _public(tunnel.url)
        if url is not None and (tunnel.port == port or tunnel.agent == "cloudflared"):
            yield PublicUrl(url=url, source=tunnel.agent)


def check_configured(text: str) -> str:
    """WEBHOOK_BASE_URL as we use it; a path in front of ours is kept."""
    text = text.strip()
    try:
        link = parse_url(text)
    except EgressBlocked as exc:
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


def _ngrok(answer: Any) -> Iterator[Tunnel]:
    for entry in [*_entries(answer, "endpoints"), *_entries(answer, "tunnels")]:
        url = entry.get("url") or entry.get("public_url")
        target = _field(entry.get("upstream"), "url") or _field(entry.get("config"), "addr")
        if isinstance(url, str):
            yield Tunnel(url=url, port=_port(target), agent="ngrok")


def _cloudflared(answer: Any) -> Iterator[Tunnel]:
    hostname = _field(answer, "hostname")
    if isinstance(hostname, str) and hostname:
        scheme = "http" if is_loopback_host(hostname.rpartition(":")[0]) else "https"
        yield Tunnel(url=f"{scheme}://{hostname}", port=None, agent="cloudflared")


def _entries(answer: Any, name: str) -> list[dict[str, Any]]:
    entries = _field(answer, name)
    return [entry for entry in entries if isinstance(entry, dict)] if isinstance(entries, list) else []


def _field(value: Any, name: str) -> Any:
    return value.get(name) if isinstance(value, dict) else None


def _public(url: str) -> str | None:
    """An https address as we use it, or None for anything else (tcp://, http://, nonsense).

    http:// would show our tokens to everybody on the way; only where there is no way, on this machine, it will do.
    """
    with suppress(SettingsError):
        address = check_configured(url)
        parts = urlsplit(address)
        return address if parts.scheme == "https" or is_loopback_host(parts.hostname or "") else None
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
