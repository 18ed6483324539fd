"""The callback inbox over HTTP: lists, details, replays, fixtures."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote

import httpx
import pytest

from broker.callbacks.receive import MAX_REJECTED_PER_MINUTE, MAX_UNPROVEN_BYTES
from storage.attempts import Attempts
from storage.callbacks import StoredCallback
from storage.states import TaskState
from storage.tasks import Task
from tests.api.test_api_callbacks import FORWARDED, JOB, WEBHOOK_KEY, WEBHOOK_PATH, a_job, address, done, signed
from tests.support.api import NEVER, ApiBroker, open_api
from tests.support.servers.postgres import Postgres
from webhooks.signatures.base import Proof
from webhooks.signatures.standard import KEY_PREFIX, derived_key, write_secret
from webhooks.verification import Evidence

pytestmark = pytest.mark.anyio

RESULT = "http://127.0.0.1:9/x.png"


async def send_callback(broker: ApiBroker, path: str, body: Any, **headers: str) -> str:
    """Send a callback; return its id in the inbox."""
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    await broker.client.post(path, content=content, headers={**FORWARDED, **headers})
    ((callback,), _) = await list_callbacks(broker, limit=1)
    callback_id: str = callback["id"]
    return callback_id


async def list_callbacks(broker: ApiBroker, **params: Any) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    answer = await broker.client.get("/api/callbacks", params=params)
    assert answer.status_code == 200, answer.text
    document: dict[str, Any] = answer.json()
    return document["data"], document


async def get_callback(broker: ApiBroker, callback_id: str) -> dict[str, Any]:
    answer = await broker.client.get(f"/api/callbacks/{callback_id}")
    assert answer.status_code == 200, answer.text
    data: dict[str, Any] = answer.json()["data"]
    return data


async def wait_for_field(broker: ApiBroker, callback_id: str, field: str) -> dict[str, Any]:
    """Return the callback once a field is set that is written after our answer."""
    async with asyncio.timeout(10):
        while True:
            callback = await get_callback(broker, callback_id)
            if callback[field] is not None:
                return callback
            await asyncio.sleep(0.002)


async def replay_callback(broker: ApiBroker, callback_id: str, **params: str) -> dict[str, Any]:
    answer = await broker.client.post(f"/api/callbacks/{callback_id}/replay", params=params)
    assert answer.status_code == 200, answer.text
    data: dict[str, Any] = answer.json()["data"]
    return data


async def get_stored(broker: ApiBroker, callback_id: str) -> StoredCallback:
    stored = await broker.services.tables.callbacks.get(callback_id)
    assert stored is not None
    return stored


async def get_task(broker: ApiBroker, task: Task) -> Task:
    found = await broker.services.tables.tasks.get(task.id)
    assert found is not None
    return found


async def wait_for_state(broker: ApiBroker, task: Task, state: TaskState) -> Task:
    async with asyncio.timeout(10):
        while True:
            found = await get_task(broker, task)
            if found.state == state:
                return found
            await asyncio.sleep(0.002)


async def store_processed(broker: ApiBroker, task: Task, body: Any = None, **changes: Any) -> str:
    """Store a callback as processed, without an effect on its task; return its id."""
    evidence = Evidence(token=Proof.BODY_VERIFIED, known=True)
    callback = StoredCallback(
        id=f"callback_{'c' * 24}",
        provider="kie",
        task_id=task.id,
        attempt=1,
        verification="accept",
        status=200,
        reason="its token or signature is valid",
        headers="{}",
        query=json.dumps({"task": task.id, "attempt": "1"}),
        body=json.dumps(body or done()),
        evidence=evidence.to_json(),
        received_at=broker.services.clock.now(),
        processed_at=1.0,
    )
    await broker.services.database.transact(
        broker.services.tables.callbacks.insert_callback(replace(callback, **changes))
    )
    return callback.id


def ended(seconds_ago: float, now: float, unit: float = 1000) -> dict[str, Any]:
    body = done()
    return {**body, "data": {**body["data"], "completeTime": int((now - seconds_ago) * unit)}}


# -- reading


async def test_list_and_detail_have_their_documented_keys(tmp_path: Path) -> None:
    async with open_api(tmp_path) as broker:
        task = await a_job(broker)
        callback_id = await send_callback(broker, address(broker, task), done(), **{"X-Trace": "kept"})
        whole = await wait_for_field(broker, callback_id, "processedAt")
        ((line,), document) = await list_callbacks(broker)
        assert document.keys() == {"success", "data", "nextCursor", "missing"}
        expected = {"id": callback_id, "provider": "kie", "taskId": task.id, "attempt": 1, "verification": "accept"}
        assert {name: line[name] for name in expected} == expected
        keys = "owner withheld status reason receivedAt lagSeconds processedAt"
        assert line.keys() == {*expected, *keys.split()}
        assert whole == {
            **line,
            **{name: whole[name] for name in ("headers", "query", "evidence", "body")},
            "bodyTruncated": False,
        }
        assert json.loads(whole["body"]) == done()
        assert whole["query"] == {"task": task.id, "attempt": "1"}
        assert whole["headers"]["x-trace"] == "kept"
        assert (whole["evidence"]["token"], whole["evidence"]["trusted"]) == ("body", False)


async def test_list_can_be_filtered_by_verification(tmp_path: Path) -> None:
    async with open_api(tmp_path) as broker:
        task = await a_job(broker)
        sent = {
            "accept": await send_callback(broker, address(broker, task), done()),
            "recheck": await send_callback(broker, WEBHOOK_PATH, done()),
            "reject": await send_callback(broker, address(broker, task, "0" * 32), done()),
            "unknown": await send_callback(broker, WEBHOOK_PATH, done("unknown-job")),
            "malformed": await send_callback(broker, WEBHOOK_PATH, b"{"),
        }
        for verification, callback_id in sent.items():
            ((line,), _) = await list_callbacks(broker, verification=verification)
            assert line["id"] == callback_id
        for verification in ("reject", "unknown", "malformed"):
            assert (await get_callback(broker, sent[verification]))["processedAt"] is None


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"completeTime": lambda now: int((now - 5) * 1000)}, (5, 6)),
        ({"completeTime": lambda now: int(now - 5)}, (5, 7)),
        ({"completeTime": lambda now: str(int((now - 5) * 1000))}, (5, 6)),
        ({"completeTime": lambda now: int((now + 60) * 1000)}, (0, 0)),
    ],
    ids=["milliseconds", "seconds", "text", "their clock is ahead"],
)
async def test_lag_is_the_time_from_the_end_of_the_job_to_the_callback(
    tmp_path: Path, changes: Any, expected: tuple[float, float]
) -> None:
    async with open_api(tmp_path) as broker:
        task, now = await a_job(broker), broker.services.clock.now()
        body = done()
        body["data"] |= {name: value(now) for name, value in changes.items()}
        callback = await get_callback(broker, await send_callback(broker, address(broker, task), body))
        assert expected[0] <= callback["lagSeconds"] <= expected[1]
        page = (await broker.client.get("/metrics")).text
        assert 'broker_callback_lag_seconds_count{provider="kie"} 1.0' in page
        assert 'broker_callback_lag_seconds_sum{provider="kie"} -' not in page


@pytest.mark.parametrize("time", [None, -1, 0, "soon", [], 10**30, 1_000, "2001-01-01T00:00:00Z", 4_000_000_000_000])
async def test_implausible_end_of_a_job_gives_no_lag(tmp_path: Path, time: Any) -> None:
    async with open_api(tmp_path) as broker:
        task, body = await a_job(broker), done()
        body["data"]["completeTime"] = time
        callback = await get_callback(broker, await send_callback(broker, address(broker, task), body))
        assert (callback["verification"], callback["lagSeconds"]) == ("accept", None)


async def test_unverified_callback_is_not_in_the_lag_histogram(tmp_path: Path) -> None:
    async with open_api(tmp_path) as broker:
        await a_job(broker)
        callback = await get_callback(
            broker, await send_callback(broker, WEBHOOK_PATH, ended(100, broker.services.clock.now()))
        )
        assert callback["verification"] == "recheck"
        assert "broker_callback_lag_seconds_count" not in (await broker.client.get("/metrics")).text


async def test_pages_list_every_callback_once_newest_first(tmp_path: Path) -> None:
    async with open_api(tmp_path) as broker:
        task = await a_job(broker)
        sent = [await send_callback(broker, address(broker, task, "0" * 32), done()) for _ in range(7)]
        seen: list[str] = []
        params: dict[str, Any] = {"limit": 3, "verification": "reject", "provider": "kie"}
        while True:
            page, document = await list_callbacks(broker, **params)
            seen += [callback["id"] for callback in page]
            assert ("missing" in document) is ("cursor" not in params)
            if document["nextCursor"] is None:
                break
            params["cursor"] = document["nextCursor"]
        assert seen == sent[::-1]
        assert await list_callbacks(broker, task="unknown_task") == (
            [],
            (await list_callbacks(broker, task="unknown_task"))[1],
        )


@pytest.mark.parametrize(
    ("params", "field"),
    [
        ({"limit": "0"}, "limit"),
        ({"limit": "many"}, "limit"),
        ({"cursor": "x"}, "cursor"),
        ({"cursor": f"1000.5-task_{0:043x}"}, "cursor"),
        ({"verification": "fine"}, "verification"),
        ({"task": "a\x00b"}, "task"),
        ({"task": "x" * 101}, "task"),
        ({"provider": "ki e"}, "provider"),
    ],
    ids=str,
)
async def test_invalid_query_names_its_field(tmp_path: Path, params: Mapping[str, str], field: str) -> None:
    """The second cursor belongs to the list of tasks."""
    async with open_api(tmp_path) as broker:
        answer = await broker.client.get("/api/callbacks", params=params)
        assert (answer.status_code, answer.json()["field"]) == (400, field)


@pytest.mark.parametrize(
    "callback_id", [f"callback_{'0' * 24}", "callback_", "x", "callback_%00", "%F0%9F%8D%8C", "h" * 4000]
)
async def test_unknown_id_is_not_found(tmp_path: Path, callback_id: str) -> None:
    async with open_api(tmp_path) as broker:
        for method, path in (("GET", ""), ("POST", "/replay"), ("GET", "/fixture")):
            answer = await broker.client.request(method, f"/api/callbacks/{callback_id}{path}")
            assert (answer.status_code, answer.json()["code"]) == (404, "not_found")


async def test_id_that_postgres_cannot_store_is_not_found(tmp_path: Path, postgres: Postgres) -> None:
    """It stores no NUL; the answer must not be that the database is unavailable."""
    async with open_api(tmp_path, database_url=await postgres.fresh()) as broker:
        assert (await broker.client.get("/api/callbacks/callback_%00")).status_code == 404
        assert (await broker.client.get("/api/callbacks?task=%00")).status_code == 400


async def test_second_result_does_not_change_how_the_end_was_learned(tmp_path: Path) -> None:
    async with open_api(tmp_path) as broker:
        task = await a_job(broker)
        await broker.services.database.execute("UPDATE attempts SET outcome = 'succeeded', learned_by = 'check'")
        callback_id = await send_callback(broker, address(broker, task), done("another-job"))
        await wait_for_field(broker, callback_id, "processedAt")
        (attempt,) = await Attempts(broker.services.database).list_of_task(task.id)
        assert "another-job" in (attempt.duplicate_result or "")
        assert attempt.learned_by == "check"


# -- replaying


async def test_compressed_callback_is_stored_as_malformed(tmp_path: Path) -> None:
    """Otherwise the callbacks of a provider behind a compressing proxy would be rejected without a trace."""
    async with open_api(tmp_path) as broker:
        headers = {"Content-Encoding": "gzip", "Content-Type": "application/json"}
        answer = await broker.client.post("/api/webhook/nano-banana", content=b"\x1f\x8b\x08{}", headers=headers)
        assert answer.status_code == 400
        ((callback,), _) = await list_callbacks(broker, limit=1)
        assert (callback["verification"], callback["status"]) == ("malformed", 400)
        assert "Content-Encoding" in callback["reason"]


async def test_report_of_an_earlier_job_applies_to_its_own_attempt(tmp_path: Path) -> None:
    """It came without the address of an attempt; the next attempt is running and must not end by it."""
    async with open_api(tmp_path) as broker:
        task = await broker.add_task(
            state=TaskState.SUBMITTING, attempt=2, lease_until=NEVER, leased_by="another worker"
        )
        for number, job_id in ((1, "job-1"), (2, None)):
            await broker.services.database.execute(
                """INSERT INTO attempts (task_id, number, provider, key_id, job_id, sent_at, outcome, billed)
                    VALUES (:id, :number, 'kie', 'default', :job, 1.0, 'sent', 'unknown')""",
                id=task.id,
                number=number,
                job=job_id,
            )
        failed = {"code": 500, "data": {"taskId": "job-1", "state": "fail", "failCode": "500", "failMsg": "internal"}}
        answer = await broker.client.post("/api/webhook/nano-banana", json=failed)
        assert answer.status_code == 200
        ((callback,), _) = await list_callbacks(broker, limit=1)
        explained = await replay_callback(broker, callback["id"])
        await wait_for_field(broker, explained["replayId"], "processedAt")
        assert (await get_task(broker, task)).state == TaskState.SUBMITTING
        attempts = await Attempts(broker.services.database).list_of_task(task.id)
        assert [(attempt.outcome, attempt.job_id) for attempt in attempts] == [("failed", "job-1"), ("sent", None)]


async def test_replay_of_an_accepted_callback_applies_its_report(tmp_path: Path) -> None:
    """As after a corrected defect: the callback was processed before, without effect."""
    async with open_api(tmp_path) as broker:
        task = await a_job(broker)
        callback_id = await store_processed(broker, task)
        explained = await replay_callback(broker, callback_id)
        assert (explained["verification"], explained["replayedAs"], explained["replayed"]) == ("accept", "accept", True)
        assert explained["names"] == [JOB]
        assert explained["reportData"]["outputs"] == [RESULT]
        assert explained["report"] == "the job succeeded: 1 result"
        assert explained["effect"] == "the task goes from waiting to fetching"
        assert (await wait_for_state(broker, task, TaskState.FETCHING)).outputs == (RESULT,)
        replay = await wait_for_field(broker, explained["replayId"], "processedAt")
        assert (replay["replayOf"], replay["reason"]) == (callback_id, "replayed by hand")
        assert replay["lagSeconds"] is None
        assert replay["body"] == (await get_callback(broker, callback_id))["body"]
        assert "replayOf" not in await get_callback(broker, callback_id)


async def test_dry_run_of_a_replay_changes_nothing(tmp_path: Path) -> None:
    async with open_api(tmp_path) as broker:
        task = await a_job(broker)
        callback_id = await store_processed(broker, task)
        before = (await get_task(broker, task), await list_callbacks(broker))
        explained = await replay_callback(broker, callback_id, dryRun="true")
        assert (explained["dryRun"], explained["replayed"], explained["replayId"]) == (True, False, None)
        assert explained["effect"] == "the task goes from waiting to fetching"
        assert (await get_task(broker, task), await list_callbacks(broker)) == before
        answer = await broker.client.post(f"/api/callbacks/{callback_id}/replay", params={"dryRun": "perhaps"})
        assert (answer.status_code, answer.json()["field"]) == (400, "dryRun")
        assert await list_callbacks(broker) == before[1]


async def test_replay_of_a_rechecked_callback_only_polls(tmp_path: Path) -> None:
    """A body without proof must not be applied because the operator replays it."""
    async with open_api(tmp_path) as broker:
        task = await a_job(broker)
        callback_id = await send_callback(broker, WEBHOOK_PATH, done())
        await wait_for_field(broker, callback_id, "processedAt")
        explained = await replay_callback(broker, callback_id)
        assert (explained["verification"], explained["replayedAs"], explained["replayed"]) == (
            "recheck",
            "recheck",
            True,
        )
        assert (await wait_for_field(broker, explained["replayId"], "processedAt"))["verification"] == "recheck"
        found = await get_task(broker, task)
        assert (found.state, found.outputs) == (TaskState.WAITING, ())


async def test_replay_is_not_trusted_more_than_the_original(tmp_path: Path) -> None:
    """By today's rules it would be accepted; on arrival it was not, so the provider is polled again."""
    async with open_api(tmp_path) as broker:
        task = await a_job(broker)
        callback_id = await store_processed(
            broker, task, verification="recheck", status=202, evidence=Evidence(trusted=True).to_json()
        )
        explained = await replay_callback(broker, callback_id)
        assert (explained["verification"], explained["replayedAs"]) == ("accept", "recheck")
        await wait_for_field(broker, explained["replayId"], "processedAt")
        assert (await get_task(broker, task)).state == TaskState.WAITING


