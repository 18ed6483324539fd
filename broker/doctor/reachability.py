"""Inbound checks: a running broker, the public URL and back, and access that is too wide."""

from __future__ import annotations

import asyncio
import re
import socket
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, closing, suppress
from typing import Any, Final
from urllib.parse import urlsplit

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from broker.callbacks.probe import ProbeResult, ProbeVerdict, ReachabilityProbe
from broker.callbacks.public_url import PublicUrl, check_configured
from broker.callbacks.tunnels import Tunnel, TunnelAgents, candidate_urls
from broker.doctor.accounts import has_accounts
from broker.doctor.context import DoctorContext
from broker.errors import NotSent, ProviderError, SettingsError
from broker.net.api_client import HttpResponse
from broker.net.hosts import is_loopback_host, local_base_url
from broker.providers.base import Finding
from broker.providers.health import explain_failure, failed, ok, skipped, warning
from broker.server.sockets import explain_bind_error, open_socket, port_in_use
from broker.settings import Settings
from storage.errors import StorageError

LOCAL_PROBE_SECONDS: Final = 3.0
_RECEIVED_CALLBACKS: Final = r'^broker_callbacks_total\{[^}]*verification="(?:accept|recheck)"[^}]*\} (\S+)$'
START_TUNNEL: Final = "start ngrok or cloudflared (README, Tunnels), or set WEBHOOK_BASE_URL"


async def check_inbound(context: DoctorContext) -> Sequence[Finding]:
    """Check the broker's port and public URL; if no broker runs, a temporary server answers the probe."""
    settings = context.settings
    if settings.port == 0:
        return [skipped("broker", "BROKER_PORT is 0: the port changes with every start")]
    local = await context.probe.probe_url(local_base_url(settings.host, settings.port), LOCAL_PROBE_SECONDS)
    agents = TunnelAgents(
        client=context.client,
        tunnel_api=settings.tunnel_api,
        port=settings.port,
        cloudflared=context.cloudflared,
    )
    tunnels = await agents.list_tunnels()
    async with _ensure_answer(context, local) as obstacle:
        broker = [obstacle] if obstacle else await _check_broker(context, local)
        public = await _check_public_url(context, tunnels)
    return [*broker, *public, *_check_tunnel_ports(settings, tunnels), *_check_exposure(settings, tunnels)]


@asynccontextmanager
async def _ensure_answer(context: DoctorContext, local: ProbeResult) -> AsyncIterator[Finding | None]:
    """Yield None while our port answers probes with our secret, or a finding why it cannot."""
    settings = context.settings
    cure = "stop it, or choose another BROKER_PORT"
    match local:
        case ProbeResult(verdict=ProbeVerdict.VERIFIED):
            yield None
        case ProbeResult(verdict=ProbeVerdict.OTHER_SERVER, is_broker=True):
            found = f"the broker at port {settings.port} has another secret than this folder"
            yield failed("broker", found, "run this where it was started, with its SECRET_KEY or BROKER_DATA_DIR")
        case ProbeResult(verdict=ProbeVerdict.OTHER_SERVER):
            yield failed("broker", port_in_use(settings.port), cure)
        case ProbeResult(error=NotSent(at="connection")):
            try:
                sock = open_socket(settings.host, settings.port)
            except (OSError, UnicodeError) as error:
                failure = explain_bind_error(settings.host, settings.port, error)
                cure = f"{failure.cure.partition(' (--')[0]}, in {failure.variable}"
                yield failed("broker", failure.problem, cure)
                return
            async with probe_server(sock, context.probe):
                yield None
        case _:
            found = f"{port_in_use(settings.port)}, or by a broker that hangs: it does not answer"
            yield failed("broker", found, cure)


@asynccontextmanager
async def probe_server(sock: socket.socket, probe: ReachabilityProbe) -> AsyncIterator[None]:
    """Answer the reachability probe in place of a broker that does not run, while the block runs."""

    async def answer_probe(request: Request) -> JSONResponse:
        answer = probe.challenge.answer(request.query_params.get("probe", ""))
        return JSONResponse({"status": "ok", "probe": answer}, status_code=200 if answer else 404)

    app = Starlette(routes=[Route(probe.path, answer_probe, methods=["GET"])])
    server = uvicorn.Server(
        uvicorn.Config(app, lifespan="off", ws="none", log_config=None, timeout_graceful_shutdown=1)
    )
    with closing(sock):
        serving = asyncio.create_task(server.serve([sock]), name="probe_server")
        try:
            yield
        finally:
            server.should_exit = True
            await serving


