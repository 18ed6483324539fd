"""Downloads, retention and the sweep of two workers, in many orders: each completed task has its image."""

from __future__ import annotations

import asyncio
import hashlib
import random
import time
from collections.abc import AsyncIterator, Awaitable
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from broker.bootstrap import database_for
from broker.services import Services
from broker.settings import Settings
from broker.tasks.retention import Retention
from broker.tasks.steps.download import DownloadStep
from storage.states import TaskState
from storage.tasks import Lease, Task
from tests.support.api import a_task
from tests.support.brokers import still
from tests.support.clock import ManualClock
from tests.support.samples import encoded
from tests.support.servers.pictures import Pictures, serving_pictures
from uploads.intake import Intake

pytestmark = pytest.mark.anyio

HOUR = 3600.0
ROUNDS = 5


class Turns:
    """Actors that take turns at the calls of the stores, in an order drawn by lot, the same for the same seed.

    In some games the actor of the last turn mostly gets the next one too, while the others stand still.
    """

    def __init__(self) -> None:
        self.lot = random.Random()
        self._parked: list[asyncio.Future[None]] = []
        self._running = 0
        self._changed = asyncio.Event()
        self._is_playing = False

    async def wait_turn(self) -> None:
        if not self._is_playing:
            return
        turn = asyncio.get_running_loop().create_future()
        self._parked.append(turn)
        self._running -= 1
        self._changed.set()
        await turn

    async def play(self, *actors: Awaitable[object]) -> None:
        """Run the actors to their end."""
        self._is_playing, self._running = True, len(actors)
        persistence = self.lot.choice([0.0, 0.5, 0.9])
        tasks = [asyncio.ensure_future(self._run_actor(actor)) for actor in actors]
        while self._running or self._parked:
            if self._running:
                self._changed.clear()
                await self._changed.wait()
                continue
            self._running += 1
            is_last = self.lot.random() < persistence
            self._parked.pop(-1 if is_last else self.lot.randrange(len(self._parked))).set_result(None)
        self._is_playing = False
        await asyncio.gather(*tasks)

    async def _run_actor(self, actor: Awaitable[object]) -> None:
        try:
            await actor
        finally:
            self._running -= 1
            self._changed.set()


@dataclass
class TurnByTurn:
    """A database, a blob store or a draft whose calls wait for their turn."""

    inner: Any
    turns: Turns
    calls: tuple[str, ...]

    def __getattr__(self, name: str) -> Any:
        call = getattr(self.inner, name)
        if name not in self.calls:
            return call

        async def call_in_turn(*args: Any, **kwargs: Any) -> Any:
            await self.turns.wait_turn()
            return await call(*args, **kwargs)

        return call_in_turn

    def new_draft(self, owner: str) -> TurnByTurn:
        return TurnByTurn(self.inner.new_draft(owner), self.turns, ("commit", "store"))

    async def __aenter__(self) -> TurnByTurn:
        await self.inner.__aenter__()
        return self

    async def __aexit__(self, *error: object) -> None:
        await self.inner.__aexit__(*error)


@dataclass(frozen=True, kw_only=True)
class Scene:
    """Services whose stores are called in turns."""

    services: Services
    turns: Turns
    clock: ManualClock
    pictures: Pictures
    download: DownloadStep
    retention: Retention
    numbers: Any

    async def add_finished_job(self) -> Task:
        """Return a task whose result is to be downloaded."""
        number, now = next(self.numbers), self.clock.now()
        outputs = (self.pictures.put(f"{number}.png", encoded("PNG")),)
        task = a_task(now, number=number, state=TaskState.FETCHING, outputs=outputs, due_at=now, deadline_at=now + HOUR)
        await self.services.database.transact(self.services.tables.tasks.insert_task(task))
        return task

    async def apply_retention(self) -> None:
        """Run the steps of ended tasks that are due, one by one."""
        for state in (TaskState.SUCCEEDED, TaskState.EXPIRED):
            lease = Lease(holder=f"worker {next(self.numbers)}", until=self.clock.now() + 30)
            while tasks := await self.services.tables.tasks.claim(state, now=self.clock.now(), lease=lease, limit=1):
                await self.retention.run(tasks)

    async def assert_complete(self, task: Task) -> None:
        """Assert that an unexpired task is completed, and its image is stored."""
        row = await self.services.tables.tasks.get(task.id)
        if row is None or row.state == TaskState.EXPIRED:
            return
        assert row.state == TaskState.SUCCEEDED
        (image,) = await self.services.tables.images.list_of_owner(task.id, "result")
        chunks = [chunk async for chunk in await self.services.blobs.open(image.blob)]
        assert hashlib.sha256(b"".join(chunks)).hexdigest() == image.sha256

    async def play_rounds(self) -> None:
        """Add, download and delete tasks; then delete them all, and assert that no file and no row is left."""
        tasks: list[Task] = []
        for _ in range(ROUNDS):
            new = [await self.add_finished_job() for _ in range(self.turns.lot.randint(1, 2))]
            tasks += new
            await self.turns.play(
                *(self.download.run(task) for task in new),
                self.apply_retention(),
                self.apply_retention(),
                self.retention.sweep(older_than=-60.0),
            )
            for task in tasks:
                await self.assert_complete(task)
            self.clock.advance(self.turns.lot.choice([60.0, 8 * HOUR, 25 * HOUR]))
        for _ in range(3):
            self.clock.advance(25 * HOUR)
            await self.services.worker.clean_up()
        await self.retention.sweep(older_than=-60.0)
        assert await self.services.blobs.list_owners(-60.0) == []
        assert await self.services.database.fetch("SELECT name FROM images") == []


@asynccontextmanager
async def a_scene(folder: Path) -> AsyncIterator[Scene]:
    turns, clock = Turns(), ManualClock(time.time() - 1)  # files have times of the machine's clock

    @asynccontextmanager
    async def open_database(settings: Settings) -> AsyncIterator[Any]:
        async with database_for(settings) as database:
            yield TurnByTurn(database, turns, ("transact", "fetch", "fetch_one", "execute"))

    async with (
        serving_pictures() as pictures,
        still(folder, clock, open_database=open_database, download_allow=(pictures.host,)) as services,
    ):
        blobs: Any = TurnByTurn(services.blobs, turns, ("delete", "list_owners"))
        yield Scene(
            services=services,
            turns=turns,
            clock=clock,
            pictures=pictures,
            download=replace(
                services.worker.steps.download,
                intake=Intake.in_threads(blobs, max_pixels=10**6, max_decode_bytes=2**20),
            ),
            retention=replace(services.worker.retention, blobs=blobs),
            numbers=count(1),
        )


# seed 9 has the order in which a sweep that ignored unfinished tasks would delete a file before its row is written
@pytest.mark.parametrize("seeds", [range(9, 15), pytest.param(range(15, 120), marks=pytest.mark.faults)], ids=len)
async def test_completed_task_has_its_image_in_every_order_of_events(tmp_path: Path, seeds: range) -> None:
    async with a_scene(tmp_path) as scene:
        for seed in seeds:
            scene.turns.lot.seed(seed)
            await scene.play_rounds()
