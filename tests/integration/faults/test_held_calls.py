"""Submissions that wait for the image: their slots, their leases, and what a stop and a full disk do to them."""

from __future__ import annotations

import asyncio
import base64
import json
import shutil
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from broker.tasks.running import HELD_CONCURRENCY
from storage.states import TaskState
from storage.tasks import Task
from tests.support.api import png
from tests.support.brokers import RunningBroker, open_broker
from tests.support.faulty_http import Server, Visit, answers, serve
from tests.support.servers import postgres as servers

pytestmark = pytest.mark.anyio

HELD = {"provider": "gemini"}
DATA = base64.b64encode(png()).decode()
ANSWER = {"candidates": [{"content": {"parts": [{"inlineData": {"data": DATA}}]}, "finishReason": "STOP"}]}


class Gemini:
    """The other side: it answers when it may."""

    def __init__(self, server: Server) -> None:
        self.server = server
        self.may_answer = asyncio.Event()
        self.arrived = asyncio.Condition()
        self.orders = 0

    async def answer(self, visit: Visit) -> None:
        await visit.read_body()
        async with self.arrived:
            self.orders += 1
            self.arrived.notify_all()
        await self.may_answer.wait()
        await answers("200 OK", json.dumps(ANSWER).encode())(visit)

    async def wait_orders(self, count: int) -> None:
        async with asyncio.timeout(20), self.arrived:
            await self.arrived.wait_for(lambda: self.orders >= count)


@asynccontextmanager
async def gemini_server() -> AsyncIterator[Gemini]:
    async def answer(visit: Visit) -> None:
        await gemini.answer(visit)

    async with serve(answer) as server:
        gemini = Gemini(server)
        yield gemini


@asynccontextmanager
async def broker_with(gemini: Gemini, folder: Path, **settings: Any) -> AsyncIterator[RunningBroker]:
    chosen = {"gemini_keys": "key", "gemini_url": gemini.server.url(""), "max_concurrent": 1000, **settings}
    async with open_broker(folder, **{"task_deadline": 60, "retention_hours": 1, **chosen}) as broker:
        yield broker


async def wait_row(broker: RunningBroker, task_id: str, is_wanted: Callable[[Task], bool]) -> Task:
    async for _ in broker.poll_task(task_id):
        row = await broker.services.tables.tasks.get(task_id)
        if row is not None and is_wanted(row):
            return row
    raise AssertionError


async def test_held_calls_leave_the_slots_and_connections_of_other_providers(tmp_path: Path) -> None:
    more = {"gemini_keys": "one,two", "max_connections": 8}  # each key takes twenty orders in ten seconds
    async with gemini_server() as gemini, broker_with(gemini, tmp_path, **more) as broker:
        held = [await broker.create_task("held", **HELD) for _ in range(HELD_CONCURRENCY + 4)]
        await gemini.wait_orders(HELD_CONCURRENCY)
        other = await broker.wait_end(await broker.create_task("other", provider="kie"))
        assert other["status"] == "completed"
        gemini.may_answer.set()
        ends = [await broker.wait_end(task_id) for task_id in held]
        assert {data["status"] for data in ends} == {"completed"}


@pytest.mark.faults
async def test_held_calls_hold_no_database_connection(tmp_path: Path) -> None:
    with servers.running() as server:
        more = {"database_url": await server.fresh(), "database_connections": 2, "webhook_base_url": ""}
        async with gemini_server() as gemini, broker_with(gemini, tmp_path, **more) as broker:
            held = [await broker.create_task("held", **HELD) for _ in range(8)]
            await gemini.wait_orders(8)
            assert (await broker.wait_end(await broker.create_task("other", provider="kie")))["status"] == "completed"
            gemini.may_answer.set()
            assert {(await broker.wait_end(task_id))["status"] for task_id in held} == {"completed"}
    assert gemini.orders == 8


