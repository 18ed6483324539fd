"""The inbox over HTTP: every callback with its verdict and its times, and what a replay may do."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest

from storage.attempts import Attempts
from storage.callbacks import StoredCallback
from storage.states import TaskState
from storage.tasks import Task
from tests.api.test_api_callbacks import FORWARDED, HOOK, JOB, WEBHOOK_KEY, a_job, address, done, signed
from tests.support.api import NEVER, ApiBroker, open_api
from tests.support.servers.postgres import Postgres
from webhooks.signatures.base import Proof
from webhooks.verification import Evidence

pytestmark = pytest.mark.anyio

RESULT = "http://127.0.0.1:9/x.png"


async def call(broker: ApiBroker, path: str, body: Any, **headers: str) -> str:
    """A callback; its id in the inbox."""
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    await broker.client.post(path, content=content, headers={**FORWARDED, **headers})
    ((hook,), _) = await listed(broker, limit=1)
    hook_id: str = hook["id"]
    return hook_id


async def listed(broker: ApiBroker, **params: Any) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    answer = await broker.client.get("/api/callbacks", params=params)
    assert answer.status_code == 200, answer.text
    document: dict[str, Any] = answer.json()
    return document["data"], document


async def shown(broker: ApiBroker, hook_id: str) -> dict[str, Any]:
    answer = await broker.client.get(f"/api/callbacks/{hook_id}")
    assert answer.status_code == 200, answer.text
    data: dict[str, Any] = answer.json()["data"]
    return data


async def settled(broker: ApiBroker, hook_id: str, field: str) -> dict[str, Any]:
    """The callback when what is written after our answer is there."""
    async with asyncio.timeout(10):
        while True:
            hook = await shown(broker, hook_id)
            if hook[field] is not None:
                return hook
            await asyncio.sleep(0.002)


async def replayed(broker: ApiBroker, hook_id: str, **params: str) -> dict[str, Any]:
    answer = await broker.client.post(f"/api/callbacks/{hook_id}/replay", params=params)
    assert answer.status_code == 200, answer.text
    data: dict[str, Any] = answer.json()["data"]
    return data


async def row(broker: ApiBroker, task: Task) -> Task:
    found = await broker.services.tasks.get(task.id)
    assert found is not None
    return found


async def becomes(broker: ApiBroker, task: Task, state: TaskState) -> Task:
    async with asyncio.timeout(10):
        while True:
            found = await row(broker, task)
            if found.state == state:
                return found
            await asyncio.sleep(0.002)


async def keep(broker: ApiBroker, task: Task, body: Any = None, **changes: Any) -> str:
    """A callback that came, was read, and of which nothing became; its id."""
    proofs = Evidence(token=Proof.BODY_VERIFIED, known=True)
    hook = StoredCallback(
        id=f"hook_{'c' * 24}",
        provider="kie",
        task_id=task.id,
        attempt=1,
        verification="accept",
        status=200,
        reason="its token or signature is valid",
        headers="{}",
        query=json.dumps({"task": task.id, "attempt": "1"}),
        body=json.dumps(body or done()),
        evidence=proofs.to_json(),
        received_at=broker.services.clock.now(),
        processed_at=1.0,
    )
    await broker.services.database.transact(broker.services.callbacks.insert_callback(replace(hook, **changes)))
    return hook.id


def ended(seconds_ago: float, now: float, unit: float = 1000) -> dict[str, Any]:
    body = done()
    return {**body, "data": {**body["data"], "completeTime": int((now - seconds_ago) * unit)}}


# -- looking


async def test_the_keys_of_a_line_and_of_the_whole(tmp_path: Path) -> None:
    async with open_api(tmp_path) as broker:
        task = await a_job(broker)
        hook_id = await call(broker, address(broker, task), done(), **{"X-Trace": "kept"})
        whole = await settled(broker, hook_id, "processedAt")
        ((line,), document) = await listed(broker)
        assert document.keys() == {"success", "data", "nextCursor", "missing"}
        expected = {"id": hook_id, "provider": "kie", "taskId": task.id, "attempt": 1, "verification": "accept"}
        assert {name: line[name] for name in expected} == expected
        keys = "status reason receivedAt lagSeconds processedAt"
        assert line.keys() == {*expected, *keys.split()}
        assert whole == {**line, **{name: whole[name] for name in ("headers", "query", "evidence", "body")}}
        assert json.loads(whole["body"]) == done()
        assert whole["query"] == {"task": task.id, "attempt": "1"}
        assert whole["headers"]["x-trace"] == "kept"
        assert (whole["evidence"]["token"], whole["evidence"]["trusted"]) == ("body", False)


async def test_every_verdict_can_be_listed(tmp_path: Path) -> None:
    async with open_api(tmp_path) as broker:
        task = await a_job(broker)
        sent = {
            "accept": await call(broker, address(broker, task), done()),
            "recheck": await call(broker, HOOK, done()),
            "reject": await call(broker, address(broker, task, "0" * 32), done()),
            "unknown": await call(broker, HOOK, done("nobody's")),
            "malformed": await call(broker, HOOK, b"{"),
        }
        for verdict, hook_id in sent.items():
            ((line,), _) = await listed(broker, verification=verdict)
            assert line["id"] == hook_id
        for verdict in ("reject", "unknown", "malformed"):
            assert (await shown(broker, sent[verdict]))["processedAt"] is None


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
async def test_how_long_a_callback_was_on_its_way(tmp_path: Path, changes: Any, expected: tuple[float, float]) -> None:
    async with open_api(tmp_path) as broker:
        task, now = await a_job(broker), broker.services.clock.now()
        body = done()
        body["data"] |= {name: value(now) for name, value in changes.items()}
        hook = await shown(broker, await call(broker, address(broker, task), body))
        assert expected[0] <= hook["lagSeconds"] <= expected[1]
        page = (await broker.client.get("/metrics")).text
        assert 'broker_callback_lag_seconds_count{provider="kie"} 1.0' in page
        assert 'broker_callback_lag_seconds_sum{provider="kie"} -' not in page


@pytest.mark.parametrize("time", [None, -1, 0, "soon", [], 10**30, 1_000, "2001-01-01T00:00:00Z", 4_000_000_000_000])
async def test_impossible_times_give_no_lag(tmp_path: Path, time: Any) -> None:
    async with open_api(tmp_path) as broker:
        task, body = await a_job(broker), done()
        body["data"]["completeTime"] = time
        hook = await shown(broker, await call(broker, address(broker, task), body))
        assert (hook["verification"], hook["lagSeconds"]) == ("accept", None)


async def test_a_stranger_does_not_move_the_histogram(tmp_path: Path) -> None:
    async with open_api(tmp_path) as broker:
        await a_job(broker)
        hook = await shown(broker, await call(broker, HOOK, ended(100, broker.services.clock.now())))
        assert hook["verification"] == "recheck"
        assert "broker_callback_lag_seconds_count" not in (await broker.client.get("/metrics")).text


async def test_pages_follow_each_other(tmp_path: Path) -> None:
    async with open_api(tmp_path) as broker:
        task = await a_job(broker)
        sent = [await call(broker, address(broker, task, "0" * 32), done()) for _ in range(7)]
        seen: list[str] = []
        params: dict[str, Any] = {"limit": 3, "verification": "reject", "provider": "kie"}
        while True:
            page, document = await listed(broker, **params)
            seen += [hook["id"] for hook in page]
            assert ("missing" in document) is ("cursor" not in params)
            if document["nextCursor"] is None:
                break
            params["cursor"] = document["nextCursor"]
        assert seen == sent[::-1]
        assert await listed(broker, task="task_of_nobody") == ([], (await listed(broker, task="task_of_nobody"))[1])


@pytest.mark.parametrize(
    ("params", "field"),
    [
        ({"limit": "0"}, "limit"),
        ({"limit": "many"}, "limit"),
        ({"cursor": "x"}, "cursor"),
        ({"cursor": "MTAwMC41IHRhc2tfMDAwMDAwMDAwMDAwMDAwMDAwMDAwMDAwMDAwMDAwMDA"}, "cursor"),
        ({"verification": "fine"}, "verification"),
        ({"task": "a\x00b"}, "task"),
        ({"task": "x" * 101}, "task"),
        ({"provider": "ki e"}, "provider"),
    ],
    ids=str,
)
async def test_what_is_asked_for_wrongly_is_named(tmp_path: Path, params: Mapping[str, str], field: str) -> None:
    """The second cursor is one of the list of tasks."""
    async with open_api(tmp_path) as broker:
        answer = await broker.client.get("/api/callbacks", params=params)
        assert (answer.status_code, answer.json()["field"]) == (400, field)


@pytest.mark.parametrize("hook_id", [f"hook_{'0' * 24}", "hook_", "x", "hook_%00", "%F0%9F%8D%8C", "h" * 4000])
async def test_what_is_not_there_is_not_found(tmp_path: Path, hook_id: str) -> None:
    async with open_api(tmp_path) as broker:
        for method, path in (("GET", ""), ("POST", "/replay"), ("GET", "/fixture")):
            answer = await broker.client.request(method, f"/api/callbacks/{hook_id}{path}")
            assert (answer.status_code, answer.json()["code"]) == (404, "not_found")


async def test_what_postgres_cannot_hold_is_not_found_either(tmp_path: Path, postgres: Postgres) -> None:
    """It takes no NUL, and must not have us answer that the store is in trouble."""
    async with open_api(tmp_path, database_url=await postgres.fresh()) as broker:
        assert (await broker.client.get("/api/callbacks/hook_%00")).status_code == 404
        assert (await broker.client.get("/api/callbacks?task=%00")).status_code == 400


async def test_a_second_result_does_not_change_how_the_end_was_learned(tmp_path: Path) -> None:
    async with open_api(tmp_path) as broker:
        task = await a_job(broker)
        await broker.services.database.execute("UPDATE attempts SET outcome = 'succeeded', learned_by = 'check'")
        hook_id = await call(broker, address(broker, task), done("another-job"))
        await settled(broker, hook_id, "processedAt")
        (attempt,) = await Attempts(broker.services.database).list_of_task(task.id)
        assert "another-job" in (attempt.duplicate_result or "")
        assert attempt.learned_by == "check"


# -- replaying


async def test_a_compressed_callback_is_in_the_inbox(tmp_path: Path) -> None:
    """Or a provider behind a compressing proxy would be rejected each time, unseen."""
    async with open_api(tmp_path) as broker:
        headers = {"Content-Encoding": "gzip", "Content-Type": "application/json"}
        answer = await broker.client.post("/api/webhook/nano-banana", content=b"\x1f\x8b\x08{}", headers=headers)
        assert answer.status_code == 400
        ((hook,), _) = await listed(broker, limit=1)
        assert (hook["verification"], hook["status"]) == ("malformed", 400)
        assert "Content-Encoding" in hook["reason"]


async def test_news_of_an_earlier_job_is_about_the_attempt_that_made_it(tmp_path: Path) -> None:
    """It came without the address of an attempt. The next one is on its way, and may not be ended by it."""
    async with open_api(tmp_path) as broker:
        task = await broker.add_task(state=TaskState.SUBMITTING, attempt=2, lease_until=NEVER, leased_by="somebody")
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
        ((hook,), _) = await listed(broker, limit=1)
        told = await replayed(broker, hook["id"])
        await settled(broker, told["replayId"], "processedAt")
        assert (await row(broker, task)).state == TaskState.SUBMITTING
        attempts = await Attempts(broker.services.database).list_of_task(task.id)
        assert [(attempt.outcome, attempt.job_id) for attempt in attempts] == [("failed", "job-1"), ("sent", None)]


async def test_a_replay_takes_the_news_in_again(tmp_path: Path) -> None:
    """As after a bug of ours: the news was read, nothing came of it, and the code is better now."""
    async with open_api(tmp_path) as broker:
        task = await a_job(broker)
        hook_id = await keep(broker, task)
        told = await replayed(broker, hook_id)
        assert (told["verification"], told["replayedAs"], told["replayed"]) == ("accept", "accept", True)
        assert told["names"] == [JOB]
        assert told["reportData"]["outputs"] == [RESULT]
        assert told["report"] == "the job succeeded: 1 result"
        assert told["effect"] == "the task goes from waiting to fetching"
        assert (await becomes(broker, task, TaskState.FETCHING)).outputs == (RESULT,)
        replay = await settled(broker, told["replayId"], "processedAt")
        assert (replay["replayOf"], replay["reason"]) == (hook_id, "replayed by hand")
        assert replay["lagSeconds"] is None
        assert replay["body"] == (await shown(broker, hook_id))["body"]
        assert "replayOf" not in await shown(broker, hook_id)


async def test_a_dry_run_changes_nothing(tmp_path: Path) -> None:
    async with open_api(tmp_path) as broker:
        task = await a_job(broker)
        hook_id = await keep(broker, task)
        before = (await row(broker, task), await listed(broker))
        told = await replayed(broker, hook_id, dryRun="true")
        assert (told["dryRun"], told["replayed"], told["replayId"]) == (True, False, None)
        assert told["effect"] == "the task goes from waiting to fetching"
        assert (await row(broker, task), await listed(broker)) == before
        answer = await broker.client.post(f"/api/callbacks/{hook_id}/replay", params={"dryRun": "perhaps"})
        assert (answer.status_code, answer.json()["field"]) == (400, "dryRun")
        assert await listed(broker) == before[1]


async def test_what_was_only_asked_about_stays_a_question(tmp_path: Path) -> None:
    """A stranger's body must not become news because the operator replayed it."""
    async with open_api(tmp_path) as broker:
        task = await a_job(broker)
        hook_id = await call(broker, HOOK, done())
        await settled(broker, hook_id, "processedAt")
        told = await replayed(broker, hook_id)
        assert (told["verification"], told["replayedAs"], told["replayed"]) == ("recheck", "recheck", True)
        assert (await settled(broker, told["replayId"], "processedAt"))["verification"] == "recheck"
        found = await row(broker, task)
        assert (found.state, found.outputs) == (TaskState.WAITING, ())


