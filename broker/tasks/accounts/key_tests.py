"""Tests of users' keys at their providers, by the free request with which the health checks verify a key."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Final

from pydantic import SecretStr

from broker.accounts.provider_keys import KeyTest
from broker.errors import ProviderError
from broker.providers.base import NO_KEY_ID
from broker.providers.registry import ProviderRegistry

TEST_SECONDS: Final = 15.0


@dataclass(frozen=True, kw_only=True)
class KeyTester:
    """Asks providers about keys."""

    registry: ProviderRegistry
    seconds: float = TEST_SECONDS

    async def test_key(self, provider: str, key: SecretStr) -> KeyTest:
        """Ask a known provider whether it accepts a key. Orders nothing, costs nothing, and never raises."""
        package = self.registry.known[provider]
        check = next((one for one in package.checks if one.name == package.key_check), None)
        unknown = KeyTest(valid="unknown", reason=f"{provider} could not be asked whether it accepts this key.")
        if check is None:
            return unknown
        context = self.registry.own_context(provider, NO_KEY_ID, key)
        try:
            async with asyncio.timeout(self.seconds):
                found, *others = await check.run(package.factory(context), context)
        except (ProviderError, TimeoutError):
            return unknown
        if found.status == "failed":
            reason = f"{provider} does not accept this key: copy it again from your account there."
            return KeyTest(valid="false", reason=reason)
        if found.status != "ok":
            return unknown
        # what the check has learned about the account beside the key, like its credits
        more = "".join(f" {one.name.capitalize()}: {one.found}." for one in others if one.status != "skipped")
        return KeyTest(valid="true", reason=f"{provider} accepts this key.{more}")
