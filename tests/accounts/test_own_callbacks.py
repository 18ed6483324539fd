"""Callbacks of jobs with own keys: the token proves them, whatever signature their account adds."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from broker.orders import Turn
from storage.attempts import Attempt
from storage.sql.rows import insert_row
from storage.tasks import Task
from tests.api.test_api_callbacks import FORWARDED, JOB, address, done, signed, stored_verifications
from tests.support.api import ApiBroker, open_api

pytestmark = pytest.mark.anyio


async def a_job(broker: ApiBroker, number: int, account: str, **changes: Any) -> Task:
    task = await broker.add_task(number=number, provider=account, job_id=f"{JOB}{number}", **changes)
    values: dict[str, Any] = {"provider": account, "key_id": "key", "job_id": task.job_id, "sent_at": task.created_at}
    await broker.services.database.transact(insert_row("attempts", Attempt(task_id=task.id, number=1, **values)))
    return task


async def test_foreign_signature_of_an_own_account_is_not_read(tmp_path: Path) -> None:
    """The account signs with a secret of its own; that of the operator's account says nothing about it."""
    async with open_api(tmp_path, webhook_key="webhook-key-of-the-operator") as broker:
        own, of_house = await a_job(broker, 1, "kie@0123456789abcdef"), await a_job(broker, 2, "kie")
        now = broker.services.clock.now()
        answers = {}
        for name, task in (("own", own), ("house", of_house)):
            headers = {**FORWARDED, **signed(now, job=task.job_id or "", key="webhook-key-of-alice-account")}
            body = json.dumps(done(task.job_id or ""))
            sent = {
                path: await broker.client.post(path, content=body, headers=headers) for path in _paths(broker, task)
            }
            answers[name] = [answer.status_code for answer in sent.values()]
        assert answers == {"own": [200, 401, 401], "house": [401, 401, 401]}
        verifications = await stored_verifications(broker)
        assert verifications.count(("accept", 200)) == 1


def _paths(broker: ApiBroker, task: Task) -> list[str]:
    """Return the address with the right token, with a wrong one, and without any."""
    right = address(broker, task)
    return [right, address(broker, task, "0" * 32), right.split("?")[0]]


async def test_callback_at_a_provider_without_a_key_of_the_operator_is_accepted(tmp_path: Path) -> None:
    async with open_api(tmp_path) as broker:
        task = await a_job(broker, 1, "replicate@0123456789abcdef")
        url = broker.services.callback_url(task.provider, task.id, 1)
        assert url is not None
        path = url.removeprefix("https://broker.example")
        assert path.startswith("/api/webhook/replicate?")
        body = {"id": task.job_id, "status": "succeeded", "output": ["https://replicate.delivery/x.png"]}
        answer = await broker.client.post(path, json=body, headers=FORWARDED)
        assert answer.status_code == 200, answer.text
        (entry,) = await broker.services.tables.callbacks.list_newest(limit=9)
        assert (entry.provider, entry.verification, entry.task_id) == ("replicate", "accept", task.id)
        unproven = await broker.client.post("/api/webhook/replicate", json=body, headers=FORWARDED)
        assert unproven.status_code == 202, "it is found by its job, and checked"


async def test_signatures_of_a_conversation_are_those_of_the_provider_not_of_the_account(tmp_path: Path) -> None:
    """A user who sets a key, or removes it, goes on with the same history."""
    async with open_api(tmp_path) as broker:
        earlier = await a_job(broker, 1, "gemini@0123456789abcdef", turn='{"parts": []}')
        turns = (Turn(role="model", parts=(), task=earlier.id).to_column(),)
        orders = broker.services.worker.steps.submit.orders
        contents = []
        for number, account in enumerate(("gemini", "gemini@123456789abcdef0", "openrouter"), 2):
            task = await broker.add_task(number=number, provider=account, turns=turns)
            contents.append((await orders.build_order(task, keeps_history=True)).turns[0].content)
        assert contents == ['{"parts": []}', '{"parts": []}', None]
        answer = await broker.client.get(f"/api/task/{earlier.id}/attempts")
        assert answer.json()["data"]["attempts"][0]["provider"] == "gemini"