async def test_replay_of_a_signed_callback_without_body_proof_only_polls(tmp_path: Path) -> None:
    async with open_api(tmp_path, webhook_key=WEBHOOK_KEY) as broker:
        task = await a_job(broker)
        callback_id = await send_callback(broker, WEBHOOK_PATH, done(), **signed(broker.services.clock.now()))
        explained = await replay_callback(broker, callback_id)
        assert (explained["was"]["verification"], explained["verification"], explained["replayedAs"]) == (
            "recheck",
            "recheck",
            "recheck",
        )
        assert (await get_task(broker, task)).state == TaskState.WAITING


async def test_rejected_callback_is_explained_and_not_replayed(tmp_path: Path) -> None:
    async with open_api(tmp_path) as broker:
        task = await a_job(broker)
        callback_id = await send_callback(broker, address(broker, task, "0" * 32), done())
        explained = await replay_callback(broker, callback_id)
        assert (explained["verification"], explained["status"], explained["replayedAs"], explained["replayed"]) == (
            "reject",
            401,
            None,
            False,
        )
        assert (explained["taskId"], explained["effect"]) == (task.id, "nothing: it is not processed")
        assert [callback["id"] for callback in (await list_callbacks(broker))[0]] == [callback_id]
        assert (await get_task(broker, task)).state == TaskState.WAITING


