"""Polls on every parser and database: what is answered before the routes is what the routes answer."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import AsyncIterator, Mapping
from contextlib import closing
from pathlib import Path
from typing import cast

import asyncpg
import httpx
import pytest
from starlette.applications import Starlette
from starlette.types import Scope

from broker.api.http.endpoint import EndpointRoute, EndpointRouter
from storage.sql.writer.group_writer import LAST_LOOK_SECONDS
from storage.states import TaskState
from storage.tasks import Task
from tests.support.api import ApiBroker, open_api, png
from tests.support.http_parsers import MemoryTransport, connect
from tests.support.process import until
from tests.support.servers.postgres import Postgres

ORIGIN = "https://front.example"
CHANGE = "UPDATE tasks SET prompt = 'changed by another process', version = version + 1"
GIVEN = {"X-Request-ID": "given-by-a-proxy"}


@pytest.fixture(params=["sqlite", "postgres"])
async def broker(request: pytest.FixtureRequest, parser: str, tmp_path: Path) -> AsyncIterator[ApiBroker]:
    url = await database_url(request, tmp_path)
    async with open_api(tmp_path, sockets=True, http=parser, database_url=url, cors_origins=ORIGIN) as opened:
        yield opened


async def database_url(request: pytest.FixtureRequest, folder: Path) -> str:
    if request.param == "sqlite":
        return f"sqlite:///{folder}/broker.db"
    server: Postgres = request.getfixturevalue("postgres")
    return await server.fresh()


@pytest.fixture(params=["sqlite", "postgres"])
async def unserved(request: pytest.FixtureRequest, parser: str, tmp_path: Path) -> AsyncIterator[ApiBroker]:
    """A broker whose application the test connects to the parser itself."""
    async with open_api(tmp_path, database_url=await database_url(request, tmp_path)) as opened:
        yield opened


async def add_tasks(broker: ApiBroker) -> tuple[Task, Task]:
    """Add one task that has ended and one that has not."""
    ended = await broker.add_task(number=7, state=TaskState.SUCCEEDED, ended_at=broker.services.clock.now())
    await broker.add_image(ended.id, png())
    return ended, await broker.add_task()


async def poll(
    broker: ApiBroker, task: Task, method: str = "GET", headers: Mapping[str, str] | None = None
) -> httpx.Response:
    return await broker.client.request(method, f"/api/task/{task.id}", headers=headers)


async def poll_by_routes(broker: ApiBroker, task: Task, method: str, headers: Mapping[str, str]) -> httpx.Response:
    """Poll by another spelling of the same path, which only the routes know."""
    return await broker.client.request(method, f"/api/%74ask/{task.id}", headers=headers)


@pytest.mark.anyio
@pytest.mark.parametrize("method", ["GET", "HEAD"])
async def test_response_is_the_one_of_the_routes(broker: ApiBroker, method: str) -> None:
    for task in await add_tasks(broker):
        tag = (await poll(broker, task)).headers["etag"]
        for headers in (
            {},
            GIVEN,
            {"Origin": ORIGIN},
            {"If-None-Match": tag},
            {"If-None-Match": tag, "Origin": ORIGIN},
        ):
            for _ in range(3):  # the third is the one that is kept
                fast = await poll(broker, task, method, headers)
            slow = await poll_by_routes(broker, task, method, headers)
            assert fast.status_code == slow.status_code == (304 if "If-None-Match" in headers else 200)
            assert fast.content == slow.content
            ignored = {"date"} if headers is GIVEN else {"date", "x-request-id"}
            assert without(fast.headers, ignored) == without(slow.headers, ignored)
            assert fast.headers["x-request-id"]


def without(headers: httpx.Headers, ignored: set[str]) -> list[tuple[str, str]]:
    return sorted((name, value) for name, value in headers.multi_items() if name not in ignored)


@pytest.mark.anyio
async def test_changes_of_this_process_are_seen_at_once_and_those_of_others_soon(broker: ApiBroker) -> None:
    """Soon: in a file, where both commit at the same time, at the writer's last look."""

    async def is_seen() -> bool:
        return "changed by another process" in (await poll(broker, task)).text

    for task in await add_tasks(broker):
        for _ in range(3):
            await poll(broker, task)
        await broker.change_task(task, prompt="changed by this process")
        assert (await poll(broker, task)).json()["data"]["prompt"] == "changed by this process"
        for _ in range(2):
            await poll(broker, task)
        await change_from_outside(broker)
        async with asyncio.timeout(LAST_LOOK_SECONDS + 1):
            await until(is_seen)


@pytest.mark.anyio
async def test_poll_is_answered_before_the_routes_with_one_read_at_most(
    unserved: ApiBroker, parser: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    app, routed = cast(Starlette, unserved.mounted.app), 0
    find_route = EndpointRouter.find_route

    def count(router: EndpointRouter, scope: Scope) -> EndpointRoute:
        nonlocal routed
        routed += 1
        return find_route(router, scope)

    monkeypatch.setattr(EndpointRouter, "find_route", count)
    for task in await add_tasks(unserved):
        for _ in range(3):
            await poll(unserved, task)
        routed = 0
        unserved.listeners.reads_of(task.id)
        transport = MemoryTransport()
        protocol = connect(parser, app, transport)
        for method in ("GET", "HEAD", "GET"):
            transport.written = b""
            protocol.data_received(f"{method} /api/task/{task.id} HTTP/1.1\r\nHost: a\r\n\r\n".encode())
            for _ in range(5000):
                if b"\r\n\r\n" in transport.written:
                    break
                await asyncio.sleep(0.001)
            assert transport.written.startswith(b"HTTP/1.1 200 ")
        protocol.connection_lost(None)
        assert routed == 0
        assert unserved.listeners.reads_of(task.id) == (0 if unserved.services.task_changes else 3)


@pytest.mark.anyio
@pytest.mark.parametrize("unserved", ["postgres"], indirect=True)
async def test_polls_of_one_turn_are_one_read(unserved: ApiBroker) -> None:
    tasks = [await unserved.add_task(number=number) for number in range(10, 30)]
    for task in tasks:
        await poll(unserved, task)
    unserved.listeners.reads_of("")
    found = await asyncio.gather(*(poll(unserved, task) for task in tasks))
    assert [one.json()["data"]["id"] for one in found] == [task.id for task in tasks]
    ids = {task.id for task in tasks}
    assert len([params for params in unserved.listeners.reads if ids.intersection(params.values())]) == 1


async def change_from_outside(broker: ApiBroker) -> None:
    url = broker.services.settings.database_url.get_secret_value()
    if url.startswith("sqlite"):
        await asyncio.to_thread(_change_file, broker.folder / "broker.db")
        return
    connection = await asyncpg.connect(url)
    await connection.execute(CHANGE)
    await connection.close()


def _change_file(path: Path) -> None:
    with closing(sqlite3.connect(path, isolation_level=None, timeout=10)) as connection:
        connection.execute(CHANGE)