async def test_milder_rules_make_no_news_of_a_question(tmp_path: Path) -> None:
    """By today's rules it would be believed; then it was not, so the provider is asked again."""
    async with open_api(tmp_path) as broker:
        task = await a_job(broker)
        hook_id = await keep(
            broker, task, verification="recheck", status=202, evidence=Evidence(trusted=True).to_json()
        )
        told = await replayed(broker, hook_id)
        assert (told["verification"], told["replayedAs"]) == ("accept", "recheck")
        await settled(broker, told["replayId"], "processedAt")
        assert (await row(broker, task)).state == TaskState.WAITING


async def test_a_signature_that_does_not_cover_the_body_is_worth_a_question_again(tmp_path: Path) -> None:
    async with open_api(tmp_path, webhook_key=WEBHOOK_KEY) as broker:
        task = await a_job(broker)
        hook_id = await call(broker, HOOK, done(), **signed(broker.services.clock.now()))
        told = await replayed(broker, hook_id)
        assert (told["was"]["verification"], told["verification"], told["replayedAs"]) == (
            "recheck",
            "recheck",
            "recheck",
        )
        assert (await row(broker, task)).state == TaskState.WAITING


async def test_what_was_refused_is_explained_and_never_believed(tmp_path: Path) -> None:
    async with open_api(tmp_path) as broker:
        task = await a_job(broker)
        hook_id = await call(broker, address(broker, task, "0" * 32), done())
        told = await replayed(broker, hook_id)
        assert (told["verification"], told["status"], told["replayedAs"], told["replayed"]) == (
            "reject",
            401,
            None,
            False,
        )
        assert (told["taskId"], told["effect"]) == (task.id, "nothing: it is not processed")
        assert [hook["id"] for hook in (await listed(broker))[0]] == [hook_id]
        assert (await row(broker, task)).state == TaskState.WAITING


