"""Health checks of Google's Gemini API, or of a relay."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from broker.providers.base import Finding, HealthCheck, Provider, ProviderContext
from broker.providers.health import check_clock, check_reachable, ok, skipped


async def check_provider(provider: Provider, context: ProviderContext) -> Sequence[Finding]:
    """Check that the API is reachable, without a key, and compare the clocks."""
    began = context.now()
    reachable, response = await check_reachable("gemini", "GEMINI_BASE_URL", provider.base_url, context.client)
    return [reachable, check_clock(response, (began + context.now()) / 2)]


async def check_batches(_: Provider, context: ProviderContext) -> Sequence[Finding]:
    """Report whether orders of low priority go to batches, and how their webhooks are verified."""
    if not context.settings.uses_batch:
        return [skipped("gemini batches", "BROKER_BATCH is not true: every order is answered at once")]
    proof = "GEMINI_WEBHOOK_SECRET, or " if context.settings.gemini_webhook_secret else ""
    return [ok("gemini batches", f"orders of low priority; webhooks are verified by {proof}Google's keys")]


CHECKS: Final = (
    HealthCheck(name="gemini", run=check_provider, needs=frozenset({"gemini_keys", "gemini_url"})),
    HealthCheck(name="gemini batches", run=check_batches, needs=frozenset({"uses_batch", "gemini_webhook_secret"})),
)
