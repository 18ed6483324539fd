"""Health checks of an account at kie.ai, and of the sandbox in its place."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from broker.errors import ProviderError
from broker.providers.base import Finding, HealthCheck, Provider, ProviderContext
from broker.providers.health import LOW_BALANCE_IMAGES, check_clock, check_reachable, failed, ok, skipped, warning

UPSTREAM_FIELDS: Final = frozenset({"kie_keys", "api_url", "upload_url"})
SANDBOX: Final = "the sandbox provider is used: no key, no cost, synthetic images"
_TOP_UP: Final = "top up your account at https://kie.ai/pricing"


async def check_provider(provider: Provider, context: ProviderContext) -> Sequence[Finding]:
    """Check that the API is reachable, without a key, and compare the clocks."""
    began = context.now()
    url = provider.base_url
    reachable, response = await check_reachable("provider", "NANO_BANANA_API_URL", url, context.client)
    return [reachable, check_clock(response, (began + context.now()) / 2)]


async def check_upload(_: Provider, context: ProviderContext) -> Sequence[Finding]:
    """Check that the file host is reachable; references are uploaded there if kie.ai cannot fetch them."""
    url = context.settings.upload_url
    return [(await check_reachable("file upload", "NANO_BANANA_UPLOAD_URL", url, context.client))[0]]


async def check_account(provider: Provider, context: ProviderContext) -> Sequence[Finding]:
    """Check key and credits with the one request that is free."""
    try:
        balance = await provider.balance()
    except ProviderError as error:
        return _balance_error(error)
    price = context.catalog.price(context.name, "nano-banana", "text-to-image", None) or 1.0
    return [ok("key", "accepted"), _credits(balance or 0.0, price)]


async def check_signature(_: Provider, context: ProviderContext) -> Sequence[Finding]:
    """Report how callbacks are verified."""
    if context.settings.webhook_key is not None:
        return [ok("webhook key", "NANO_BANANA_WEBHOOK_KEY is set: callbacks need its signature, or our token")]
    return [ok("webhook key", "not set: callbacks are verified by the token in their URL, which is enough")]


async def report_sandbox(_: Provider, __: ProviderContext) -> Sequence[Finding]:
    """Report that the sandbox takes the place of an account."""
    return [
        skipped("provider", SANDBOX),
        skipped("clock", "the sandbox uses the clock of this machine"),
        warning(
            "key",
            f"NANO_BANANA_API_KEY is not set: {SANDBOX}",
            "for real images put your kie.ai key into NANO_BANANA_API_KEY",
        ),
        skipped("credits", SANDBOX),
        skipped("file upload", SANDBOX),
    ]


def _balance_error(error: ProviderError) -> Sequence[Finding]:
    if error.code == "provider_auth":
        cure = "copy the key again from https://kie.ai/api-key into NANO_BANANA_API_KEY"
        return [
            failed("key", "the provider does not accept NANO_BANANA_API_KEY", cure),
            skipped("credits", "shown only with a key that the provider accepts"),
        ]
    if error.code == "provider_credits":
        return [ok("key", "accepted"), failed("credits", "used up", _TOP_UP)]
    found = f"not verified: {error}"
    unknown = skipped("credits", "not available")
    if error.permanent:
        return [warning("key", found, "is NANO_BANANA_API_URL right? If orders work, this is harmless"), unknown]
    return [skipped("key", found), unknown]


def _credits(balance: float, price: float) -> Finding:
    images = max(0, int(balance / price))
    if balance < price:
        return failed("credits", f"{balance:g}, not enough for an image", _TOP_UP)
    found = f"{balance:g}, enough for about {images} images"
    return ok("credits", found) if images >= LOW_BALANCE_IMAGES else warning("credits", found, _TOP_UP)


CHECKS: Final = (
    HealthCheck(name="provider", run=check_provider, needs=UPSTREAM_FIELDS),
    HealthCheck(name="key", run=check_account, needs=UPSTREAM_FIELDS),
    HealthCheck(name="file upload", run=check_upload, needs=UPSTREAM_FIELDS),
    HealthCheck(name="webhook key", run=check_signature, needs=frozenset({"webhook_key"})),
)

SANDBOX_CHECKS: Final = (HealthCheck(name="provider", run=report_sandbox, needs=UPSTREAM_FIELDS), CHECKS[-1])
