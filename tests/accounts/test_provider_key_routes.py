"""The routes of one's own provider keys: what they say, what they refuse, and that no answer holds a key."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr

from broker.errors import ApiError
from broker.providers.registry import SANDBOX
from tests.accounts.own_keys import open_market
from tests.support.brokers import still
from tests.support.clock import ManualClock
from tests.support.planted_secrets import find_secrets

pytestmark = pytest.mark.anyio

ALICE, BOB = "planted-key-of-alice-0001", "planted-key-of-bob-000002"
PATH = "/api/me/provider-keys"


async def test_keys_are_tested_when_they_are_set_and_shown_to_their_owner_alone(tmp_path: Path) -> None:
    async with open_market(tmp_path, wavespeed_url="http://127.0.0.1:9") as market:
        alice, bob, house = await market.add_caller("alice"), await market.add_caller("bob"), market.house()
        texts: list[str] = []

        async def call(who: Any, method: str, path: str, **options: Any) -> tuple[int, dict[str, Any]]:
            answer = await who.client.request(method, path, **options)
            texts.append(answer.text)
            return answer.status_code, answer.json() if answer.text else {}

        status, document = await call(alice, "PUT", f"{PATH}/kie", json={"key": ALICE})
        data = document["data"]
        assert (status, data["valid"], data["verified"], data["lastFour"]) == (200, "true", True, "0001")
        assert data["reason"] == "kie accepts this key. Credits: 1000, enough for about 250 images."
        assert (data["state"], data["inFlight"], data["limitedUntil"], data["balance"]) == ("ok", 0, None, None)
        status, document = await call(alice, "GET", f"{PATH}/kie")
        assert (status, document["data"]["balance"], document["data"]["unit"]) == (200, 1000.0, "credits")
        status, document = await call(alice, "PUT", f"{PATH}/wavespeed", json={"key": ALICE})
        assert (status, document["data"]["valid"], document["data"]["verified"]) == (200, "unknown", False)
        assert "could not be asked" in document["data"]["reason"]
        market.emulators.refused.add(BOB)
        for provider in ("kie", "fal"):
            status, document = await call(bob, "PUT", f"{PATH}/{provider}", json={"key": BOB})
            assert (status, document["code"], document["field"]) == (400, "invalid_request", "key")
            assert document["error"].startswith(f"{provider} does not accept this key")
        status, document = await call(alice, "GET", PATH)
        assert [key["provider"] for key in document["data"]["keys"]] == ["kie", "wavespeed"]
        assert document["data"]["providers"][:1] == ["kie"]
        assert {"fal", "gemini", "replicate"} < set(document["data"]["providers"])
        assert not {"sandbox", "legacy"} & set(document["data"]["providers"])
        for other in (bob, house):
            assert (await call(other, "GET", PATH))[1]["data"]["keys"] == []
            for method in ("GET", "DELETE"):
                assert (await call(other, method, f"{PATH}/kie"))[0] == 404
        assert (await call(house, "PUT", f"{PATH}/kie", json={"key": ALICE}))[0] == 403
        wrong: list[Any] = [
            {},
            {"key": 1},
            {"key": "planted- short"},
            {"key": ALICE, "more": "planted-"},
            ["planted-"],
            "planted-",
        ]
        for body in wrong:
            assert (await call(alice, "PUT", f"{PATH}/kie", json=body))[0] == 400
        assert (await call(alice, "PUT", f"{PATH}/nothing", json={"key": ALICE}))[0] == 404
        stranger = market.broker.client
        assert (await stranger.get(PATH)).status_code == 401
        assert not any(find_secrets(text.encode()) for text in texts)


async def test_own_key_never_falls_back_to_the_sandbox(tmp_path: Path, clock: ManualClock) -> None:
    """An order for a real account must not end with a synthetic picture."""
    async with still(tmp_path, clock, kie_keys=()) as services:
        owner = f"user_{'a' * 32}"
        assert list(await services.accounts.find_usable(owner)) == [SANDBOX.name]
        key, tested = await services.provider_keys.set_key(owner, "fal", SecretStr(ALICE))
        assert tested.valid == "unknown"
        assert list(await services.accounts.find_usable(owner)) == [key.account]
    async with still(tmp_path, clock, api_url="https://relay.example/nano-banana") as services:
        (row,) = await services.tables.provider_keys.list_active(owner)
        await services.database.execute("UPDATE provider_keys SET provider = 'kie', account = 'kie@1'")
        pool = await services.accounts.find_pool("kie@1")
        assert pool is not None
        assert (pool.is_removed, len(pool.accounts)) == (False, 0), "another process may know it: its orders wait"
        assert row.account not in await services.accounts.find_usable(owner)
        with pytest.raises(ApiError, match="no provider of this name"):
            await services.provider_keys.set_key(owner, SANDBOX.name, SecretStr(ALICE))