async def _check_broker(context: DoctorContext, local: ProbeResult) -> Sequence[Finding]:
    """Query a running broker. Our API key is sent only to a server that proved to be ours."""
    base = local_base_url(context.settings.host, context.settings.port)
    if not local.is_verified:
        why = f"none runs at {base}"
        return [skipped("broker", why), skipped("callbacks", why)]
    key = _own_key(context.settings)
    ready, metrics = await asyncio.gather(_get(context, f"{base}/ready", key), _get(context, f"{base}/metrics", key))
    return [_judge_readiness(ready, base, has_key=key is not None), _judge_callbacks(context, metrics)]


def _own_key(settings: Settings) -> str | None:
    """Return a key for the broker configured here: the operator's, or else BROKER_KEY unless it is for another one."""
    commands_key = None if settings.broker_url else settings.broker_key
    key = settings.api_keys[0] if settings.api_keys else commands_key
    return key.get_secret_value() if key else None


async def _get(context: DoctorContext, url: str, key: str | None) -> HttpResponse | None:
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    try:
        return await context.client.request("GET", url, headers=headers)
    except ProviderError:
        return None


def _judge_readiness(response: HttpResponse | None, base: str, *, has_key: bool) -> Finding:
    name = "broker"
    if response is None:
        found = f"the one at {base} hangs: it does not answer the readiness check"
        return failed(name, found, "see its log; restart it")
    if response.status == 401 and not has_key:
        found = f"runs at {base}, and says more to admins only: it has users or keys, and no key is set here"
        return warning(name, found, "set the first of its BROKER_API_KEYS, or an admin's API key as BROKER_KEY")
    if response.status == 403:
        found = f"runs at {base}, and says more to admins only: our key is not an admin's"
        return warning(name, found, "set an admin's API key as BROKER_KEY")
    if response.status == 401:
        found = f"runs at {base}, but with other settings: it does not accept our key"
        return warning(name, found, "restart it, or set the BROKER_API_KEYS it was started with")
    if response.status != 200:
        found = f"runs at {base}, but is not ready: {_unready_parts(response)}"
        return failed(name, found, "see the other lines, and its log")
    return ok(name, f"runs at {base}, ready")


def _unready_parts(response: HttpResponse) -> str:
    try:
        checks: dict[str, Any] = response.json()["checks"]
        return ", ".join(f"{part}: {result}" for part, result in checks.items() if result != "ok")
    except (ProviderError, LookupError, TypeError, AttributeError):
        return f"HTTP {response.status}"


def _judge_callbacks(context: DoctorContext, response: HttpResponse | None) -> Finding:
    """Compare the callbacks received since the start with the results that had to be polled instead."""
    name = "callbacks"
    if response is None or response.status != 200:
        return skipped(name, "the running broker does not report them")
    page = response.body.decode("utf-8", "replace")
    received = _sum_samples(_RECEIVED_CALLBACKS, page)
    missing = _sum_samples(r"^broker_callbacks_missing_total\{[^}]*\} (\S+)$", page)
    found = f"{received:.0f} received; {missing:.0f} results had to be polled although a callback was expected"
    if missing and not received:
        advice = (package.signature_advice for package in context.registry.packages.values())
        return warning(name, f"none arrived: {found}", "; ".join(filter(None, ("see the public address", *advice))))
    return ok(name, found)


def _sum_samples(pattern: str, page: str) -> float:
    return sum(float(number) for number in re.findall(pattern, page, re.MULTILINE))


async def _check_public_url(context: DoctorContext, tunnels: Sequence[Tunnel]) -> Sequence[Finding]:
    settings = context.settings
    try:
        configured = settings.webhook_base_url and check_configured(settings.webhook_base_url)
    except SettingsError as error:
        return [failed("public address", str(error), "correct WEBHOOK_BASE_URL, or leave it empty")]
    candidates = candidate_urls(tunnels, settings.port)
    urls = [PublicUrl(url=configured, source="configured")] if configured else list(candidates)
    if not urls:
        if settings.sandboxed:
            return [skipped("public address", "none, and none is needed: the sandbox is on this machine")]
        found = f"none: the provider is polled every {settings.poll_every:g} seconds, which works and is slower"
        return [warning("public address", found, START_TUNNEL)]
    results = await asyncio.gather(*(context.probe.probe_url(url.url) for url in urls))
    judged = [_judge_probe(context, url, result) for url, result in zip(urls, results, strict=True)]
    passed = [finding for finding in judged if finding.status != "failed"]
    return passed[:1] or judged[:1]


