"""Health checks of Google's Gemini API, or of a relay."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from broker.errors import ProviderError
from broker.providers.base import Finding, HealthCheck, Provider, ProviderContext
from broker.providers.gemini.settings import GeminiSettings
from broker.providers.health import check_clock, check_reachable, failed, ok, skipped

UPSTREAM_FIELDS: Final = frozenset({"gemini_keys", "gemini_url", "gemini_auth"})


async def check_provider(provider: Provider, context: ProviderContext) -> Sequence[Finding]:
    """Check that the API is reachable, without a key, and compare the clocks."""
    began = context.now()
    reachable, response = await check_reachable("provider", "GEMINI_BASE_URL", provider.base_url, context.client)
    return [reachable, check_clock(response, (began + context.now()) / 2)]


async def check_key(provider: Provider, context: ProviderContext) -> Sequence[Finding]:
    """Check the key with the list of models, which is free; relays may not have one."""
    settings: GeminiSettings = context.settings
    headers, params = settings.place_key(context.api_key.get_secret_value() if context.api_key else "")
    url = f"{provider.base_url}/v1beta/models"
    try:
        response = await context.client.request("GET", url, headers=headers, params={**params, "pageSize": "1"})
    except ProviderError as error:
        return [skipped("key", f"not verified: {error}")]
    if response.status in {400, 401, 403}:
        cure = "copy the key again into GEMINI_API_KEY, or set GEMINI_AUTH as the relay wants it"
        return [failed("key", "the provider does not accept GEMINI_API_KEY", cure)]
    is_fine = response.status == 200
    return [ok("key", "accepted") if is_fine else skipped("key", f"not verified: HTTP {response.status}")]


async def check_batches(_: Provider, context: ProviderContext) -> Sequence[Finding]:
    """Report whether orders of low priority go to batches, and how their webhooks are verified."""
    if not context.settings.uses_batch:
        return [skipped("batches", "BROKER_BATCH is not true: every order is answered at once")]
    proof = "GEMINI_WEBHOOK_SECRET, or " if context.settings.gemini_webhook_secret else ""
    return [ok("batches", f"orders of low priority; webhooks are verified by {proof}Google's keys")]


CHECKS: Final = (
    HealthCheck(name="provider", run=check_provider, needs=UPSTREAM_FIELDS),
    HealthCheck(name="key", run=check_key, needs=UPSTREAM_FIELDS),
    HealthCheck(name="batches", run=check_batches, needs=frozenset({"uses_batch", "gemini_webhook_secret"})),
)
