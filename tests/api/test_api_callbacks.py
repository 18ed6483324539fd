"""Callbacks of providers: the verification decides the effect, and every callback is stored."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
from pathlib import Path
from typing import Any

import httpx
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from starlette.datastructures import QueryParams

from broker.accounts.users import UserChanges
from broker.api.callbacks import read_query
from storage.attempts import Attempt
from storage.tasks import Task
from tests.accounts.opening import PASSWORD
from tests.support.api import ApiBroker, open_api
from webhooks.tokens import ChallengeResponse, new_nonce
from webhooks.verification import MAX_BODY_BYTES

pytestmark = pytest.mark.anyio

WEBHOOK_PATH = "/api/webhook/nano-banana"
JOB = "job-of-the-provider"
FORWARDED = {"X-Forwarded-For": "8.8.8.8"}
"""Headers of a request through a tunnel, which is not trusted."""
WEBHOOK_KEY = "webhook-key-of-the-tests"


async def a_job(broker: ApiBroker) -> Task:
    task = await broker.add_task(job_id=JOB)
    attempt = Attempt(task_id=task.id, number=1, provider="kie", key_id="default", job_id=JOB, sent_at=task.created_at)
    values = vars(attempt)
    columns = ", ".join(values)
    await broker.services.database.execute(
        f"INSERT INTO attempts ({columns}) VALUES ({', '.join(':' + name for name in values)})", **values
    )
    return task


def address(broker: ApiBroker, task: Task, token: str | None = None, **changes: str) -> str:
    token = broker.services.tokens.token(task.id, 1) if token is None else token
    query = {"task": task.id, "attempt": "1", "token": token, **changes}
    return f"{WEBHOOK_PATH}?{httpx.QueryParams(query)}"


def done(task_id: str = JOB) -> dict[str, Any]:
    result = json.dumps({"resultUrls": ["http://127.0.0.1:9/x.png"]})
    return {"code": 200, "data": {"taskId": task_id, "state": "success", "resultJson": result}}


def signed(now: float, job: str = JOB, key: str = WEBHOOK_KEY) -> dict[str, str]:
    digest = hmac.new(key.encode(), f"{job}.{int(now)}".encode(), hashlib.sha256).digest()
    return {"X-Webhook-Timestamp": str(int(now)), "X-Webhook-Signature": base64.b64encode(digest).decode()}


@given(st.text("ab=&+%41;?/é", max_size=20))
@example("task=a&attempt=1&token=%62&token=c&=&d")
def test_query_is_read_as_the_framework_reads_it(query: str) -> None:
    assert read_query(query.encode("latin-1")) == dict(QueryParams(query.encode("latin-1")))


async def stored_verifications(broker: ApiBroker) -> list[tuple[str, int]]:
    return [
        (callback.verification, callback.status)
        for callback in await broker.services.tables.callbacks.list_newest(limit=100)
    ]


async def test_get_on_the_webhook_path_confirms_the_address(tmp_path: Path) -> None:
    async with open_api(tmp_path) as broker:
        for path in (WEBHOOK_PATH, "/api/webhook/kie"):
            document = (await broker.client.get(path, headers=FORWARDED)).json()
            assert document["timestamp"].endswith("Z")
            assert (document["status"], document["message"]) == ("ok", "Nano Banana webhook endpoint is ready")


async def test_probe_is_answered_for_a_valid_nonce_only(tmp_path: Path) -> None:
    async with open_api(tmp_path) as broker:
        presence, nonce = ChallengeResponse(broker.services.tokens.secret), new_nonce()
        shown = (await broker.client.get(WEBHOOK_PATH, params={"probe": nonce}, headers=FORWARDED)).json()
        assert presence.is_valid(nonce, shown["probe"])
        for query in ("", "?probe=", "?probe=task_1:1", f"?probe={nonce}0", f"?probe={nonce}&probe={nonce}", "?x=1"):
            greeting = (await broker.client.get(WEBHOOK_PATH + query)).json()
            assert set(greeting) == {"status", "message", "timestamp"}, query


async def test_token_decides_without_a_webhook_key(tmp_path: Path) -> None:
    """Every row of the table of proofs: without proof the provider is polled, a wrong proof changes nothing."""
    async with open_api(tmp_path) as broker:
        task = await a_job(broker)
        other = broker.services.tokens.token(task.id, 2)
        right = address(broker, task)
        token = broker.services.tokens.token(task.id, 1)
        cases: list[tuple[str, str, dict[str, str], int, str]] = [
            ("right token", right, FORWARDED, 200, ""),
            ("token of another attempt", address(broker, task, other), FORWARDED, 401, "unauthorized"),
            ("token cut short", address(broker, task, token[:-1]), FORWARDED, 401, "unauthorized"),
            ("empty token", address(broker, task, ""), FORWARDED, 401, "unauthorized"),
            ("strange token", address(broker, task, "ü\u0000🍌"), FORWARDED, 401, "unauthorized"),
            ("wrong token from here", address(broker, task, other), {}, 401, "unauthorized"),
            (
                "another task",
                f"{WEBHOOK_PATH}?task=task_{'9' * 43}&attempt=1&token={token}",
                FORWARDED,
                401,
                "unauthorized",
            ),
            ("no attempt", f"{WEBHOOK_PATH}?task={task.id}&token={token}", FORWARDED, 401, "unauthorized"),
            ("odd attempt", address(broker, task, attempt="01"), FORWARDED, 401, "unauthorized"),
            ("huge attempt", address(broker, task, attempt="9" * 400), FORWARDED, 401, "unauthorized"),
            ("no proof", WEBHOOK_PATH, FORWARDED, 202, ""),
            ("no proof, other path", "/api/webhook/kie", FORWARDED, 202, ""),
            ("trusted", WEBHOOK_PATH, {}, 200, ""),
        ]
        for what, path, headers, status, code in cases:
            answer = await broker.client.post(path, json=done(), headers=headers)
            assert answer.status_code == status, (what, answer.text)
            assert answer.json().get("code", "") == code, what
            assert answer.json()["success"] is (status < 300), what
        assert sorted(status for _, status in await stored_verifications(broker)) == sorted(case[3] for case in cases)


async def test_only_an_admin_with_a_password_of_its_own_plays_a_provider(tmp_path: Path) -> None:
    async with open_api(tmp_path) as broker:
        await a_job(broker)
        root = await broker.services.users.add("root", PASSWORD, is_admin=True, must_change_password=True)
        key = await broker.services.key_service.add("laptop", user=root)
        headers = {"Authorization": f"Bearer {key.secret}"}
        for must_change, status in ((True, 202), (False, 200)):
            await broker.services.users.change(root.id, UserChanges(must_change_password=must_change))
            assert (await broker.client.post(WEBHOOK_PATH, json=done(), headers=headers)).status_code == status


async def test_unsigned_callback_is_rejected_with_a_webhook_key(tmp_path: Path) -> None:
    """The signature covers only the id, so the provider is polled; a token alone is still accepted."""
    async with open_api(tmp_path, webhook_key=WEBHOOK_KEY) as broker:
        task = await a_job(broker)
        now = broker.services.clock.now()
        cases: list[tuple[str, str, dict[str, str], int]] = [
            ("unsigned", WEBHOOK_PATH, FORWARDED, 401),
            ("unsigned from here", WEBHOOK_PATH, {}, 401),
            ("signed", WEBHOOK_PATH, {**FORWARDED, **signed(now)}, 202),
            ("signed for another job", WEBHOOK_PATH, {**FORWARDED, **signed(now, "other")}, 401),
            ("signed with another key", WEBHOOK_PATH, {**FORWARDED, **signed(now, key="other")}, 401),
            ("stale", WEBHOOK_PATH, {**FORWARDED, **signed(now - 301)}, 401),
            ("from the future", WEBHOOK_PATH, {**FORWARDED, **signed(now + 310)}, 401),
            ("no timestamp", WEBHOOK_PATH, {**FORWARDED, "X-Webhook-Signature": "AAAA"}, 401),
            ("right token, unsigned", address(broker, task), FORWARDED, 200),
            ("right token, wrong signature", address(broker, task), {**FORWARDED, **signed(now, key="x")}, 401),
            ("right token, signed", address(broker, task), {**FORWARDED, **signed(now)}, 200),
        ]
        for what, path, headers, status in cases:
            answer = await broker.client.post(path, json=done(), headers=headers)
            assert answer.status_code == status, (what, answer.text)


async def test_accepted_success_starts_the_download_once(tmp_path: Path) -> None:
    """Repeated callbacks change nothing. The simulated callback of the guide contains our own id."""
    async with open_api(tmp_path) as broker:
        task = await a_job(broker)
        simulated = {"task_id": task.id, "status": "completed", "output": {"image_url": "http://127.0.0.1:9/x.png"}}
        for _ in range(3):
            assert (await broker.client.post(WEBHOOK_PATH, json=simulated)).status_code == 200
        await broker.services.worker.callbacks.step.process_callbacks(task.id)
        row = await broker.services.tables.tasks.get(task.id)
        assert row is not None
        assert row.outputs == ("http://127.0.0.1:9/x.png",)


async def test_rejected_callbacks_do_not_change_the_task(tmp_path: Path) -> None:
    async with open_api(tmp_path) as broker:
        task = await a_job(broker)
        before = await broker.services.tables.tasks.get(task.id)
        for number in range(50):
            path = address(broker, task, f"{number:032x}")
            assert (await broker.client.post(path, json=done(), headers=FORWARDED)).status_code == 401
        assert await broker.services.tables.tasks.get(task.id) == before


async def test_callback_without_a_task_is_not_found(tmp_path: Path) -> None:
    """404, so that the provider tries again: the job id may not be stored yet."""
    async with open_api(tmp_path) as broker:
        strange: list[Any] = [
            done("unknown"),
            {},
            [],
            1,
            None,
            "x",
            {"data": []},
            {"taskId": {}},
            {"task_id": "x" * 5000},
        ]
        for body in strange:
            answer = await broker.client.post(WEBHOOK_PATH, content=json.dumps(body), headers=FORWARDED)
            assert (answer.status_code, answer.json()["code"]) == (404, "task_not_found"), body


@pytest.mark.parametrize("trusted", [True, False])
async def test_unreadable_body_is_malformed(tmp_path: Path, trusted: bool) -> None:
    async with open_api(tmp_path) as broker:
        task = await a_job(broker)
        headers = {} if trusted else FORWARDED
        bodies = [b"", b"{", b"\xff\xfe", b"NaN", b"[" * 200_000, b'{"a":' + b"9" * 5000 + b"}", b'"\\ud800"', b"a=b"]
        for body in bodies:
            for path in (WEBHOOK_PATH, address(broker, task)):
                answer = await broker.client.post(path, content=body, headers=headers)
                assert (answer.status_code, answer.json()["code"]) == (400, "invalid_request"), body[:50]
        packed = await broker.client.post(WEBHOOK_PATH, content=b"x", headers={**headers, "Content-Encoding": "gzip"})
        assert (packed.status_code, packed.json()["code"]) == (400, "invalid_request")
        assert {result for result, _ in await stored_verifications(broker)} == {"malformed"}


async def test_any_content_type_is_read_as_json(tmp_path: Path) -> None:
    """Callers forget curl's -H, and one provider sends text/plain."""
    async with open_api(tmp_path) as broker:
        task = await a_job(broker)
        body = json.dumps(done()).encode()
        for media_type in ("application/json", "text/plain", "application/x-www-form-urlencoded", "", "nonsense;;"):
            answer = await broker.client.post(address(broker, task), content=body, headers={"content-type": media_type})
            assert answer.status_code == 200, media_type


