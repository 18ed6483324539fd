"""The way in: a running broker, the public address and back, and tunnels that let in more than they should."""

from __future__ import annotations

import asyncio
import errno
import re
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any, Final
from urllib.parse import urlsplit

from broker.doctor.findings import Finding, failed, ok, skipped, warning
from broker.doctor.patient import Patient
from broker.doctor.stand_in import standing_in
from broker.errors import NotSent, ProviderError, SettingsError
from broker.net.api_client import HttpResponse
from broker.net.hosts import is_loopback_host, local_base_url
from broker.probing import GREETING, RoundTrip, Verdict
from broker.public_url import Agents, PublicUrl, Tunnel, candidates, check_configured
from broker.settings import Settings
from webhooks.tokens import ChallengeResponse

NEAR_SECONDS: Final = 3.0
START: Final = "start ngrok or cloudflared (README, Tunnels), or set WEBHOOK_BASE_URL"


async def way_in(patient: Patient) -> Sequence[Finding]:
    """Everything that hangs on who answers at our port. If nobody does, we do, for the moment."""
    settings = patient.settings
    if settings.port == 0:
        return [skipped("broker", "BROKER_PORT is 0: its port is another one each time")]
    at_home = await patient.prober.probe(local_base_url(settings.host, settings.port), NEAR_SECONDS)
    tunnels = await _agents(patient).tunnels()
    async with _answering(patient, at_home) as obstacle:
        broker = [obstacle] if obstacle else await _broker(patient, at_home)
        address = await _address(patient, tunnels)
    return [*broker, *address, *_elsewhere(settings, tunnels), *_open_ways(settings, tunnels)]


def _agents(patient: Patient) -> Agents:
    return Agents(
        client=patient.client,
        tunnel_api=patient.settings.tunnel_api,
        port=patient.settings.port,
        cloudflared=patient.cloudflared,
    )


# -- at home


@asynccontextmanager
async def _answering(patient: Patient, at_home: RoundTrip) -> AsyncIterator[Finding | None]:
    """While the block runs somebody answers at our port who can prove it; or why nobody does."""
    settings = patient.settings
    taken = f"port {settings.port} is taken by another program"
    cure = "stop it, or choose another BROKER_PORT"
    match at_home:
        case RoundTrip(verdict=Verdict.US):
            yield None
        case RoundTrip(verdict=Verdict.STRANGER, broker=True):
            found = f"the broker at port {settings.port} has another secret than this folder"
            yield failed("broker", found, "run this where it was started, with its SECRET_KEY or BROKER_DATA_DIR")
        case RoundTrip(verdict=Verdict.STRANGER):
            yield failed("broker", taken, cure)
        case RoundTrip(error=NotSent(at="connection")):
            async with _stand_in(patient) as trouble:
                yield None if trouble is None else failed("broker", *trouble)
        case _:
            yield failed("broker", f"{taken}, or by a broker that hangs: it gives no answer", cure)


@asynccontextmanager
async def _stand_in(patient: Patient) -> AsyncIterator[tuple[str, str] | None]:
    settings = patient.settings
    async with AsyncExitStack() as stack:
        trouble = None
        try:
            await stack.enter_async_context(
                standing_in(settings.host, settings.port, ChallengeResponse(patient.secret))
            )
        except OSError as error:
            trouble = _unbindable(settings, error)
        yield trouble


def _unbindable(settings: Settings, error: OSError) -> tuple[str, str]:
    match error.errno:
        case errno.EADDRINUSE:
            return f"port {settings.port} is taken by another program", "stop it, or choose another BROKER_PORT"
        case errno.EACCES:
            return f"port {settings.port} needs more rights than we have", "choose a BROKER_PORT above 1023"
        case _:
            return f"{settings.host} is no address of this machine", "set BROKER_HOST to 127.0.0.1, or 0.0.0.0 for all"


async def _broker(patient: Patient, at_home: RoundTrip) -> Sequence[Finding]:
    """What a running broker says of itself. Our key goes to nobody who did not prove to be ours."""
    name, base = "broker", local_base_url(patient.settings.host, patient.settings.port)
    if at_home.verdict != Verdict.US:
        why = f"none runs at {base}"
        return [skipped(name, why), skipped("callbacks", why)]
    ready, counted = await asyncio.gather(_ask(patient, f"{base}/ready"), _ask(patient, f"{base}/metrics"))
    return [_ready(ready, base), _callbacks(counted)]


async def _ask(patient: Patient, url: str) -> HttpResponse | None:
    keys = patient.settings.api_keys
    headers = {"Authorization": f"Bearer {keys[0].get_secret_value()}"} if keys else {}
    try:
        return await patient.client.request("GET", url, headers=headers)
    except ProviderError:
        return None


def _ready(answer: HttpResponse | None, base: str) -> Finding:
    name = "broker"
    if answer is None:
        return failed(name, f"the one at {base} hangs: it does not say whether it is ready", "see its log; restart it")
    if answer.status == 200:
        return ok(name, f"runs at {base}, ready")
    if answer.status == 401:
        return warning(
            name,
            f"runs at {base}, but with other settings: it does not know our key",
            "restart it, or set the BROKER_API_KEYS it was started with",
        )
    return failed(name, f"runs at {base}, but is not ready: {_blame(answer)}", "see the other lines, and its log")


def _blame(answer: HttpResponse) -> str:
    try:
        checks: dict[str, Any] = answer.json()["checks"]
        return ", ".join(f"{part}: {said}" for part, said in checks.items() if said != "ok")
    except (ProviderError, LookupError, TypeError, AttributeError):
        return f"HTTP {answer.status}"


