"""Quotas under kill -9: 200 clients order at once while brokers die and start again, on both databases."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest

from broker.clock import SystemClock
from broker.sandbox.engine import Options
from broker.sandbox.server import serve_sandbox
from broker.services import Services
from storage.limits.budgets import day_of
from tests.support.accounts import KeyHolder, add_key_holder
from tests.support.brokers import still
from tests.support.process import Broker, environment, free_port, serving, until

pytestmark = [pytest.mark.anyio, pytest.mark.faults, pytest.mark.timeout(300)]

CLIENTS = 200
KILLS = 5


@dataclass
class Fleet:
    """Brokers on one database, of which one after the other is killed and started again."""

    folder: Path
    variables: list[dict[str, str]]
    random: random.Random
    running: dict[int, tuple[AsyncExitStack, Broker]] = field(default_factory=dict)
    kills: int = 0

    async def start(self, number: int) -> None:
        stack = AsyncExitStack()
        broker = await stack.enter_async_context(serving(self.variables[number], self.folder))
        self.running[number] = stack, broker

    async def kill_one(self) -> None:
        """Kill a broker in the middle of its requests, and start it again."""
        number = self.random.choice(sorted(self.running))
        stack, broker = self.running.pop(number)
        await broker.kill()
        await stack.aclose()
        self.kills += 1
        await self.start(number)

    async def stop(self) -> None:
        for stack, _ in self.running.values():
            await stack.aclose()
        self.running.clear()

    async def order(self, number: int, holder: KeyHolder, answers: Counter[int]) -> None:
        """Order until there is an answer, like a client that retries."""
        headers = {**holder.headers, "Idempotency-Key": f"order-{number}"}
        while True:
            if self.running:
                _, broker = self.running[self.random.choice(sorted(self.running))]
                try:
                    answer = await broker.client.post(
                        "/api/generate/image", json={"prompt": f"fox {number}"}, headers=headers
                    )
                except httpx.HTTPError:
                    pass
                else:
                    assert answer.status_code in {202, 429, 503}, answer.text
                    if answer.status_code != 503:
                        answers[answer.status_code] += 1
                        return
            await asyncio.sleep(0.02)


@asynccontextmanager
async def open_fleet(folder: Path, sandbox: str, database: dict[str, str]) -> AsyncIterator[Fleet]:
    """SQLite has one broker, Postgres three."""
    variables = [
        environment(folder, sandbox, free_port(), BROKER_CONNECTIONS_PER_PEER="500", **database)
        for _ in range(3 if database else 1)
    ]
    fleet = Fleet(folder, variables, random.Random(13))
    try:
        for number in range(len(variables)):
            await fleet.start(number)
        yield fleet
    finally:
        await fleet.stop()


@asynccontextmanager
async def look_into(folder: Path, database: dict[str, str]) -> AsyncIterator[Services]:
    url: Any = {"database_url": database["DATABASE_URL"]} if database else {}
    async with still(folder / "data", SystemClock(), **url) as services:
        yield services


async def usage_of(services: Services, owner: str) -> tuple[int, int]:
    """Return tasks and images; assert that each day has what its tasks count as, and they what the attempts say."""
    tasks = await services.database.fetch("SELECT * FROM tasks WHERE caller = :owner", owner=owner)
    images = 0
    for day in {day_of(task["created_at"]) for task in tasks}:
        use = await services.tables.owner_usage.read_use(owner, day)
        of_day = [task for task in tasks if day_of(task["created_at"]) == day]
        assert use.images == sum(task["owner_images"] for task in of_day)
        assert use.micros == sum(task["owner_micros"] for task in of_day)
        images += use.images
    for task in tasks:
        attempts = await services.tables.attempts.list_of_task(task["id"])
        if task["ended_at"] is not None:
            assert task["owner_images"] == int(any(attempt.billed != "no" for attempt in attempts))
    return len(tasks), images


@pytest.mark.parametrize("kind", ["sqlite", "postgres"])
@pytest.mark.parametrize("quota", [{"images": 50}, {"in_flight": 50}, {"usd": 1.0}], ids=["images", "in flight", "usd"])
async def test_quota_is_filled_exactly_while_brokers_are_killed(
    request: pytest.FixtureRequest, tmp_path: Path, kind: str, quota: dict[str, Any]
) -> None:
    """1. Nothing is submitted: 50 orders are accepted, in whichever process. 2. All end, with kills in between."""
    database = {"DATABASE_URL": await request.getfixturevalue("postgres").fresh()} if kind == "postgres" else {}
    options = Options(duration=0.2, callback_spacing=0.2, creates_per_window=10_000)
    answers: Counter[int] = Counter()
    async with serve_sandbox(options=options) as sandbox:
        async with look_into(tmp_path, database) as services:
            ann = await add_key_holder(services, **quota)
            await services.database.transact(services.tables.provider_limits.pause_provider("kie", 0.0))
        async with open_fleet(tmp_path, sandbox, database) as fleet:
            orders = asyncio.gather(*(fleet.order(number, ann, answers) for number in range(CLIENTS)))
            for kill in range(KILLS):
                while answers.total() < CLIENTS * kill // (2 * KILLS) and not orders.done():  # noqa: ASYNC110
                    await asyncio.sleep(0.01)
                await fleet.kill_one()
            await orders
        async with look_into(tmp_path, database) as services:
            assert await usage_of(services, ann.owner) == (50, 50)
            await services.database.transact(*services.tables.provider_limits.resume_provider("kie"))
        assert (answers, fleet.kills) == ({202: 50, 429: CLIENTS - 50}, KILLS)
        async with open_fleet(tmp_path, sandbox, database) as fleet:
            for jobs in (5, 20, 35):
                await until(lambda jobs=jobs: _has_jobs(sandbox, jobs))  # type: ignore[misc]
                await fleet.kill_one()
            await until(lambda: _have_all_ended(fleet, ann))
        async with look_into(tmp_path, database) as services:
            tasks, images = await usage_of(services, ann.owner)
            assert (tasks, 0 < images <= 50) == (50, True)


async def _has_jobs(sandbox: str, count: int) -> bool:
    async with httpx.AsyncClient(verify=False) as client:
        return len((await client.get(f"{sandbox}/sandbox/jobs")).json()["jobs"]) >= count


async def _have_all_ended(fleet: Fleet, holder: KeyHolder) -> bool:
    _, broker = next(iter(fleet.running.values()))
    unfinished = 0
    for status in ("pending", "processing"):
        page = await broker.client.get("/api/tasks", params={"status": status, "limit": 100}, headers=holder.headers)
        unfinished += len(page.json()["data"])
    return unfinished == 0
