"""Health checks of an account at fal."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from broker.errors import ProviderError
from broker.providers.base import Finding, HealthCheck, Provider, ProviderContext
from broker.providers.health import check_clock, check_reachable, failed, ok, skipped, warning
from webhooks.signatures.ed25519_lines import read_keys

FIELDS: Final = frozenset({"fal_keys", "fal_url", "fal_rest_url"})
NO_REQUEST: Final = "fal-ai/nano-banana/requests/00000000-0000-0000-0000-000000000000/status"
"""A request that does not exist: reading it is free, and a wrong key is refused first."""


async def check_provider(provider: Provider, context: ProviderContext) -> Sequence[Finding]:
    """Check that the queue is reachable, and compare the clocks."""
    began = context.now()
    found, response = await check_reachable("fal", "FAL_BASE_URL", provider.base_url, context.client)
    return [found, check_clock(response, (began + context.now()) / 2)]


async def check_key(provider: Provider, context: ProviderContext) -> Sequence[Finding]:
    """Check that the queue does not refuse the key."""
    secret = context.api_key.get_secret_value() if context.api_key else ""
    try:
        url = f"{provider.base_url}/{NO_REQUEST}"
        response = await context.client.request("GET", url, headers={"Authorization": f"Key {secret}"})
    except ProviderError as error:
        return [skipped("fal key", f"not verified: {error}")]
    if response.status in {401, 403}:
        cure = "copy the key again from https://fal.ai/dashboard/keys into FAL_KEY, and look at the balance there"
        return [failed("fal key", f"the provider does not accept FAL_KEY (key {context.key_id})", cure)]
    if response.status >= 500:
        return [skipped("fal key", f"not verified: HTTP {response.status}")]
    return [ok("fal key", f"not refused (key {context.key_id})")]


async def check_signing_keys(_: Provider, context: ProviderContext) -> Sequence[Finding]:
    """Check that the keys that verify callbacks can be fetched."""
    url = f"{context.settings.rest_url}/.well-known/jwks.json"
    cure = "is FAL_REST_BASE_URL right? Without the keys callbacks are verified by the token in their URL alone"
    try:
        count = len(read_keys((await context.client.request("GET", url)).json()))
    except (ProviderError, ValueError) as error:
        return [warning("fal callback keys", f"not available: {error}", cure)]
    return [ok("fal callback keys", f"{count} at {url}")]


CHECKS: Final = (
    HealthCheck(name="fal", run=check_provider, needs=FIELDS),
    HealthCheck(name="fal key", run=check_key, needs=FIELDS),
    HealthCheck(name="fal callback keys", run=check_signing_keys, needs=FIELDS),
)
