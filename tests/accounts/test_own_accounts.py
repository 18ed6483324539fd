"""Orders with keys of their owners, over real HTTP: the right key, own limits, own money, and what happens to them."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from storage.sql.scope import EVERYTHING
from tests.accounts.own_keys import HOUSE_KEY, Market, open_market, serve_emulators

pytestmark = pytest.mark.anyio

ALICE, BOB = "planted-key-of-alice-0001", "planted-key-of-bob-000002"
KEYS = (HOUSE_KEY, ALICE, BOB)


async def wait_all(market: Market, tasks: list[str], seconds: float = 20) -> list[dict[str, Any]]:
    return list(await asyncio.gather(*(market.broker.wait_end(task, seconds) for task in tasks)))


@pytest.mark.parametrize("database", ["sqlite", "postgres"])
async def test_each_order_is_submitted_and_asked_for_with_the_key_of_its_owner(
    tmp_path: Path, database: str, request: pytest.FixtureRequest
) -> None:
    shared: dict[str, Any] = {}
    if database == "postgres":
        shared["database_url"] = await request.getfixturevalue("postgres").fresh()
    async with open_market(tmp_path, daily_budget=1.0, **shared) as market:
        alice, bob, house = await market.add_caller("alice"), await market.add_caller("bob"), market.house()
        assert (await alice.set_key("kie", ALICE))["valid"] == "true"
        await bob.set_key("kie", BOB)
        tasks = [await alice.order("a fox of alice"), await alice.order("a cat of alice"), await bob.order("of bob")]
        ended = await wait_all(market, [*tasks, await house.order("of the house")])
        assert {(data["status"], data["provider"]) for data in ended} == {("completed", "kie")}
        assert await market.keys_of_jobs(KEYS) == {
            "a fox of alice": ALICE,
            "a cat of alice": ALICE,
            "of bob": BOB,
            "of the house": HOUSE_KEY,
        }
        (of_alice,), (of_bob,) = await market.attempts(tasks[0]), await market.attempts(tasks[2])
        assert of_alice.provider.startswith("kie@")
        assert of_alice.provider != of_bob.provider
        costs = (await house.client.get("/api/costs")).json()["data"]
        assert (costs["total"]["attempts"], costs["ownTotal"]["attempts"]) == (1, 3)
        assert costs["budget"]["usedUsd"] == costs["total"]["usd"] == 0.02
        outputs = [str(ended), str(costs), (await house.client.get("/metrics")).text]
        outputs.append((await house.client.get(f"/api/task/{tasks[0]}/attempts")).text)
        assert '"ownKey":true' in outputs[-1]
        assert not any("kie@" in text for text in outputs), "the name of an account is shown nowhere"
        usage = await market.services.database.fetch("SELECT * FROM owner_usage WHERE micros <> 0")
        assert usage == [], "nor to the quota of its owner"


async def test_refused_and_limited_keys_hold_up_nobody_else(tmp_path: Path) -> None:
    """Their orders go to the operator's key, which is provably the first that is billed."""
    limited = "planted-key-limited-0003"
    async with open_market(tmp_path, kie={"key_windows": {limited: 0}}, daily_budget=1.0) as market:
        alice, bob, carol = [await market.add_caller(name) for name in ("alice", "bob", "carol")]
        await alice.set_key("kie", ALICE)
        await bob.set_key("kie", BOB)
        await carol.set_key("kie", limited)
        market.emulators.refused.add(ALICE)
        tasks = [await one.order(f"of {number}") for number, one in enumerate((alice, carol, bob, market.house()))]
        ended = await wait_all(market, tasks)
        assert {data["status"] for data in ended} == {"completed"}
        assert await market.keys_of_jobs(KEYS) == {"of 0": HOUSE_KEY, "of 1": HOUSE_KEY, "of 2": BOB, "of 3": HOUSE_KEY}
        outcomes = [[(one.outcome, one.code, one.billed) for one in await market.attempts(task)] for task in tasks]
        succeeded = ("succeeded", None, "yes")
        assert outcomes == [
            [("refused", "provider_auth", "no"), succeeded],
            [("refused", "provider_rate_limited", "no"), succeeded],
            [succeeded],
            [succeeded],
        ]
        failures = await market.services.database.fetch("SELECT provider, reason FROM provider_limits WHERE errors > 0")
        assert sorted(row["reason"] for row in failures) == ["provider_auth", "provider_rate_limited"]
        assert all("@" in row["provider"] for row in failures), "the operator's key and the others are not paused"
        assert ((await alice.get_key("kie"))["state"], (await carol.get_key("kie"))["state"]) == ("refused", "limited")
        assert (await bob.get_key("kie"))["state"] == "ok"
        again = [await alice.order("again of alice"), await bob.order("again of bob")]
        assert len(await market.attempts(again[0])) <= 1, "her key is not tried while it is set aside"
        await wait_all(market, again)
        costs = (await market.house().client.get("/api/costs")).json()["data"]
        assert (costs["budget"]["usedUsd"], costs["total"]["usd"]) == (0.08, 0.08)
        market.emulators.refused.clear()
        await alice.set_key("kie", ALICE)
        await market.broker.wait_end(await alice.order("with a new key"))
        assert (await market.keys_of_jobs(KEYS))["with a new key"] == ALICE, "setting it again ends the cooldown"