async def test_rejected_callback_is_not_replayed_after_rules_became_milder(tmp_path: Path) -> None:
    """By today's rules it would be rechecked; on arrival it was rejected, and its sender got that response."""
    async with open_api(tmp_path) as broker:
        task = await a_job(broker)
        callback_id = await store_processed(
            broker, task, verification="reject", status=401, task_id=None, attempt=None, evidence=Evidence().to_json()
        )
        explained = await replay_callback(broker, callback_id)
        assert (explained["verification"], explained["replayedAs"], explained["replayed"]) == ("recheck", None, False)


async def test_malformed_callback_with_a_valid_token_is_accepted_when_readable(tmp_path: Path) -> None:
    """The token was right, but an earlier version could not read the body."""
    async with open_api(tmp_path) as broker:
        task = await a_job(broker)
        evidence = Evidence(token=Proof.BODY_VERIFIED).to_json()
        callback_id = await store_processed(
            broker, task, verification="malformed", status=400, task_id=None, evidence=evidence
        )
        explained = await replay_callback(broker, callback_id)
        assert (explained["was"]["verification"], explained["verification"], explained["replayedAs"]) == (
            "malformed",
            "accept",
            "accept",
        )
        assert (await wait_for_state(broker, task, TaskState.FETCHING)).outputs == (RESULT,)