async def test_what_was_refused_for_a_rule_that_is_gone_stays_outside(tmp_path: Path) -> None:
    """By today's rules it would be a question; then it was rejected, and its sender got that response."""
    async with open_api(tmp_path) as broker:
        task = await a_job(broker)
        hook_id = await keep(
            broker, task, verification="reject", status=401, task_id=None, attempt=None, evidence=Evidence().to_json()
        )
        told = await replayed(broker, hook_id)
        assert (told["verification"], told["replayedAs"], told["replayed"]) == ("recheck", None, False)


async def test_a_callback_that_could_not_be_read_is_replayed_by_what_it_proved(tmp_path: Path) -> None:
    """That is what a replay is for: the token was right, only we did not understand."""
    async with open_api(tmp_path) as broker:
        task = await a_job(broker)
        proofs = Evidence(token=Proof.BODY_VERIFIED).to_json()
        hook_id = await keep(broker, task, verification="malformed", status=400, task_id=None, evidence=proofs)
        told = await replayed(broker, hook_id)
        assert (told["was"]["verification"], told["verification"], told["replayedAs"]) == (
            "malformed",
            "accept",
            "accept",
        )
        assert (await becomes(broker, task, TaskState.FETCHING)).outputs == (RESULT,)


async def test_a_task_that_was_not_known_then_is_asked_about_now(tmp_path: Path) -> None:
    async with open_api(tmp_path) as broker:
        hook_id = await call(broker, HOOK, done())
        assert (await replayed(broker, hook_id))["verification"] == "unknown"
        task = await a_job(broker)
        told = await replayed(broker, hook_id)
        assert (told["verification"], told["replayedAs"], told["taskId"]) == ("recheck", "recheck", task.id)
        assert (await settled(broker, told["replayId"], "processedAt"))["taskId"] == task.id


