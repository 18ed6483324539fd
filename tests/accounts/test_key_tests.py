"""Keys are tested at every provider by a free request: accepted, refused, or not known."""

from __future__ import annotations

from pathlib import Path

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


@pytest.mark.parametrize("provider", EMULATORS)
async def test_provider_says_whether_it_accepts_a_key(tmp_path: Path, clock: ManualClock, provider: str) -> None:
    async with (
        serve_sandbox(options=options(dialect=provider, refused_keys={BAD})) as url,
        still(tmp_path, clock, **EMULATORS[provider](url)) as services,
    ):
        tester = KeyTester(registry=services.registry)
        accepted = await tester.test_key(provider, SecretStr(GOOD))
        refused = await tester.test_key(provider, SecretStr(BAD))
    async with still(tmp_path, clock, **EMULATORS[provider]("http://127.0.0.1:9")) as services:
        unknown = await KeyTester(registry=services.registry).test_key(provider, SecretStr(GOOD))
    assert (accepted.valid, refused.valid, unknown.valid) == ("true", "false", "unknown")
    assert accepted.reason.startswith(f"{provider} accepts this key.")
    assert refused.reason == f"{provider} does not accept this key: copy it again from your account there."


async def test_provider_without_a_free_request_leaves_it_unknown(tmp_path: Path, clock: ManualClock) -> None:
    async with still(tmp_path, clock, api_url="https://relay.example/nano-banana") as services:
        assert (await KeyTester(registry=services.registry).test_key("legacy", SecretStr(GOOD))).valid == "unknown"
        assert "kie" not in services.registry.known


def test_every_provider_has_the_check_that_verifies_its_key() -> None:
    assert [
        package.name for package in PROVIDERS if package.key_check not in {one.name for one in package.checks}
    ] == []