async def test_callback_of_an_unknown_task_is_rechecked_once_the_task_is_known(tmp_path: Path) -> None:
    async with open_api(tmp_path) as broker:
        callback_id = await send_callback(broker, WEBHOOK_PATH, done())
        assert (await replay_callback(broker, callback_id))["verification"] == "unknown"
        task = await a_job(broker)
        explained = await replay_callback(broker, callback_id)
        assert (explained["verification"], explained["replayedAs"], explained["taskId"]) == (
            "recheck",
            "recheck",
            task.id,
        )
        assert (await wait_for_field(broker, explained["replayId"], "processedAt"))["taskId"] == task.id


async def test_replay_of_an_unreadable_callback_is_malformed(tmp_path: Path) -> None:
    async with open_api(tmp_path) as broker:
        task = await a_job(broker)
        unreadable = [
            (b"{", 400, "the body cannot be read"),
            (b'{"code": 200, "code": 200}', 400, "the body cannot be read"),
            (b"x" * 300_000, 413, "only the beginning of the body is stored"),
        ]
        for body, status, report in unreadable:
            explained = await replay_callback(broker, await send_callback(broker, address(broker, task), body))
            assert (explained["verification"], explained["status"], explained["replayed"]) == (
                "malformed",
                status,
                False,
            )
            assert (explained["reportData"], explained["report"]) == (None, report)


