"""Health checks of the example provider."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from broker.providers.base import Finding, HealthCheck, Provider, ProviderContext
from broker.providers.health import check_reachable


async def check_provider(provider: Provider, context: ProviderContext) -> Sequence[Finding]:
    finding, _ = await check_reachable("provider", "EXAMPLE_API_URL", provider.base_url, context.client)
    return [finding]


CHECKS: Final = (HealthCheck(name="provider", run=check_provider, needs=frozenset({"example_url"})),)
