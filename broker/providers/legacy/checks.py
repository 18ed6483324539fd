"""Health checks of a service of the older dialect, which has no free request for key and balance."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from broker.providers.base import Finding, HealthCheck, HealthContext
from broker.providers.health import check_clock, check_reachable, ok, skipped

_NO_REQUEST: Final = "this dialect has no free request for it: the first order shows it"


async def check_provider(context: HealthContext) -> Sequence[Finding]:
    """Check that the API is reachable, without a key, and compare the clocks."""
    began = context.now()
    url = context.provider.base_url
    reachable, response = await check_reachable("provider", "NANO_BANANA_API_URL", url, context.client)
    return [reachable, check_clock(response, (began + context.now()) / 2)]


async def check_account(_: HealthContext) -> Sequence[Finding]:
    return [skipped("key", _NO_REQUEST), skipped("credits", _NO_REQUEST)]


async def check_upload(_: HealthContext) -> Sequence[Finding]:
    return [skipped("file upload", "this dialect has none: it fetches references from the public URL")]


async def check_signature(context: HealthContext) -> Sequence[Finding]:
    if context.settings.webhook_key is not None:
        return [ok("webhook key", "NANO_BANANA_WEBHOOK_KEY is set: callbacks need its signature, or our token")]
    return [ok("webhook key", "not set: callbacks are verified by the token in their URL, which is enough")]


_UPSTREAM_FIELDS: Final = frozenset({"api_key", "api_url"})

CHECKS: Final = (
    HealthCheck(name="provider", run=check_provider, needs=_UPSTREAM_FIELDS),
    HealthCheck(name="key", run=check_account),
    HealthCheck(name="file upload", run=check_upload),
    HealthCheck(name="webhook key", run=check_signature, needs=frozenset({"webhook_key"})),
)