async def test_replay_after_the_end_changes_nothing(tmp_path: Path) -> None:
    async with open_api(tmp_path) as broker:
        task = await a_job(broker)
        callback_id = await store_processed(broker, task)
        await broker.services.database.execute("UPDATE attempts SET outcome = 'succeeded'")
        for state, effect in (
            (TaskState.SUCCEEDED, "nothing: the task is succeeded already"),
            (TaskState.EXPIRED, "nothing: the task was deleted by retention"),
        ):
            await broker.change_task(task, state=state, ended_at=NEVER, due_at=NEVER)
            explained = await replay_callback(broker, callback_id)
            assert explained["effect"] == effect
            await wait_for_field(broker, explained["replayId"], "processedAt")
            assert (await get_task(broker, task)).state == state


async def test_valid_token_is_valid_for_its_own_task_only(tmp_path: Path) -> None:
    """Its task may be deleted by now; a job id in the body must not lead to another one."""
    async with open_api(tmp_path) as broker:
        task = await a_job(broker)
        gone = f"task_{'9' * 43}"
        token = broker.services.tokens.token(gone, 1)
        path = f"{WEBHOOK_PATH}?{httpx.QueryParams({'task': gone, 'attempt': '1', 'token': token})}"
        callback_id = await send_callback(broker, path, done())
        assert (await get_callback(broker, callback_id))["verification"] == "unknown"
        assert not (await replay_callback(broker, callback_id))["replayed"]
        assert (await get_task(broker, task)).state == TaskState.WAITING


