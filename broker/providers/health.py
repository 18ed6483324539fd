"""Helpers for health checks: findings, reachability of a URL, and the difference between two clocks."""

from __future__ import annotations

from collections.abc import Sequence
from email.utils import parsedate_to_datetime
from typing import Final

from broker.errors import NotSent, ProviderError
from broker.net.api_client import ApiClient, HttpResponse
from broker.providers.base import Finding, HealthCheck, Provider, ProviderContext
from broker.providers.responses import ProviderResponse
from webhooks.signatures.base import MAX_CLOCK_SKEW_SECONDS

NTP_CURE: Final = "set the clock of this machine by NTP (Linux: timedatectl set-ntp true)"
WARN_CLOCK_SKEW_SECONDS: Final = 120.0
LOW_BALANCE_IMAGES: Final = 25
"""A balance for fewer images is low."""

_FAILURES: Final = {
    "name": (
        "has no address: its name is unknown",
        "is {variable} spelt right? Does this machine have a network and a name server?",
    ),
    "tls": (
        "does not prove its identity (TLS)",
        "is the clock of this machine right? A proxy that opens TLS on the way must let this host through",
    ),
    "time-out": ("does not respond to connections", "let this machine out to it: a firewall drops the packets"),
    "connection": ("takes no connection", "is the port in {variable} right? Does a firewall let this machine out?"),
    "answer": ("takes the connection, but gives no sound answer", "is {variable} right? If so, try again later"),
}
"""Finding and cure by the stage that a request reached."""


def ok(name: str, found: str) -> Finding:
    return Finding(name=name, status="ok", found=found)


def warning(name: str, found: str, cure: str) -> Finding:
    """Return a finding about what works now and may stop working."""
    return Finding(name=name, status="warning", found=found, cure=cure)


def failed(name: str, found: str, cure: str) -> Finding:
    return Finding(name=name, status="failed", found=found, cure=cure)


def skipped(name: str, why: str) -> Finding:
    return Finding(name=name, status="skipped", found=why)


async def check_reachable(name: str, variable: str, url: str, client: ApiClient) -> tuple[Finding, HttpResponse | None]:
    """Request a URL; any response below 500 will do, because base URLs answer anything. variable: that sets it."""
    try:
        response = await client.request("GET", url)
    except ProviderError as error:
        found, cure = explain_failure(error)
        return failed(name, f"{url} {found}", cure.format(variable=variable)), None
    if response.status >= 500:
        return warning(name, f"{url} answers HTTP {response.status}", "its server has an error: try again later"), None
    return ok(name, f"{url} answers"), response


async def check_account(variable: str, url: str, page: str, context: ProviderContext) -> Finding:
    """Check an API key with a GET that costs nothing. variable: that sets the key; page: where keys are made."""
    secret = context.api_key.get_secret_value() if context.api_key else ""
    try:
        response = await context.client.request("GET", url, headers={"Authorization": f"Bearer {secret}"})
    except ProviderError as error:
        return skipped("key", f"not verified: {error}")
    code = ProviderResponse.from_http(response, context.now()).code  # the body's, where it contradicts HTTP 200
    if code in {401, 403}:
        cure = f"copy the key again from {page} into {variable}"
        return failed("key", f"the provider does not accept {variable}", cure)
    return ok("key", "accepted") if code == 200 else skipped("key", f"not verified: its answer has code {code}")


def account_checks(
    *, url_variable: str, key_variable: str, account_path: str, page: str, needs: frozenset[str]
) -> tuple[HealthCheck, ...]:
    """Return the checks of an account: its API is reachable, the clocks agree, and the key is accepted.

    account_path: of a free request that needs the key, below the base URL. page: where keys are made.
    """

    async def check_provider(provider: Provider, context: ProviderContext) -> Sequence[Finding]:
        began = context.now()
        found, response = await check_reachable("provider", url_variable, provider.base_url, context.client)
        return [found, check_clock(response, (began + context.now()) / 2)]

    async def check_key(provider: Provider, context: ProviderContext) -> Sequence[Finding]:
        return [await check_account(key_variable, f"{provider.base_url}{account_path}", page, context)]

    return (
        HealthCheck(name="provider", run=check_provider, needs=needs),
        HealthCheck(name="key", run=check_key, needs=needs),
    )


def explain_failure(error: ProviderError | None) -> tuple[str, str]:
    """Return what a host did instead of answering a request, and the cure."""
    return _FAILURES[error.at or "connection" if isinstance(error, NotSent) else "answer"]


def check_clock(response: HttpResponse | None, now: float) -> Finding:
    """Compare this machine's clock with the Date of a response. now: seconds since the epoch, when it was sent."""
    there = _sent_at(response)
    if there is None:
        return skipped("clock", "the provider does not send its time")
    skew = now - there
    found = f"{abs(skew):.0f} seconds {'ahead of' if skew > 0 else 'behind'} the provider's"
    if abs(skew) > MAX_CLOCK_SKEW_SECONDS:
        return failed("clock", f"{found}: callbacks are rejected from {MAX_CLOCK_SKEW_SECONDS} seconds on", NTP_CURE)
    return warning("clock", found, NTP_CURE) if abs(skew) > WARN_CLOCK_SKEW_SECONDS else ok("clock", found)


def _sent_at(response: HttpResponse | None) -> float | None:
    """Return when the response was generated, its age in a cache added; None without a readable Date."""
    headers = response.headers if response else {}
    age = headers.get("age", "")
    try:
        return parsedate_to_datetime(headers.get("date", "")).timestamp() + (int(age[:9]) if age.isdecimal() else 0)
    except (ValueError, TypeError, OverflowError, IndexError):
        return None
