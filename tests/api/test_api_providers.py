"""Providers over HTTP: what the operator sees of every key, pause and resume, and the attempts of a task."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import pytest

from broker.bootstrap import open_services
from storage.attempts import Attempt
from storage.errors import Stale
from storage.limits.provider_limits import AccountLimits
from storage.sql.rows import insert_row
from storage.states import TaskState
from tests.support.api import ApiBroker, open_api
from tests.support.clock import ManualClock

pytestmark = pytest.mark.anyio

KEYS = ("first-key-of-the-tests", "second-key-of-the-tests")
FIRST, SECOND = (hashlib.sha256(key.encode()).hexdigest()[:8] for key in KEYS)
NOW = 1_790_000_000.0


async def get_provider(broker: ApiBroker, name: str = "kie") -> dict[str, Any]:
    answer = await broker.client.get("/api/providers")
    assert answer.status_code == 200, answer.text
    assert not any(key in answer.text for key in KEYS)
    provider: dict[str, Any] = next(one for one in answer.json()["data"] if one["name"] == name)
    assert (await broker.client.get(f"/api/providers/{name}")).json()["data"] == provider
    return provider


async def add_attempts(broker: ApiBroker, *attempts: tuple[str, str | None, float]) -> None:
    """Insert attempts of the first key: outcome, error code, and how many seconds ago it was sent."""
    rows = [
        Attempt(
            task_id=f"task_{number:043x}",
            number=number,
            provider="kie",
            key_id=FIRST,
            sent_at=broker.services.clock.now() - age,
            ended_at=None if outcome in {"sent", "accepted"} else broker.services.clock.now(),
            outcome=outcome,
            code=code,
        )
        for number, (outcome, code, age) in enumerate(attempts, 1)
    ]
    await broker.services.database.transact(*(insert_row("attempts", row) for row in rows))


async def test_idle_provider_takes_orders(tmp_path: Path) -> None:
    async with open_api(tmp_path, kie_keys=",".join(KEYS), webhook_key="w" * 20) as broker:
        provider = await get_provider(broker)
        models = provider.pop("models")
        assert {"nano-banana", "nano-banana-pro"} <= set(models)
        keys = provider.pop("keys")
        assert provider == {
            "name": "kie",
            "baseUrl": "http://127.0.0.1:9",
            "available": True,
            "reason": None,
            "paused": False,
            "callbacksSigned": True,
            "unit": "credits",
        }
        assert [key["keyId"] for key in keys] == [FIRST, SECOND]
        assert keys[1] == {
            "keyId": SECOND,
            "circuit": "closed",
            "setAside": False,
            "cooldownUntil": None,
            "cooldownReason": None,
            "inFlight": 0,
            "concurrency": 100,
            "submitted": 0,
            "createsPer10s": 20,
            "balance": None,
            "attempts": 0,
            "errorRate": None,
        }


async def test_callbacks_are_not_signed_without_a_webhook_key(tmp_path: Path) -> None:
    async with open_api(tmp_path) as broker:
        assert (await get_provider(broker))["callbacksSigned"] is False


async def test_load_of_a_key_is_counted(tmp_path: Path) -> None:
    """Errors of the order itself, like a safety refusal, say nothing about the provider."""
    async with open_api(tmp_path, kie_keys=",".join(KEYS), clock=ManualClock(NOW)) as broker:
        await broker.add_task(number=1, key_id=FIRST)
        await broker.add_task(number=2, key_id=FIRST, state=TaskState.SUBMITTING)
        await broker.add_task(number=3, key_id=FIRST, state=TaskState.FETCHING)
        await add_attempts(
            broker,
            ("accepted", None, 3),
            ("sent", None, 4),
            ("succeeded", None, 60),
            ("succeeded", None, 70),
            ("refused", "provider_unavailable", 80),
            ("unknown", "unknown_outcome", 90),
            ("failed", "safety_output", 100),
            ("refused", "provider_rejected", 110),
            ("failed", "provider_error", 4000),
        )
        first, second = (await get_provider(broker))["keys"]
        assert (first["inFlight"], first["submitted"]) == (2, 2)
        assert (first["attempts"], first["errorRate"]) == (4, 0.5)
        assert (second["inFlight"], second["submitted"], second["attempts"]) == (0, 0, 0)


@pytest.mark.parametrize(
    ("reason", "until", "circuit", "available"),
    [
        ("provider_rate_limited", 60.0, "open", False),
        ("provider_unavailable", 0.0, "half_open", True),
        ("provider_credits", 60.0, "set_aside", False),
        ("provider_auth", 0.0, "set_aside", True),
    ],
)
async def test_circuit_of_a_key_has_its_reason(
    tmp_path: Path, reason: str, until: float, circuit: str, available: bool
) -> None:
    async with open_api(tmp_path, kie_keys=KEYS[0], clock=ManualClock(NOW)) as broker:
        limits = broker.services.tables.provider_limits
        await broker.services.database.transact(limits.start_cooldown("kie", FIRST, NOW + until, reason))
        provider = await get_provider(broker)
        (key,) = provider["keys"]
        assert (key["circuit"], key["setAside"], key["cooldownReason"]) == (circuit, circuit == "set_aside", reason)
        assert key["cooldownUntil"] == ("2026-09-21T14:14:20.000Z" if until else None)
        assert (provider["available"], provider["reason"]) == (available, None if available else reason)


async def test_balance_is_that_of_each_key(tmp_path: Path) -> None:
    async with open_api(tmp_path, kie_keys=",".join(KEYS), clock=ManualClock(NOW)) as broker:
        state = broker.services.tables.cluster_state
        await state.set_value(f"balance of kie {SECOND}", f"812.5 {NOW}")
        assert [key["balance"] for key in (await get_provider(broker))["keys"]] == [None, 812.5]


# -- pause and resume


async def test_paused_provider_gets_nothing_from_any_process(tmp_path: Path) -> None:
    async with open_api(tmp_path, clock=ManualClock(NOW)) as broker:
        for _ in range(2):  # repeated: the same
            answer = await broker.client.post("/api/providers/kie/pause")
            assert (answer.status_code, answer.json()["data"]["paused"]) == (200, True)
        provider = await get_provider(broker)
        assert (provider["available"], provider["reason"]) == (False, "paused")
        async with open_services(broker.services.settings, clock=broker.services.clock) as other:
            assert (await other.router.statuses())["kie"].reason == "paused"
            task = await broker.add_task(state=TaskState.QUEUED, attempt=0)
            attempt = Attempt(task_id=task.id, number=1, provider="kie", key_id="k", sent_at=NOW)
            reserving = other.tables.provider_limits.reserve_submission(
                attempt, AccountLimits(creates_per_window=9, concurrency=9)
            )
            with pytest.raises(Stale):
                await other.database.transact(*reserving)
            for _ in range(2):
                answer = await broker.client.post("/api/providers/kie/resume")
                assert (answer.status_code, answer.json()["data"]["paused"]) == (200, False)
            assert (await get_provider(broker))["available"] is True
            await other.database.transact(*reserving)


async def test_resuming_ends_a_cooldown(tmp_path: Path) -> None:
    """The operator has repaired the account, and need not wait for the probe."""
    async with open_api(tmp_path, kie_keys=KEYS[0], clock=ManualClock(NOW)) as broker:
        limits = broker.services.tables.provider_limits
        await broker.services.database.transact(limits.start_cooldown("kie", FIRST, NOW + 600, "provider_credits"))
        assert (await get_provider(broker))["available"] is False
        resumed = (await broker.client.post("/api/providers/kie/resume")).json()["data"]
        assert (resumed["available"], resumed["keys"][0]["circuit"]) == (True, "closed")


@pytest.mark.parametrize("path", ["", "/pause", "/resume"])
@pytest.mark.parametrize("name", ["fal", "KIE", "%00", "..%2fkie", "x" * 3000])
async def test_unknown_provider_is_not_found(tmp_path: Path, name: str, path: str) -> None:
    async with open_api(tmp_path) as broker:
        answer = await broker.client.request("POST" if path else "GET", f"/api/providers/{name}{path}")
        assert (answer.status_code, answer.json()["code"]) == (404, "not_found")
        rows = await broker.services.database.fetch("SELECT * FROM provider_pauses")
        assert rows == []


# -- the attempts of a task


async def test_operator_sees_every_attempt_and_route_of_a_task(tmp_path: Path) -> None:
    routes = (
        {"provider": "amber", "candidate": True, "reason": None},
        {"provider": "kie", "candidate": True, "reason": "it does not answer"},
        {"provider": "cedar", "candidate": False, "reason": "cedar has no such ratio."},
        {"provider": "kie", "candidate": True, "reason": "after provider_credits at amber", "at": NOW + 2},
    )
    async with open_api(tmp_path, clock=ManualClock(NOW)) as broker:
        task = await broker.add_task(key_id="k2", candidates=("kie",), routes=routes, attempt=2)
        first = Attempt(
            task_id=task.id, number=1, provider="amber", key_id="k1", sent_at=NOW, ended_at=NOW + 1, outcome="refused",
            code="provider_credits", provider_code="402", billed="no",
        )  # fmt: skip
        second = Attempt(
            task_id=task.id, number=2, provider="kie", key_id="k2", job_id="job-2", sent_at=NOW + 2, ended_at=NOW + 30,
            outcome="succeeded", billed="yes", cost=4.0, usd_per_unit=0.005, learned_by="callback",
        )  # fmt: skip
        await broker.services.database.transact(insert_row("attempts", first), insert_row("attempts", second))
        answer = await broker.client.get(f"/api/task/{task.id}/attempts")
        data = answer.json()["data"]
        assert (data["provider"], data["keyId"], data["candidates"]) == ("kie", "k2", ["kie"])
        assert [route["movedAt"] for route in data["routes"]] == [None, None, None, "2026-09-21T14:13:22.000Z"]
        assert [(route["provider"], route["candidate"]) for route in data["routes"]] == [
            (route["provider"], route["candidate"]) for route in routes
        ]
        refused, succeeded = data["attempts"]
        assert (refused["outcome"], refused["code"], refused["providerCode"]) == ("refused", "provider_credits", "402")
        assert (refused["billed"], refused["cost"], refused["duplicate"]) == ("no", None, False)
        assert succeeded["cost"] == {"amount": 4.0, "unit": "credits", "usd": 0.02}
        assert (succeeded["jobId"], succeeded["learnedBy"], succeeded["keyId"]) == ("job-2", "callback", "k2")
        public = (await broker.client.get(f"/api/task/{task.id}")).json()["data"]
        assert not {"routes", "candidates", "keyId"} & public.keys()
        assert public["attempts"] == 2


async def test_routes_of_an_order_are_stored_with_its_task(tmp_path: Path) -> None:
    async with open_api(tmp_path) as broker:
        await broker.client.post("/api/providers/kie/pause")
        created = await broker.client.post("/api/generate/image", json={"prompt": "a fox"})
        data = (await broker.client.get(f"/api/task/{created.json()['taskId']}/attempts")).json()["data"]
        (route,) = data["routes"]
        assert route == {
            "provider": "kie",
            "ownKey": False,
            "candidate": True,
            "reason": "paused by the operator",
            "movedAt": None,
        }
        assert data["attempts"] == []
        name = "broker_order_routes_total"
        sample = broker.services.metrics.registry.get_sample_value
        assert sample(name, {"provider": "kie", "role": "first"}) == 1.0


async def test_attempts_of_an_unknown_task_are_not_found(tmp_path: Path) -> None:
    async with open_api(tmp_path) as broker:
        for task_id in (f"task_{'0' * 43}", "x", "%00"):
            answer = await broker.client.get(f"/api/task/{task_id}/attempts")
            assert (answer.status_code, answer.json()["code"]) == (404, "task_not_found")