# -- callbacks without proof


async def test_callback_without_proof_keeps_the_beginning_of_its_body(tmp_path: Path) -> None:
    """A stranger must not fill the disk: 120 callbacks a minute of 256 KiB each would do so in hours."""
    async with open_api(tmp_path) as broker:
        task = await a_job(broker)
        padded = {**done(), "padding": "я" * 30_000}
        strangers = {
            "reject": await send_callback(broker, address(broker, task, "0" * 32), padded),
            "unknown": await send_callback(broker, WEBHOOK_PATH, {**padded, **done("another-job")}),
            "malformed": await send_callback(broker, WEBHOOK_PATH, b"[" * 200_000),
            "recheck": await send_callback(broker, WEBHOOK_PATH, padded),
        }
        for verification, callback_id in strangers.items():
            shown = await get_callback(broker, callback_id)
            assert (shown["verification"], shown["bodyTruncated"]) == (verification, True)
            assert 2046 <= len(shown["body"].encode()) <= 2048
            exported = (await broker.client.get(f"/api/callbacks/{callback_id}/fixture")).json()
            assert (exported["bodyTruncated"], exported["expected"]["report"]) == (True, None)
            assert exported["expected"]["verification"] == verification
        explained = await replay_callback(broker, strangers["recheck"])
        assert (explained["replayedAs"], explained["taskId"], explained["replayed"]) == ("recheck", task.id, True)
        assert explained["report"] == "only the beginning of the body is stored"
        whole = await get_callback(broker, await send_callback(broker, address(broker, task), padded))
        assert (json.loads(whole["body"]), whole["bodyTruncated"]) == (padded, False)