async def test_held_call_longer_than_its_lease_is_made_once(tmp_path: Path) -> None:
    async with gemini_server() as gemini, broker_with(gemini, tmp_path, lease=0.3) as broker:
        task_id = await broker.create_task("held", **HELD)
        await gemini.wait_orders(1)
        before = await broker.services.tables.tasks.get(task_id)
        assert before is not None
        # renewed at least twice
        row = await wait_row(broker, task_id, lambda row: row.lease_until > before.lease_until + 0.6)
        assert row.state == TaskState.SUBMITTING
        gemini.may_answer.set()
        assert (await broker.wait_end(task_id))["status"] == "completed"
    assert gemini.orders == 1


async def test_stop_waits_for_a_held_call_and_its_image_is_kept(tmp_path: Path) -> None:
    async with gemini_server() as gemini:
        async with broker_with(gemini, tmp_path) as broker:
            broker.services.worker.drain_seconds = 0.0
            task_id = await broker.create_task("held", **HELD)
            await gemini.wait_orders(1)
            broker.services.worker.stop()
            asyncio.get_running_loop().call_later(0.5, gemini.may_answer.set)
        async with broker_with(gemini, tmp_path) as broker:
            assert (await broker.wait_end(task_id))["status"] == "completed"
    assert gemini.orders == 1


@pytest.mark.parametrize("resubmit", [False, pytest.param(True, marks=pytest.mark.faults)])
async def test_held_call_that_outlasts_the_stop_ends_by_the_policy(tmp_path: Path, resubmit: bool) -> None:
    async with gemini_server() as gemini:
        async with broker_with(gemini, tmp_path) as broker:
            broker.services.worker.drain_seconds = broker.services.worker.held_drain_seconds = 0.0
            task_id = await broker.create_task("held", **HELD)
            await gemini.wait_orders(1)
        gemini.may_answer.set()
        async with broker_with(gemini, tmp_path, resubmit_unknown=resubmit) as broker:
            data = await broker.wait_end(task_id)
    if resubmit:
        assert (data["status"], gemini.orders) == ("completed", 2)
    else:
        assert (data["errorDetail"]["code"], gemini.orders) == ("unknown_outcome", 1)


async def test_order_waits_while_its_image_could_not_be_stored(tmp_path: Path) -> None:
    """Without room for the image the order is not sent: it would be paid and lost."""
    drafts = tmp_path / "blobs" / ".drafts"
    async with gemini_server() as gemini, broker_with(gemini, tmp_path) as broker:
        gemini.may_answer.set()
        shutil.rmtree(drafts, ignore_errors=True)
        drafts.write_text("in the way")
        task_id = await broker.create_task("held", **HELD)
        row = await wait_row(broker, task_id, lambda row: row.error_code == "storage_full")
        assert (row.state, gemini.orders) == (TaskState.QUEUED, 0)
        drafts.unlink()
        assert (await broker.wait_end(task_id))["status"] == "completed"
    assert gemini.orders == 1


@pytest.mark.parametrize(
    ("status", "error"),
    [
        (
            "404 Not Found",
            {"code": 404, "status": "NOT_FOUND", "message": "models/gemini-2.5-flash-image is not found"},
        ),
        ("503 Service Unavailable", {"code": 503, "status": "UNAVAILABLE", "message": "The model is overloaded."}),
    ],
)
async def test_order_that_gemini_certainly_did_not_make_goes_to_the_next_provider(
    tmp_path: Path, status: str, error: dict[str, Any]
) -> None:
    async with serve(answers(status, json.dumps({"error": error}).encode())) as server:
        chosen: dict[str, Any] = {"gemini_keys": "key", "gemini_url": server.url(""), "providers": ("gemini", "kie")}
        async with open_broker(tmp_path, **chosen) as broker:
            data = await broker.wait_end(await broker.create_task("a red fox"))
            assert (data["status"], data["provider"], data["attempts"]) == ("completed", "kie", 2)
            assert len(await broker.provider_jobs()) == 1
