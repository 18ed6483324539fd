"""Polls: what one reads from the database, and that the ready response is the one of the application."""

from __future__ import annotations

import asyncio
import re
import sqlite3
from collections.abc import Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any, cast

import pytest
from starlette.applications import Starlette

from broker.api.native.ready_polls import ReadyResponse
from broker.bootstrap import load_settings, open_services
from storage.states import TaskState
from storage.tasks import Task
from tests.support.api import ApiBroker, a_task, open_api, png, task_cache

pytestmark = pytest.mark.anyio

ORIGIN = "https://front.example"
USUAL: Sequence[Mapping[str, str]] = (
    {},
    {"Accept-Language": "zh-CN,zh;q=0.9,en;q=0.8"},
    {"Origin": ORIGIN},
    {"X-Request-ID": "given-by-a-proxy"},
    {"X-Request-ID": "not one plain token"},
    {"If-None-Match": '"of another response"'},
)
UNUSUAL: Mapping[str, Sequence[tuple[str, str]]] = {
    "two tags": [("If-None-Match", '"a", "b"')],
    "any tag": [("If-None-Match", "*")],
    "the same header twice": [("X-Request-ID", "a"), ("X-Request-ID", "b")],
    "an origin that is not ours": [("Origin", "https://other.example")],
}
TARGETS = ("/api/task/{id}?wait=1", "/api/task/{id}?", "/api/task/{id}/", "/api/task/%74{id}", "//api/task/{id}")


def find(broker: ApiBroker, target: str, headers: Sequence[tuple[str, str]] = ()) -> ReadyResponse | None:
    """Ask for the ready response as the server does."""
    encoded = [(name.lower().encode(), value.encode()) for name, value in [("Host", "127.0.0.1"), *headers]]
    found: ReadyResponse | None = cast(Starlette, broker.mounted.app).state.ready_polls.find(target.encode(), encoded)
    return found


def parse_head(head: bytes) -> tuple[int, dict[str, str]]:
    status, *lines = head.decode().split("\r\n")
    names = [line.partition(": ")[0] for line in lines]
    assert len(set(names)) == len(names)
    return int(status.split(" ")[1]), dict(line.split(": ", 1) for line in lines)


def count_requests(broker: ApiBroker, status: int) -> float:
    labels = {"operation": "getTask", "status": str(status)}
    return broker.services.metrics.registry.get_sample_value("broker_http_requests_total", labels) or 0.0


async def add_completed(broker: ApiBroker) -> Task:
    task = await broker.add_task(number=7, state=TaskState.SUCCEEDED, ended_at=broker.services.clock.now())
    await broker.add_image(task.id, png())
    await poll(broker, task)  # that of a completed task is kept from the second poll on
    return task


async def poll(broker: ApiBroker, task: Task, **options: Any) -> Any:
    return await broker.client.get(f"/api/task/{task.id}", **options)


@pytest.mark.parametrize("origins", ["", ORIGIN], ids=["without CORS", "with CORS"])
@pytest.mark.parametrize("ended", [True, False], ids=["ended", "unfinished"])
async def test_ready_response_is_the_one_of_the_application(tmp_path: Path, origins: str, ended: bool) -> None:
    async with open_api(tmp_path, cors_origins=origins) as broker:
        task = await (add_completed(broker) if ended else broker.add_task())
        tag = (await poll(broker, task)).headers["etag"]
        for headers in (*USUAL, {"If-None-Match": tag}, {"If-None-Match": f"W/{tag}", "Origin": ORIGIN}):
            sent = await poll(broker, task, headers=headers)
            before = count_requests(broker, sent.status_code)
            ready = find(broker, f"/api/task/{task.id}", list(headers.items()))
            assert ready is not None
            assert count_requests(broker, sent.status_code) == before + 1
            status, fields = parse_head(ready.head)
            expected = dict(sent.headers)
            ids = fields.pop("x-request-id"), expected.pop("x-request-id")
            assert (status, fields, ready.body) == (sent.status_code, expected, sent.content)
            if headers.get("X-Request-ID") == "given-by-a-proxy":
                assert ids == ("given-by-a-proxy", "given-by-a-proxy")
            else:
                assert ids[0] != ids[1]
                assert all(re.fullmatch("[0-9a-f]{16}", one) for one in ids)


@pytest.mark.parametrize("headers", UNUSUAL.values(), ids=UNUSUAL)
async def test_unusual_request_is_left_to_the_application(tmp_path: Path, headers: Sequence[tuple[str, str]]) -> None:
    async with open_api(tmp_path, cors_origins=ORIGIN) as broker:
        task = await broker.add_task()
        await poll(broker, task)
        assert find(broker, f"/api/task/{task.id}") is not None
        assert find(broker, f"/api/task/{task.id}", headers) is None


async def test_other_target_is_left_to_the_application(tmp_path: Path) -> None:
    async with open_api(tmp_path) as broker:
        task = await broker.add_task()
        await poll(broker, task)
        assert [target for target in TARGETS if find(broker, target.format(id=task.id))] == []
        assert find(broker, f"/api/task/task_{'f' * 43}") is None


async def test_logged_request_is_left_to_the_application(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async with open_api(tmp_path) as broker:
        task = await broker.add_task()
        await poll(broker, task)
        with caplog.at_level("DEBUG", "broker"):
            assert find(broker, f"/api/task/{task.id}") is None


async def test_poll_of_a_known_task_reads_nothing(tmp_path: Path) -> None:
    async with open_api(tmp_path) as broker:
        for task in (await add_completed(broker), await broker.add_task()):
            await poll(broker, task)
            broker.listeners.reads_of(task.id)
            for _ in range(3):
                await poll(broker, task)
                assert find(broker, f"/api/task/{task.id}") is not None
            assert broker.listeners.reads_of(task.id) == 0


async def test_own_change_is_seen_at_once(tmp_path: Path) -> None:
    async with open_api(tmp_path) as broker:
        task = await broker.add_task()
        await poll(broker, task)
        await broker.services.database.execute("UPDATE tasks SET prompt = 'changed'")
        assert find(broker, f"/api/task/{task.id}") is None
        assert (await poll(broker, task)).json()["data"]["prompt"] == "changed"


async def test_change_of_another_process_is_seen_at_once(tmp_path: Path) -> None:
    settings = load_settings(env_file=None, data_dir=tmp_path, database_url=f"sqlite:///{tmp_path}/broker.db")
    async with open_services(settings) as services:  # without a worker: its commits would be in between
        task = a_task(services.clock.now())
        await services.database.transact(services.tables.tasks.insert_task(task))
        cache = task_cache(services)
        first = await cache.response(task.id, "en")
        await asyncio.sleep(0)
        assert cache.find(task.id, "en") is first
        await asyncio.sleep(0)
        with closing(sqlite3.connect(tmp_path / "broker.db", isolation_level=None)) as other:
            other.execute("UPDATE tasks SET prompt = 'changed', version = version + 1")
        assert cache.find(task.id, "en") is None
        assert b'"prompt":"changed"' in (await cache.response(task.id, "en")).body
        assert cache.find(task.id, "en") is not None