async def test_strangers_delete_no_proven_callback(tmp_path: Path) -> None:
    """Beyond the limit of all callbacks without proof, their oldest are deleted; none of those with a proof."""
    async with open_api(tmp_path) as broker:
        task = await a_job(broker)
        proven = [
            await send_callback(broker, address(broker, task), done()),
            await send_callback(broker, address(broker, task), b"{"),
        ]
        first, second = [await send_callback(broker, WEBHOOK_PATH, done("unknown")) for _ in range(2)]
        replay = (await replay_callback(broker, proven[0]))["replayId"]
        almost_full = MAX_UNPROVEN_BYTES - (await get_stored(broker, first)).size_bytes
        await broker.services.database.execute("UPDATE callback_totals SET bytes = :bytes", bytes=almost_full)
        third = await send_callback(broker, WEBHOOK_PATH, done("unknown"))
        fourth = await send_callback(broker, WEBHOOK_PATH, done("unknown"))
        left = {callback["id"] for callback in (await list_callbacks(broker))[0]}
        assert left == {*proven, second, third, fourth, replay}


async def test_proven_callback_is_stored_during_a_flood(tmp_path: Path) -> None:
    """The limit of callbacks without effect per minute is for those without proof."""
    async with open_api(tmp_path) as broker:
        task = await a_job(broker)
        for _ in range(MAX_REJECTED_PER_MINUTE + 1):
            await broker.client.post(WEBHOOK_PATH, content=b"{", headers=FORWARDED)
        await send_callback(broker, address(broker, task), b"[")
        ((line,), _) = await list_callbacks(broker, limit=1)
        assert (line["verification"], line["status"]) == ("malformed", 400)
        assert (await get_callback(broker, line["id"]))["body"] == "["


# -- the fixture, and secrets


async def test_fixture_contains_the_expected_result(tmp_path: Path) -> None:
    async with open_api(tmp_path) as broker:
        task = await a_job(broker)
        callback_id = await send_callback(broker, address(broker, task), ended(2, broker.services.clock.now()))
        fixture = (await broker.client.get(f"/api/callbacks/{callback_id}/fixture")).json()
        assert fixture.keys() == {
            *("provider", "receivedAt", "headers", "query", "body", "bodyTruncated", "evidence", "was", "expected")
        }
        assert (fixture["provider"], fixture["was"]["verification"]) == ("kie", "accept")
        expected = fixture["expected"]
        assert (expected["names"], expected["verification"], expected["status"]) == ([JOB], "accept", 200)
        assert (expected["report"]["kind"], expected["report"]["outputs"]) == ("finished", [RESULT])
        assert expected["report"]["endedAt"].endswith("Z")


async def test_no_endpoint_shows_a_secret(tmp_path: Path) -> None:
    async with open_api(tmp_path) as broker:
        task = await a_job(broker)
        token = broker.services.tokens.token(task.id, 1)
        repeated = {**done(), "callBackUrl": f"https://broker.example{address(broker, task)}"}
        callback_id = await send_callback(
            broker, address(broker, task), repeated, Authorization="Bearer canary", Cookie="canary=1"
        )
        explained = await replay_callback(broker, callback_id)
        for path in ("", f"/{callback_id}", f"/{explained['replayId']}", f"/{callback_id}/fixture"):
            text = (await broker.client.get(f"/api/callbacks{path}")).text
            assert task.id in text
            assert token not in text
            assert "canary" not in text
        assert token not in json.dumps(explained)