async def test_body_above_the_limit_is_rejected_and_stored(tmp_path: Path) -> None:
    """A body at the limit is read; one byte more, declared or not, is 413 and stored in the inbox."""
    async with open_api(tmp_path) as broker:
        task = await a_job(broker)
        body = json.dumps({**done(), "padding": ""}).encode()
        fits = body.replace(b'"padding": ""', b'"padding": "' + b"x" * (MAX_BODY_BYTES - len(body)) + b'"')
        assert len(fits) == MAX_BODY_BYTES
        assert (await broker.client.post(address(broker, task), content=fits)).status_code == 200

        async def chunks() -> Any:
            for _ in range(10):
                yield b"x" * 100_000

        for content in (fits + b" ", chunks()):
            answer = await broker.client.post(address(broker, task), content=content)
            assert (answer.status_code, answer.json()["code"]) == (413, "payload_too_large")
        assert sorted(status for _, status in await stored_verifications(broker)) == [200, 413, 413]


@pytest.mark.parametrize("sockets", [False, True])
async def test_acknowledgement_time_is_measured(tmp_path: Path, sockets: bool) -> None:
    async with open_api(tmp_path, sockets=sockets) as broker:
        await broker.client.post(WEBHOOK_PATH, json=done())
        page = (await broker.client.get("/metrics")).text
        assert "broker_callback_ack_seconds_count 1.0" in page
        assert 'broker_callbacks_total{provider="kie",verification="unknown"} 1.0' in page


async def test_tokens_and_secrets_stay_out_of_the_inbox(tmp_path: Path) -> None:
    async with open_api(tmp_path) as broker:
        task = await a_job(broker)
        path = address(broker, task)
        headers = {**FORWARDED, "Authorization": "Bearer canary-1", "X-Api-Key": "canary-2", "X-Trace": "kept"}
        await broker.client.post(path, json=done(), headers=headers)
        (entry,) = await broker.services.tables.callbacks.list_newest(limit=10)
        kept = str(await broker.services.tables.callbacks.get(entry.id))
        assert "kept" in kept
        assert "canary" not in kept
        assert broker.services.tokens.token(task.id, 1) not in kept