async def test_order_whose_billing_is_not_known_goes_to_nobody_else(tmp_path: Path) -> None:
    async with open_market(tmp_path, with_callbacks=False, resubmit_unknown=True, daily_budget=1.0) as market:
        alice = await market.add_caller("alice")
        await alice.set_key("kie", ALICE)
        task = await alice.order("a fox [mood:silent_lost]")
        ended = await market.broker.wait_end(task)
        assert ended["errorDetail"]["code"] == "unknown_outcome"
        attempts = await market.attempts(task)
        assert {one.provider for one in attempts} == {attempts[0].provider}
        assert "@" in attempts[0].provider
        names = {job["account"] for job in await market.jobs()}
        assert len(names) == 1, "the operator's account never got it"
        costs = (await market.house().client.get("/api/costs")).json()["data"]
        assert (costs["budget"]["usedUsd"], costs["total"]["attempts"]) == (0.0, 0)


async def test_provider_without_a_key_of_the_operator_is_used_by_those_who_have_one(tmp_path: Path) -> None:
    """Also by those who may not spend the operator's money."""
    async with open_market(tmp_path, user_daily_budget=0) as market:
        alice, bob = await market.add_caller("alice"), await market.add_caller("bob")
        assert (await alice.set_key("fal", ALICE))["valid"] == "true"
        task = await alice.order("a fox", provider="fal")
        ended = await market.broker.wait_end(task)
        assert (ended["status"], ended["provider"]) == ("completed", "fal")
        assert await market.keys_of_jobs(KEYS, "fal") == {"a fox": ALICE}
        order = {"prompt": "x", "provider": "fal"}
        refused = await bob.client.post("/api/generate/image", json=order)
        assert (refused.status_code, refused.json()["field"]) == (400, "provider")
        refused = await bob.client.post("/api/generate/image", json={"prompt": "x"})
        assert (refused.status_code, refused.json()["quota"]["name"]) == (429, "usd")
        preview = (await alice.client.post("/api/generate/image", json={"prompt": "x", "dryRun": True})).json()["data"]
        assert [(one["provider"], one["ownKey"]) for one in preview["routes"]] == [("fal", True), ("kie", False)]
        assert [one["candidate"] for one in preview["routes"]] == [True, False], "with 0 USD of the operator's"
        assert preview["url"].startswith(market.emulators.urls["fal"])
        assert ALICE not in str(preview)
        market.emulators.refused.add(ALICE)
        failed = await market.broker.wait_end(await alice.order("pinned", provider="fal"))
        assert failed["errorDetail"]["code"] == "provider_auth", "it was for fal alone"
        assert failed["errorDetail"]["provider"] == "fal"


async def test_removed_key_submits_nothing_more_and_its_jobs_are_finished(tmp_path: Path) -> None:
    """Queued orders move to the operator, or fail where there is nobody else; running ones are asked for."""
    async with open_market(tmp_path, with_callbacks=False, max_concurrent=1) as market:
        alice = await market.add_caller("alice")
        await alice.set_key("kie", ALICE)
        await alice.set_key("fal", ALICE)
        running = [await alice.order(f"{name} [mood:slow:0.8]", provider=name) for name in ("kie", "fal")]
        while not (await market.jobs("kie") and await market.jobs("fal")):  # noqa: ASYNC110
            await asyncio.sleep(0.02)
        queued = [await alice.order(f"queued {name}", provider=name) for name in ("kie", "fal")]
        assert (await alice.get_key("kie"))["inFlight"] == 1
        for name in ("kie", "fal"):
            await alice.remove_key(name)
        assert (await alice.client.get("/api/me/provider-keys")).json()["data"]["keys"] == []
        moved, failed = await wait_all(market, queued)
        assert moved["status"] == "completed"
        assert (failed["status"], failed["errorDetail"]["code"]) == ("failed", "provider_auth")
        assert "was removed" in failed["errorDetail"]["message"]
        assert [data["status"] for data in await wait_all(market, running)] == ["completed", "completed"]
        keys = await market.keys_of_jobs(KEYS)
        assert keys == {"kie [mood:slow:0.8]": ALICE, "queued kie": HOUSE_KEY}
        await market.services.worker.retention.delete_leftovers()
        assert await market.services.database.fetch("SELECT * FROM provider_keys") == []


