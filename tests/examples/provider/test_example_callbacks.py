"""Callbacks of two providers in one process."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest

from storage.attempts import Attempt
from storage.states import TaskState
from tests.examples.provider import EXAMPLE
from tests.examples.running import WEBHOOK_KEY, running_broker
from tests.support.api import a_task
from webhooks.signatures.standard import StandardSignature

pytestmark = pytest.mark.anyio

JOB = "job-of-kie"


async def test_signature_of_one_provider_proves_nothing_about_a_job_of_another(tmp_path: Path) -> None:
    async with running_broker(tmp_path, providers=[EXAMPLE]) as broker:
        now = time.time()
        task = a_task(now, provider="kie", state=TaskState.WAITING, job_id=JOB)
        attempt = vars(Attempt(task_id=task.id, number=1, provider="kie", key_id="default", job_id=JOB, sent_at=now))
        await broker.services.database.transact(broker.services.tables.tasks.insert_task(task))
        await broker.services.database.execute(
            f"INSERT INTO attempts ({', '.join(attempt)}) VALUES ({', '.join(':' + name for name in attempt)})",
            **attempt,
        )
        for named in (JOB, task.id):
            body = json.dumps({"id": named, "status": "succeeded", "url": f"{broker.example.url}/a.png"}).encode()
            headers = StandardSignature([WEBHOOK_KEY]).sign("msg_1", int(time.time()), body)
            for address in ("/api/webhook/example", f"/api/webhook/example?task={task.id}"):
                answer = await broker.client.post(
                    address, content=body, headers={**headers, "X-Forwarded-For": "8.8.8.8"}
                )
                assert answer.status_code == 404, answer.text
        assert await broker.services.tables.callbacks.count_unprocessed(task.id) == 0
