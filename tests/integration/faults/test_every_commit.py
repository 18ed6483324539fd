"""A crash before or after any commit of a task's life: the next process ends the task, submits once, and
delivers the webhook."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from broker.sandbox.engine import Options
from broker.sandbox.server import serve_sandbox
from broker.settings import Settings
from storage.errors import StorageError
from storage.sql.database import Outcome, Row, Statement
from storage.sql.sqlite import SqliteDatabase, sqlite_path
from tests.support.brokers import RunningBroker, open_broker
from tests.support.process import free_port, until
from tests.support.servers.receiver import Receiver, receiving

pytestmark = pytest.mark.anyio


class Mortal(SqliteDatabase):
    """A database that fails from its `fuse`-th transaction on once armed, before or after the commit."""

    def __init__(self, path: Path, fuse: int, *, after: bool) -> None:
        super().__init__(path)
        self.armed = False
        self.dead = False
        self._fuse = fuse
        self._after = after

    async def transact(self, *statements: Statement, wake: Sequence[str] = ()) -> list[Outcome]:
        self._fuse -= self.armed
        dying = self.armed and self._fuse == 0
        if self.dead or (dying and not self._after):
            self._die()
        outcome = await super().transact(*statements, wake=() if dying else wake)
        if dying:
            self._die()
        return outcome

    async def fetch(self, sql: str, **params: Any) -> list[Row]:
        if self.dead:
            self._die()
        return await super().fetch(sql, **params)

    async def fetch_one(self, sql: str, **params: Any) -> Row | None:
        if self.dead:
            self._die()
        return await super().fetch_one(sql, **params)

    def _die(self) -> None:
        self.dead = True
        raise StorageError("the process is dead")


async def _live(
    folder: Path, sandbox: str, receiver: Receiver, fuse: int, port: int, *, after: bool, with_callbacks: bool
) -> tuple[str, bool]:
    """Run the first process, which may be cut off; return the task's id, and whether it was."""
    mortal: list[Mortal] = []

    def open_mortal(settings: Settings) -> Mortal:
        mortal.append(Mortal(sqlite_path(settings.database), fuse, after=after))
        return mortal[0]

    async with open_broker(
        folder,
        port=port,
        sandbox=sandbox,
        with_callbacks=with_callbacks,
        open_database=open_mortal,
        lease=2,
        task_deadline=6,
        callback_allow=(receiver.host,),
    ) as broker:
        broker.services.worker.drain_seconds = 0.1  # a dead process does not release its leases
        task_id = await _order_armed(broker, mortal[0], receiver)
        async for _ in _until_dead_or_notified(broker, mortal[0], task_id, receiver):
            pass
    return task_id, mortal[0].dead


async def _order_armed(broker: RunningBroker, database: Mortal, receiver: Receiver) -> str:
    await until(lambda: _settled(broker))  # the fuse is for the commits of a task's life, not for housekeeping
    task_id = await broker.create_task("a red bicycle", callbackUrl=receiver.url)
    database.armed = True
    return task_id


async def _settled(broker: RunningBroker) -> bool:
    worker = broker.services.worker
    return worker.last_housekeeping > 0 and not worker.running.count


async def _until_dead_or_notified(broker: RunningBroker, database: Mortal, task_id: str, receiver: Receiver) -> Any:
    async for answer in _answers(broker, task_id):
        if database.dead or (receiver.received and answer.get("status") in {"completed", "failed"}):
            return
        yield answer


async def _answers(broker: RunningBroker, task_id: str) -> Any:
    while True:
        answer = await broker.client.get(f"/api/task/{task_id}", params={"wait": "0.05"})
        yield answer.json().get("data", {})


COMMITS = 24
"""More than a life has."""


@pytest.mark.parametrize(
    ("after", "with_callbacks"),
    [
        pytest.param(True, True, id="after-callbacks"),
        pytest.param(True, False, id="after-polling", marks=pytest.mark.faults),
        pytest.param(False, True, id="before-callbacks", marks=pytest.mark.faults),
        pytest.param(False, False, id="before-polling", marks=pytest.mark.faults),
    ],
)
async def test_crash_at_any_commit_only_delays_the_task(tmp_path: Path, after: bool, with_callbacks: bool) -> None:
    places = asyncio.Semaphore(6)

    async def life(fuse: int) -> tuple[bool, bool]:
        async with places:
            return await _life(tmp_path / str(fuse), fuse, after=after, with_callbacks=with_callbacks)

    lives = await asyncio.gather(*(life(fuse) for fuse in range(1, COMMITS + 1)))
    died = sum(dead for dead, _ in lives)
    unknown = sum(lost for _, lost in lives)
    assert 4 < died < COMMITS, "every commit was the last one once"
    # the intent is stored, the response is not: with callbacks only an order that was not sent stays unknown
    assert unknown <= (1 if with_callbacks else 2)


async def _life(folder: Path, fuse: int, *, after: bool, with_callbacks: bool) -> tuple[bool, bool]:
    """Return whether the first process died, and whether the outcome stayed unknown."""
    port = free_port()
    options = Options(duration=0.1, callback_spacing=0.2, callback_retries=60, creates_per_window=10_000)
    async with receiving() as receiver, serve_sandbox(options=options) as sandbox:
        task_id, died = await _live(folder, sandbox, receiver, fuse, port, after=after, with_callbacks=with_callbacks)
        async with open_broker(
            folder,
            port=port,
            sandbox=sandbox,
            with_callbacks=with_callbacks,
            lease=2,
            task_deadline=6,
            callback_allow=(receiver.host,),
        ) as broker:
            data = await broker.wait_end(task_id)
            await receiver.wait_received(1)
            assert {(m.id, m.document["type"]) for m in receiver.received} == {
                (receiver.received[0].id, f"task.{data['status']}")
            }
            return died, _judge(data, len(await broker.provider_jobs()))


def _judge(data: dict[str, Any], jobs: int) -> bool:
    if data["status"] == "completed":
        assert jobs == 1
        return False
    assert (data["errorDetail"]["code"], data["errorDetail"]["billed"]) == ("unknown_outcome", "unknown")
    assert jobs <= 1
    return True
