"""The provider: can it be reached, does it know our key, is there money left, do its clock and ours agree?"""

from __future__ import annotations

from collections.abc import Sequence
from email.utils import parsedate_to_datetime
from typing import Final

from broker.bootstrap import provider_for
from broker.catalog import Catalog
from broker.doctor.context import DoctorContext
from broker.doctor.findings import Finding, failed, ok, skipped, warning
from broker.errors import NotSent, ProviderError
from broker.net.api_client import HttpResponse
from broker.providers.addresses import adapter_for
from broker.providers.kie.adapter import DIALECT

SANDBOX: Final = "the sandbox provider is used: no key, no cost, pretend pictures"
NTP: Final = "set the clock of this machine by NTP (Linux: timedatectl set-ntp true)"
WARN_SKEW: Final = 120.0
MOST_SKEW: Final = 300.0
"""Seconds; signatures that seem older are refused (`webhooks.signatures.base`)."""
FEW_IMAGES: Final = 25


async def provider(context: DoctorContext) -> Sequence[Finding]:
    """Reachable, without a key; and what time it is there."""
    if context.settings.sandboxed:
        return [skipped("provider", SANDBOX), skipped("clock", "the sandbox goes by this very clock")]
    began = context.clock.now()
    reached, answer = await _reach("provider", "NANO_BANANA_API_URL", _base(context), context)
    return [reached, _clock(answer, (began + context.clock.now()) / 2)]


async def upload(context: DoctorContext) -> Sequence[Finding]:
    """Where references go that the provider cannot fetch from us."""
    name = "file upload"
    if context.settings.sandboxed:
        return [skipped(name, SANDBOX)]
    if adapter_for(context.settings.api_url)[0] != "kie":
        return [skipped(name, "the older dialect has none: it fetches references from our public address")]
    finding, _ = await _reach(name, "NANO_BANANA_UPLOAD_URL", context.settings.upload_url, context)
    return [finding]


async def account(context: DoctorContext) -> Sequence[Finding]:
    """Key and credits, by the one question that is free."""
    if context.settings.sandboxed:
        cure = "for real images put your kie.ai key into NANO_BANANA_API_KEY"
        return [warning("key", f"NANO_BANANA_API_KEY is not set: {SANDBOX}", cure), skipped("credits", SANDBOX)]
    catalog = Catalog.load()
    try:
        left = await provider_for(context.settings, context.client, catalog, context.clock).balance()
    except ProviderError as error:
        return _refused(error)
    if left is None:
        why = "the older dialect has no question that is free: the first order will tell"
        return [skipped("key", why), skipped("credits", why)]
    return [ok("key", "accepted"), _credits(left, catalog.price(DIALECT, "nano-banana", "text-to-image", None) or 1.0)]


def _refused(error: ProviderError) -> Sequence[Finding]:
    if error.code == "provider_auth":
        cure = "copy the key anew from https://kie.ai/api-key into NANO_BANANA_API_KEY"
        return [
            failed("key", "the provider does not accept NANO_BANANA_API_KEY", cure),
            skipped("credits", "the provider tells them only to a key that it accepts"),
        ]
    if error.code == "provider_credits":
        return [ok("key", "accepted"), failed("credits", "used up", _TOP_UP)]
    if error.permanent:
        cure = "is NANO_BANANA_API_URL right? If orders work, this does no harm"
        return [
            warning("key", f"could not be asked about: {error}", cure),
            skipped("credits", "could not be asked for"),
        ]
    why = f"could not be asked about: {error}"
    return [skipped("key", why), skipped("credits", "could not be asked for")]


_TOP_UP: Final = "top up your account at https://kie.ai/pricing"


def _credits(left: float, price: float) -> Finding:
    images = max(0, int(left / price))
    found = f"{left:g}, enough for about {images} images"
    if left < price:
        return failed("credits", f"{left:g}, not enough for an image", _TOP_UP)
    return ok("credits", found) if images >= FEW_IMAGES else warning("credits", found, _TOP_UP)


# -- reaching it


def _base(context: DoctorContext) -> str:
    return adapter_for(context.settings.api_url)[1]


async def _reach(name: str, variable: str, url: str, context: DoctorContext) -> tuple[Finding, HttpResponse | None]:
    """Any answer will do: nobody says what a base address answers."""
    try:
        answer = await context.client.request("GET", url)
    except ProviderError as error:
        found, cure = _obstacle(error, variable)
        return failed(name, f"{url} {found}", cure), None
    if answer.status >= 500:
        return warning(
            name, f"{url} answers HTTP {answer.status}", "it has trouble of its own: try again later"
        ), answer
    return ok(name, f"{url} answers"), answer


def _obstacle(error: ProviderError, variable: str) -> tuple[str, str]:
    match error.at if isinstance(error, NotSent) else "answer":
        case "name":
            return (
                "has no address: its name is unknown",
                f"is {variable} spelt right? Does this machine have a network and a name server?",
            )
        case "tls":
            return (
                "cannot prove who it is (TLS)",
                "is the clock of this machine right? A proxy that opens TLS on the way must let this host through",
            )
        case "time-out":
            return "lets us wait for a connection", "let this machine out to it: a firewall swallows what we send"
        case "connection" | None:
            return "takes no connection", f"is the port in {variable} right? Does a firewall let this machine out?"
    return "takes the connection, but gives no sound answer", f"is {variable} right? If so, try again later"


# -- the clock


def _clock(answer: HttpResponse | None, now: float) -> Finding:
    there = _date(answer)
    if there is None:
        return skipped("clock", "the provider does not tell the time")
    skew = now - there
    found = f"{abs(skew):.0f} seconds {'ahead of' if skew > 0 else 'behind'} the provider's"
    if abs(skew) > MOST_SKEW:
        return failed("clock", f"{found}: callbacks are refused from {MOST_SKEW:.0f} seconds on", NTP)
    return warning("clock", found, NTP) if abs(skew) > WARN_SKEW else ok("clock", found)


def _date(answer: HttpResponse | None) -> float | None:
    """What time it was there; a cache in between says how long ago that was."""
    headers = answer.headers if answer else {}
    age = headers.get("age", "")
    try:
        return parsedate_to_datetime(headers.get("date", "")).timestamp() + (int(age[:9]) if age.isdecimal() else 0)
    except (ValueError, TypeError, OverflowError, IndexError):
        return None