async def test_one_that_is_still_unreadable_says_so(tmp_path: Path) -> None:
    async with open_api(tmp_path) as broker:
        task = await a_job(broker)
        for body, status in ((b"{", 400), (b"x" * 300_000, 413)):
            told = await replayed(broker, await call(broker, address(broker, task), body))
            assert (told["verification"], told["status"], told["replayed"]) == ("malformed", status, False)
            assert (told["reportData"], told["report"]) == (None, "the body cannot be read")


async def test_a_replay_after_the_end_changes_nothing(tmp_path: Path) -> None:
    async with open_api(tmp_path) as broker:
        task = await a_job(broker)
        hook_id = await keep(broker, task)
        await broker.services.database.execute("UPDATE attempts SET outcome = 'succeeded'")
        for state, effect in (
            (TaskState.SUCCEEDED, "nothing: the task is succeeded already"),
            (TaskState.EXPIRED, "nothing: the task was deleted by retention"),
        ):
            await broker.change_task(task, state=state, ended_at=NEVER, due_at=NEVER)
            told = await replayed(broker, hook_id)
            assert told["effect"] == effect
            await settled(broker, told["replayId"], "processedAt")
            assert (await row(broker, task)).state == state


async def test_a_right_token_speaks_for_its_own_task_only(tmp_path: Path) -> None:
    """Its task may be deleted by now; a job id in the body must not lead to another one."""
    async with open_api(tmp_path) as broker:
        task = await a_job(broker)
        gone = f"task_{'9' * 32}"
        token = broker.services.tokens.token(gone, 1)
        path = f"{HOOK}?{httpx.QueryParams({'task': gone, 'attempt': '1', 'token': token})}"
        hook_id = await call(broker, path, done())
        assert (await shown(broker, hook_id))["verification"] == "unknown"
        assert not (await replayed(broker, hook_id))["replayed"]
        assert (await row(broker, task)).state == TaskState.WAITING


