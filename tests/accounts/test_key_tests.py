"""Keys are tested at every provider by a free request: accepted, refused, or not known."""

from __future__ import annotations

from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr

from broker.providers.registry import PROVIDERS
from broker.sandbox.server import serve_sandbox
from broker.tasks.accounts.key_tests import KeyTester
from tests.accounts.own_keys import options
from tests.support.brokers import still
from tests.support.clock import ManualClock
from tests.support.emulators import PROVIDERS as EMULATORS

pytestmark = pytest.mark.anyio

GOOD, BAD = "planted-key-that-is-good-0001", "planted-key-that-is-bad-00002"


async def test_providers_say_whether_they_accept_a_key(tmp_path: Path, clock: ManualClock) -> None:
    settings: dict[str, Any] = {}
    async with AsyncExitStack() as stack:
        async with AsyncExitStack() as emulators:
            for provider, settings_for in EMULATORS.items():
                serving = serve_sandbox(options=options(dialect=provider, refused_keys={BAD}))
                settings |= settings_for(await emulators.enter_async_context(serving))
            services = await stack.enter_async_context(still(tmp_path, clock, **settings))
            tester = KeyTester(registry=services.registry)
            accepted = {provider: await tester.test_key(provider, SecretStr(GOOD)) for provider in EMULATORS}
            refused = {provider: await tester.test_key(provider, SecretStr(BAD)) for provider in EMULATORS}
        unknown = {provider: await tester.test_key(provider, SecretStr(GOOD)) for provider in EMULATORS}
    for provider in EMULATORS:
        found = (accepted[provider].valid, refused[provider].valid, unknown[provider].valid)
        assert found == ("true", "false", "unknown"), provider
        assert accepted[provider].reason.startswith(f"{provider} accepts this key.")
        wrong = f"{provider} does not accept this key: copy it again from your account there."
        assert refused[provider].reason == wrong


async def test_provider_without_a_free_request_leaves_it_unknown(tmp_path: Path, clock: ManualClock) -> None:
    async with still(tmp_path, clock, api_url="https://relay.example/nano-banana") as services:
        assert (await KeyTester(registry=services.registry).test_key("legacy", SecretStr(GOOD))).valid == "unknown"
        assert "kie" not in services.registry.known


def test_every_provider_has_the_check_that_verifies_its_key() -> None:
    assert [
        package.name for package in PROVIDERS if package.key_check not in {one.name for one in package.checks}
    ] == []