def _callbacks(answer: HttpResponse | None) -> Finding:
    """Since it started: how many callbacks came, and how many ends had to be asked for instead."""
    name = "callbacks"
    if answer is None or answer.status != 200:
        return skipped(name, "the running broker does not tell")
    page = answer.body.decode("utf-8", "replace")
    heard = _sum(r'^broker_callbacks_total\{[^}]*verdict="(?:accept|recheck)"[^}]*\} (\S+)$', page)
    missed = _sum(r"^broker_callbacks_missing_total\{[^}]*\} (\S+)$", page)
    found = f"{heard:.0f} came; {missed:.0f} ends had to be asked for although a callback was to tell them"
    if missed and not heard:
        cure = "see the public address; does NANO_BANANA_WEBHOOK_KEY equal the webhookHmacKey at kie.ai?"
        return warning(name, f"not one came: {found}", cure)
    return ok(name, found)


def _sum(pattern: str, page: str) -> float:
    return sum(float(number) for number in re.findall(pattern, page, re.MULTILINE))


# -- from outside


async def _address(patient: Patient, tunnels: Sequence[Tunnel]) -> Sequence[Finding]:
    """There and back."""
    settings = patient.settings
    try:
        urls = list(_urls(settings, tunnels))
    except SettingsError as error:
        return [failed("public address", str(error), "correct WEBHOOK_BASE_URL, or leave it empty")]
    if not urls:
        if settings.sandboxed:
            return [skipped("public address", "none, and none is needed: the sandbox is on this machine")]
        found = f"none: the provider is asked every {settings.poll_every:g} seconds, which works and is slower"
        return [warning("public address", found, START)]
    trips = await asyncio.gather(*(patient.prober.probe(url.url) for url in urls))
    judged = [_judged(settings, url, trip) for url, trip in zip(urls, trips, strict=True)]
    arrived = [finding for finding in judged if finding.status != "failed"]
    return arrived[:1] or judged[:1]


def _urls(settings: Settings, tunnels: Sequence[Tunnel]) -> Iterator[PublicUrl]:
    if settings.webhook_base_url:
        yield PublicUrl(url=check_configured(settings.webhook_base_url), source="configured")
    else:
        yield from candidates(tunnels, settings.port)


def _judged(settings: Settings, url: PublicUrl, trip: RoundTrip) -> Finding:
    name, shown = "public address", f"{url.url} ({url.source})"
    if trip.verdict != Verdict.US:
        return failed(name, f"{shown}: {_trouble(trip)}", _remedy(url, trip))
    near, plain = _is_here(url.url), url.url.startswith("http://")
    if near and not _is_here(settings.api_url):
        found = f"{shown} is this very machine: no provider can reach it"
        return warning(name, found, "set a public one in WEBHOOK_BASE_URL, or leave it empty")
    if plain and not near:
        found = f"{shown} leads to us, but everybody on the way can read callback tokens"
        return warning(name, found, "use https://")
    return ok(name, f"{shown} leads to us and back in {trip.seconds * 1000:.0f} ms")


def _is_here(url: str) -> bool:
    return is_loopback_host(urlsplit(url).hostname or "")


def _trouble(trip: RoundTrip) -> str:
    if trip.verdict == Verdict.STRANGER:
        return trip.why
    at = trip.error.at if isinstance(trip.error, NotSent) else None
    return {
        "name": "its name is unknown",
        "connection": "nobody takes the connection",
        "tls": "it cannot prove who it is (TLS)",
        "time-out": "no connection in time",
    }.get(at or "", "no sound answer")


def _remedy(url: PublicUrl, trip: RoundTrip) -> str:
    if url.source != "configured":
        return f"restart {url.source}: its tunnel is dead or leads elsewhere. A running broker notices the new one"
    if trip.verdict == Verdict.STRANGER:
        return "WEBHOOK_BASE_URL must lead to this broker: restart the tunnel or correct the proxy, or leave it empty"
    return (
        "start the tunnel or the proxy behind WEBHOOK_BASE_URL, or correct it. If only this machine cannot reach "
        f"its own public name, try from another one: curl {url.url}{GREETING}"
    )


# -- tunnels to others, and for others


def _elsewhere(settings: Settings, tunnels: Sequence[Tunnel]) -> Iterator[Finding]:
    others = {str(t.port) for t in tunnels if t.port not in {None, settings.port}}
    ours = any(candidates(tunnels, settings.port))
    if others and not ours and not settings.webhook_base_url:
        found = f"ngrok runs, but leads to port {', '.join(sorted(others))}, and the broker is at {settings.port}"
        yield warning("tunnel", found, f"ngrok http {settings.port} (or with ngrok.yml), or set BROKER_PORT")


def _open_ways(settings: Settings, tunnels: Sequence[Tunnel]) -> Iterator[Finding]:
    """Through a raw TCP tunnel the internet looks like this very machine."""
    raw = [tunnel.url for tunnel in tunnels if tunnel.port == settings.port and _is_raw(tunnel.url)]
    if raw and not settings.api_keys:
        found = f"{raw[0]} is a raw TCP tunnel: everybody who finds it looks like this machine, and may order"
        yield failed("raw tunnel", found, "set BROKER_API_KEYS before using one, or use an http tunnel (ngrok.yml)")
    elif raw:
        yield ok("raw tunnel", f"{raw[0]}: a key is needed")
    ways = settings.webhook_base_url or raw or any(candidates(tunnels, settings.port))
    if settings.allow_anonymous and ways:
        found = "BROKER_ALLOW_ANONYMOUS trusts everybody, and there is a way in from the internet"
        yield failed("anonymous access", found, "unset BROKER_ALLOW_ANONYMOUS and set BROKER_API_KEYS")


def _is_raw(url: str) -> bool:
    return url.startswith(("tcp://", "tls://"))
