"""Health checks of an account at OpenRouter."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from broker.providers.base import Finding, HealthCheck, Provider, ProviderContext
from broker.providers.health import check_clock, check_reachable


async def check_provider(provider: Provider, context: ProviderContext) -> Sequence[Finding]:
    """Check that the API is reachable, without a key, and compare the clocks."""
    began = context.now()
    reachable, response = await check_reachable("openrouter", "OPENROUTER_BASE_URL", provider.base_url, context.client)
    return [reachable, check_clock(response, (began + context.now()) / 2)]


CHECKS: Final = (
    HealthCheck(name="openrouter", run=check_provider, needs=frozenset({"openrouter_keys", "openrouter_url"})),
)