# -- the fixture, and secrets


async def test_a_fixture_says_what_it_should_come_to(tmp_path: Path) -> None:
    async with open_api(tmp_path) as broker:
        task = await a_job(broker)
        hook_id = await call(broker, address(broker, task), ended(2, broker.services.clock.now()))
        fixture = (await broker.client.get(f"/api/callbacks/{hook_id}/fixture")).json()
        assert fixture.keys() == {"provider", "receivedAt", "headers", "query", "body", "evidence", "was", "expected"}
        assert (fixture["provider"], fixture["was"]["verification"]) == ("kie", "accept")
        expected = fixture["expected"]
        assert (expected["names"], expected["verification"], expected["status"]) == ([JOB], "accept", 200)
        assert (expected["report"]["kind"], expected["report"]["outputs"]) == ("finished", [RESULT])
        assert expected["report"]["endedAt"].endswith("Z")


async def test_no_way_out_shows_a_secret(tmp_path: Path) -> None:
    async with open_api(tmp_path) as broker:
        task = await a_job(broker)
        token = broker.services.tokens.token(task.id, 1)
        repeated = {**done(), "callBackUrl": f"https://broker.example{address(broker, task)}"}
        hook_id = await call(broker, address(broker, task), repeated, Authorization="Bearer canary", Cookie="canary=1")
        told = await replayed(broker, hook_id)
        for path in ("", f"/{hook_id}", f"/{told['replayId']}", f"/{hook_id}/fixture"):
            text = (await broker.client.get(f"/api/callbacks{path}")).text
            assert task.id in text
            assert token not in text
            assert "canary" not in text
        assert token not in json.dumps(told)