def _judge_probe(context: DoctorContext, url: PublicUrl, result: ProbeResult) -> Finding:
    name, shown = "public address", f"{url.url} ({url.source})"
    if not result.is_verified:
        is_other = result.verdict == ProbeVerdict.OTHER_SERVER
        reason = f": {result.reason}" if is_other else f" {explain_failure(result.error)[0]}"
        return failed(name, shown + reason, _probe_cure(context, url, result))
    is_local, is_plain = _is_loopback_url(url.url), url.url.startswith("http://")
    providers = [pool.preferred for pool in context.registry.open_all().values()]
    if is_local and not all(_is_loopback_url(provider.base_url) for provider in providers):
        found = f"{shown} is this very machine: no provider can reach it"
        return warning(name, found, "set a public one in WEBHOOK_BASE_URL, or leave it empty")
    if is_plain and not is_local:
        found = f"{shown} leads to this broker, but without TLS callback tokens can be read on the way"
        return warning(name, found, "use https://")
    return ok(name, f"{shown} leads to this broker; round trip {result.seconds * 1000:.0f} ms")


def _is_loopback_url(url: str) -> bool:
    return is_loopback_host(urlsplit(url).hostname or "")


def _probe_cure(context: DoctorContext, url: PublicUrl, result: ProbeResult) -> str:
    if url.source != "configured":
        return f"restart {url.source}: its tunnel is dead or leads elsewhere. A running broker notices the new one"
    if result.verdict == ProbeVerdict.OTHER_SERVER:
        return "WEBHOOK_BASE_URL must lead to this broker: restart the tunnel or correct the proxy, or leave it empty"
    return (
        "start the tunnel or the proxy behind WEBHOOK_BASE_URL, or correct it. If only this machine cannot reach "
        f"its own public name, try from another one: curl {url.url}{context.probe.path}"
    )


def _check_tunnel_ports(settings: Settings, tunnels: Sequence[Tunnel]) -> Iterator[Finding]:
    other_ports = {str(tunnel.port) for tunnel in tunnels if tunnel.port not in {None, settings.port}}
    has_candidate = any(candidate_urls(tunnels, settings.port))
    if other_ports and not has_candidate and not settings.webhook_base_url:
        ports = ", ".join(sorted(other_ports))
        found = f"ngrok runs, but leads to port {ports}, and the broker is at {settings.port}"
        yield warning("tunnel", found, f"ngrok http {settings.port} (or with ngrok.yml), or set BROKER_PORT")


def _check_exposure(settings: Settings, tunnels: Sequence[Tunnel]) -> Iterator[Finding]:
    """Report access that is too wide: through a raw TCP tunnel every client appears to be on this machine."""
    urls = (tunnel.url for tunnel in tunnels if tunnel.port == settings.port)
    raw = [url for url in urls if url.startswith(("tcp://", "tls://"))]
    if raw and not settings.api_keys:
        found = f"{raw[0]} is a raw TCP tunnel: all its clients appear to be on this machine, and may order"
        yield failed("raw tunnel", found, "set BROKER_API_KEYS before using one, or use an http tunnel (ngrok.yml)")
    elif raw:
        yield ok("raw tunnel", f"{raw[0]}: a key is needed")
    is_exposed = settings.webhook_base_url or raw or any(candidate_urls(tunnels, settings.port))
    if settings.allow_anonymous and is_exposed:
        found = "BROKER_ALLOW_ANONYMOUS trusts every client, and the broker can be reached from the internet"
        yield failed("anonymous access", found, "unset BROKER_ALLOW_ANONYMOUS and set BROKER_API_KEYS")


async def check_access(context: DoctorContext) -> Sequence[Finding]:
    problems = list(_find_open_access(context.settings))
    return problems or [ok("access", await _describe_access(context))]


def _find_open_access(settings: Settings) -> Iterator[Finding]:
    is_exposed = not is_loopback_host(settings.host)
    if is_exposed and settings.allow_anonymous:
        found = f"every client that reaches {settings.host} may spend your credits (BROKER_ALLOW_ANONYMOUS)"
        yield warning("access", found, "set BROKER_API_KEYS instead, unless the network is private")
    elif is_exposed and not settings.api_keys:
        found = f"other machines reach {settings.host}, but may not order without an account: no key is set"
        yield warning("access", found, "set BROKER_API_KEYS, unless all of them log in")
    for origin in settings.cors_origins:
        parts = urlsplit(origin)
        if parts.scheme == "http" and not is_loopback_host(parts.hostname or ""):
            found = f"pages of {origin} may order, and without TLS they can be changed on the way"
            yield warning("origins", found, "serve the page over https://, and put that into BROKER_CORS_ORIGINS")


async def _describe_access(context: DoctorContext) -> str:
    settings = context.settings
    if settings.allow_anonymous:
        return "every program on this machine may order"
    if settings.api_keys:
        return f"a key is needed ({len(settings.api_keys)} known)"
    with suppress(StorageError):  # which the check of the database reports
        if await has_accounts(context):
            return "a login or an API key is needed, for direct calls from this machine, too"
    return "direct calls from this machine only, until there is a user or an API key"