PROVIDER_KEY = "kie-key/with+odd=characters&more"
DATABASE_PASSWORD = "password of the database"


async def test_settings_that_are_secrets_are_not_stored(tmp_path: Path) -> None:
    """A provider that repeats our request, headers included, knows our key."""
    secrets: dict[str, Any] = {
        "kie_keys": ("another-key-of-ours", PROVIDER_KEY),
        "webhook_key": WEBHOOK_KEY,
        "api_keys": ("key-of-a-caller",),
        "s3_secret_key": "key-of-the-bucket",
        "secret_key": "secret-of-the-broker",
        "database_listen_url": f"postgresql://broker:{quote(DATABASE_PASSWORD)}@db.example/broker",
    }
    async with open_api(tmp_path, **secrets) as broker:
        task = await a_job(broker)
        values = [PROVIDER_KEY, WEBHOOK_KEY, "key-of-a-caller", "key-of-the-bucket", "secret-of-the-broker"]
        values += [DATABASE_PASSWORD, write_secret(derived_key(b"secret-of-the-broker")).removeprefix(KEY_PREFIX)]
        request = {"Authorization": [f"Bearer {value}" for value in values], "url": [quote(v, "") for v in values]}
        body = {**done(), "param": json.dumps(request), "request": request}
        headers = {**FORWARDED, "X-Echo": f"Bearer {PROVIDER_KEY}", "X-Other": quote(PROVIDER_KEY, "")}
        for path in (address(broker, task), f"{WEBHOOK_PATH}?{httpx.QueryParams({'task': PROVIDER_KEY})}"):
            await broker.client.post(path, json=body, headers=headers)
        callbacks = await broker.services.tables.callbacks.list_newest(limit=5)
        assert {callback.verification for callback in callbacks} == {"accept", "reject"}
        for callback in callbacks:
            assert "Bearer [hidden]" in json.loads((await get_stored(broker, callback.id)).headers)["x-echo"]
            for end in ("", "/fixture"):
                url = f"/api/callbacks/{callback.id}{end}"
                text = (await broker.client.get(url, headers={"Authorization": "Bearer key-of-a-caller"})).text
                shown = unquote(text) + text
                assert "Bearer [hidden]" in shown
                assert not [value for value in values if value in shown or json.dumps(value)[1:-1] in shown]
        (accepted,) = [callback for callback in callbacks if callback.verification == "accept"]
        document = json.loads((await get_stored(broker, accepted.id)).body)
        assert json.loads(document["param"])["url"] == document["request"]["url"] == ["[hidden]"] * len(values)
        assert (await wait_for_state(broker, task, TaskState.FETCHING)).outputs == (RESULT,)


@pytest.mark.parametrize(
    ("key", "url", "more"),
    [
        (PROVIDER_KEY, f"https://files.example/x.png?key={quote(PROVIDER_KEY, '')}", b""),
        ('value","name', RESULT, b',"member":"value","name":1'),
    ],
    ids=["masked URL", "no JSON any more"],
)
async def test_callback_that_redaction_made_useless_makes_the_broker_poll(
    tmp_path: Path, key: str, url: str, more: bytes
) -> None:
    """Its result is not lost: the provider still has it."""
    async with open_api(tmp_path, webhook_key=key) as broker:
        task, body = await a_job(broker), done()
        body["data"]["resultJson"] = json.dumps({"resultUrls": [url]})
        content = json.dumps(body).encode()[:-1] + more + b"}"
        callback_id = await send_callback(broker, address(broker, task), content)
        shown = await wait_for_field(broker, callback_id, "processedAt")
        assert shown["verification"] == "accept"
        assert key not in unquote(shown["body"])
        found = await get_task(broker, task)
        assert (found.state, found.outputs) == (TaskState.WAITING, ())
        assert found.due_at < NEVER