async def test_replaced_key_finishes_its_jobs_and_the_new_one_gets_the_queue(tmp_path: Path) -> None:
    async with open_market(tmp_path, with_callbacks=False, max_concurrent=1) as market:
        alice = await market.add_caller("alice")
        await alice.set_key("kie", ALICE)
        running = await alice.order("first [mood:slow:0.5]")
        while not await market.jobs():  # noqa: ASYNC110
            await asyncio.sleep(0.02)
        queued = await alice.order("second")
        await alice.set_key("kie", BOB)
        assert [data["status"] for data in await wait_all(market, [running, queued])] == ["completed", "completed"]
        assert await market.keys_of_jobs(KEYS) == {"first [mood:slow:0.5]": ALICE, "second": BOB}


async def test_restarted_broker_goes_on_with_the_keys_of_users(tmp_path: Path) -> None:
    async with serve_emulators() as emulators:
        async with open_market(tmp_path, emulators=emulators, with_callbacks=False, max_concurrent=1) as market:
            alice = await market.add_caller("alice")
            await alice.set_key("kie", ALICE)
            tasks = [await alice.order("running [mood:slow:0.3]"), await alice.order("queued")]
            while not await market.jobs():  # noqa: ASYNC110
                await asyncio.sleep(0.02)
        async with open_market(tmp_path, emulators=emulators, with_callbacks=False, max_concurrent=1) as market:
            assert {data["status"] for data in await wait_all(market, tasks)} == {"completed"}
            assert await market.keys_of_jobs(KEYS) == {"running [mood:slow:0.3]": ALICE, "queued": ALICE}
            assert (await market.rejoin(alice).get_key("kie"))["lastFour"] == "0001"
            await market.services.key_service.revoke(alice.owner, EVERYTHING)
            await market.services.worker.retention.retire_ownerless_keys()
            assert await market.services.database.fetch("SELECT * FROM provider_keys") == [], "nobody can remove it"


async def test_key_whose_row_was_changed_is_used_for_nothing(tmp_path: Path) -> None:
    """Neither with the sealed text of another row, nor as another owner's."""
    async with open_market(tmp_path) as market:
        alice, bob = await market.add_caller("alice"), await market.add_caller("bob")
        await alice.set_key("kie", ALICE)
        await bob.set_key("kie", BOB)
        services = market.services
        (of_alice,) = await services.tables.provider_keys.list_active(alice.owner)
        (of_bob,) = await services.tables.provider_keys.list_active(bob.owner)
        exchange = "UPDATE provider_keys SET sealed = :sealed WHERE id = :id"
        await services.database.execute(exchange, sealed=of_bob.sealed, id=of_alice.id)
        services.accounts.forget(of_alice.account)
        assert (await alice.get_key("kie"))["state"] == "unreadable"
        tasks = [await alice.order("of alice"), await bob.order("of bob")]
        assert {data["status"] for data in await wait_all(market, tasks)} == {"completed"}
        assert await market.keys_of_jobs(KEYS) == {"of alice": HOUSE_KEY, "of bob": BOB}


async def test_own_account_needs_nothing_of_the_daily_budget(tmp_path: Path) -> None:
    """An order that the operator cannot pay goes to the owner's account alone."""
    async with open_market(tmp_path, daily_budget=0.001) as market:
        alice, bob = await market.add_caller("alice"), await market.add_caller("bob")
        await alice.set_key("kie", ALICE)
        order = {"prompt": "of bob"}
        assert (await bob.client.post("/api/generate/image", json=order)).json()["code"] == "quota_exceeded"
        task = await alice.order("of alice")
        stored = await market.services.tables.tasks.get(task)
        assert stored is not None
        assert (len(stored.candidates), stored.reserved) == (1, 0)
        assert (await market.broker.wait_end(task))["status"] == "completed"
        market.emulators.refused.add(ALICE)
        failed = await market.broker.wait_end(await alice.order("refused"))
        assert failed["errorDetail"]["code"] == "provider_auth", "the operator's key is not used beyond the budget"
        assert await market.keys_of_jobs(KEYS) == {"of alice": ALICE}
