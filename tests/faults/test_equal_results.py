"""Equal results are stored once, and are there for as long as any of their tasks is: in every order of events."""

from __future__ import annotations

import asyncio
import hashlib
import os
import random
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from broker.bootstrap import database_for
from broker.retention import Retention
from broker.services import Services
from broker.settings import Settings
from broker.steps import Steps
from storage.database import Database, Outcome, Statement
from storage.images import StoredImage
from storage.migrate import known_to_all
from storage.tasks import Lease, State, Task
from tests.broker.api_house import a_task
from tests.conftest import ManualClock
from tests.journeys.house import still
from tests.servers.pictures import Pictures, serving_pictures
from tests.servers.postgres import Postgres
from tests.servers.s3 import S3Server
from tests.uploads.samples import encoded, picture
from uploads.intake import Intake

pytestmark = pytest.mark.anyio

HOUR = 3600.0
DAY = 24 * HOUR
DATA = encoded("PNG")
OTHER = encoded("PNG", picture(30, 20))
LEASE = Lease(holder="test", until=9e9)


@pytest.fixture
def clock() -> ManualClock:
    """Behind the machine's, whose time files have: what a test stores is never from before its database."""
    return ManualClock(time.time() - 1)


@pytest.fixture(params=["sqlite and files", "postgres and a bucket"])
async def place(request: pytest.FixtureRequest) -> dict[str, Any]:
    """Where a house keeps things."""
    if request.param == "sqlite and files":
        return {}
    postgres: Postgres = request.getfixturevalue("postgres")
    server: S3Server = request.getfixturevalue("s3_server")
    return {
        "database_url": await postgres.fresh(),
        "blob_url": f"s3://{server.new_bucket()}/images",
        "s3_endpoint": server.url,
        "s3_access_key": "test",
        "s3_secret_key": "test",
    }


@dataclass(frozen=True, kw_only=True)
class Home:
    """The system without a server, and where results come from."""

    services: Services
    pictures: Pictures
    clock: ManualClock
    numbers: Any = field(default_factory=lambda: iter(range(1, 10**6)))

    @property
    def steps(self) -> Steps:
        return self.services.broker.steps

    @property
    def retention(self) -> Retention:
        return self.services.worker.retention

    async def fetching(self, *results: bytes) -> Task:
        """A task whose results wait to be brought home."""
        number = next(self.numbers)
        outputs = tuple(self.pictures.put(f"{number}-{n}", data) for n, data in enumerate(results))
        now = self.clock.now()
        task = a_task(now, number=number, state=State.FETCHING, outputs=outputs, due_at=now, deadline_at=now + HOUR)
        await self.services.database.transact(self.services.broker.tasks.adding(task))
        return task

    async def succeeded(self, *results: bytes) -> Task:
        task = await self.fetching(*results)
        await self.steps.fetch(task)
        done = await self.look(task)
        assert done.state == State.SUCCEEDED
        return done

    async def look(self, task: Task) -> Task:
        found = await self.services.broker.tasks.get(task.id)
        assert found is not None
        return found

    async def images(self, task: Task) -> list[StoredImage]:
        return await self.services.broker.images.of(task.id, "result")

    async def holders(self) -> list[str]:
        """Who has bytes."""
        return sorted(await self.services.broker.blobs.owners(-60.0))

    async def readable(self, task: Task) -> None:
        """Every image of the task is there, and is what was stored."""
        images = await self.images(task)
        assert len(images) == len(task.outputs)
        for image in images:
            chunks = [chunk async for chunk in await self.services.broker.blobs.open(image.blob)]
            assert hashlib.sha256(b"".join(chunks)).hexdigest() == image.sha256

    async def retire(self, state: State, retention: Retention | None = None) -> int:
        """The steps of all tasks that are due in a state, one by one; how many."""
        steps = 0
        while claimed := await self.services.broker.tasks.claim(
            state, now=self.clock.now(), lease=replace(LEASE, holder=f"test {next(self.numbers)}"), limit=1
        ):
            await (retention or self.retention).retire(claimed)
            steps += 1
        return steps

    async def forget(self, retention: Retention) -> None:
        """As one worker does it."""
        await self.retire(State.SUCCEEDED, retention)
        await self.retire(State.EXPIRED, retention)

    def shared(self) -> float:
        metric = next(iter(self.services.metrics.shared_results.collect()))
        return next(sample.value for sample in metric.samples if sample.name.endswith("_total"))


@asynccontextmanager
async def home(folder: Path, clock: ManualClock, **settings: Any) -> AsyncIterator[Home]:
    async with (
        serving_pictures() as pictures,
        still(folder, clock, **{"download_allow": (pictures.host,), **settings}) as services,
    ):
        yield Home(services=services, pictures=pictures, clock=clock)


# -- what is stored


async def test_equal_results_are_stored_once(tmp_path: Path, place: dict[str, Any], clock: ManualClock) -> None:
    async with home(tmp_path, clock, **place) as house:
        first, second, third = [await house.succeeded(DATA) for _ in range(3)]
        other = await house.succeeded(OTHER)
        assert await house.holders() == [first.id, other.id]
        assert house.shared() == 2
        for task in (first, second, third, other):
            await house.readable(task)
        assert [image.holder for image in await house.images(third)] == [first.id], "no chains"
        stored = await house.services.broker.images.stored()
        assert stored == {"n": 4, "size": len(DATA) + len(OTHER)}


@pytest.mark.parametrize("damage", ["gone", "changed"])
async def test_bytes_that_only_a_row_speaks_of_are_stored_again(
    tmp_path: Path, clock: ManualClock, damage: str
) -> None:
    """The paid image in hand is not let go for one that was lost, or lies in a store of before."""
    async with home(tmp_path, clock) as house:
        await house.succeeded(DATA)
        (file,) = [path for path in (tmp_path / "blobs").rglob("*") if path.is_file() and path.parent.name != ".drafts"]
        file.unlink() if damage == "gone" else file.write_bytes(DATA[:-1] + b"?")
        second = await house.succeeded(DATA)
        assert [image.holder for image in await house.images(second)] == [None]
        await house.readable(second)


async def test_equal_results_that_come_together_are_stored_once(
    tmp_path: Path, place: dict[str, Any], clock: ManualClock
) -> None:
    """As those of one request for several pictures do: one goes first."""
    async with home(tmp_path, clock, **place) as house:
        tasks = [await house.fetching(DATA) for _ in range(6)]
        await asyncio.gather(*(house.steps.fetch(task) for task in tasks))
        for task in tasks:
            await house.readable(await house.look(task))
        assert (len(await house.holders()), house.shared()) == (1, 5)
        assert dict(house.steps.arriving) == {}


async def test_equal_results_of_one_task_are_one_file_of_its_own(tmp_path: Path, clock: ManualClock) -> None:
    async with home(tmp_path, clock) as house:
        task = await house.succeeded(DATA, OTHER, DATA)
        assert [image.holder for image in await house.images(task)] == [None] * 3
        await house.readable(task)
        assert sum(path.is_file() for path in (tmp_path / "blobs").rglob("*")) == 2


async def test_what_has_the_same_hash_or_the_same_size_only_is_another_image(
    tmp_path: Path, clock: ManualClock
) -> None:
    async with home(tmp_path, clock) as house:
        await house.succeeded(DATA)
        images = house.services.broker.images
        sha256 = hashlib.sha256(DATA).hexdigest()
        assert await images.equal(sha256, len(DATA), besides="x") is not None
        assert await images.equal(sha256, len(DATA) + 1, besides="x") is None
        assert await images.equal("0" * 64, len(DATA), besides="x") is None


async def test_references_are_nobodys_but_their_requests(tmp_path: Path, clock: ManualClock) -> None:
    """They are deleted by other rules."""
    async with home(tmp_path, clock) as house:
        broker = house.services.broker
        async with broker.blobs.draft("refs_1") as draft:
            await draft.write(DATA)
            blob = await draft.keep()
        first = await house.succeeded(DATA)
        (image,) = await house.images(first)
        row = replace(image, name="reference_1.png", owner=first.id, kind="reference", blob=blob.name)
        await house.services.database.transact(broker.images.adding(row))
        await house.services.database.execute("DELETE FROM images WHERE kind = 'result'")
        assert [image.holder for image in await house.images(await house.succeeded(DATA))] == [None]
        assert house.pictures.fetched == 2, "nor are they tried"


async def test_processes_of_before_are_given_a_day(tmp_path: Path, clock: ManualClock) -> None:
    """They clear a task's folder without looking who else needs it."""
    async with home(tmp_path, clock) as house:
        database = house.services.database
        assert await known_to_all(database, 5) == 0, "a new database never had any"
        assert await known_to_all(database, 999) == float("inf")
        await database.execute("UPDATE migrations SET ran_at = ran_at + 1000 WHERE number = 5")
        assert await known_to_all(database, 5) == clock.now() + 1000 + DAY
    async with home(tmp_path, clock) as house:
        await house.succeeded(DATA)
        await house.succeeded(DATA)
        assert (len(await house.holders()), house.shared()) == (2, 0)
        clock.advance(1000 + DAY)
        await house.succeeded(DATA)
        assert (len(await house.holders()), house.shared()) == (2, 1)


# -- what is deleted, and when


async def test_bytes_stay_until_the_last_task_that_needs_them_is_forgotten(
    tmp_path: Path, place: dict[str, Any], clock: ManualClock
) -> None:
    async with home(tmp_path, clock, **place) as house:
        first = await house.succeeded(DATA)
        clock.advance(5 * HOUR)
        second = await house.succeeded(DATA)
        clock.advance(DAY - 5 * HOUR + 1)
        assert await house.services.worker.clean_up() == 1, "it ends although the first is not emptied"
        assert (await house.look(first)).state == State.EXPIRED
        await house.readable(second)
        assert await house.retention._strays([first.id]) == []
        clock.advance(5 * HOUR)
        assert await house.services.worker.clean_up() == 1
        clock.advance(61)
        await house.services.worker.clean_up()
        assert await house.holders() == []
        assert await house.services.database.fetch("SELECT name FROM images") == []
        clock.advance(8 * DAY)
        await house.services.worker.clean_up()
        assert await house.services.database.fetch("SELECT id FROM tasks") == []


async def test_who_needs_it_may_go_first(tmp_path: Path, place: dict[str, Any], clock: ManualClock) -> None:
    async with home(tmp_path, clock, **place) as house:
        first = await house.succeeded(DATA)
        second = await house.succeeded(DATA)
        await house.services.database.execute("UPDATE tasks SET due_at = 1, ended_at = 1 WHERE id = :id", id=second.id)
        assert await house.services.worker.clean_up() == 1
        assert (await house.look(second)).state == State.EXPIRED
        await house.readable(first)


async def test_a_spared_task_is_looked_at_when_the_last_that_needs_it_is_due(
    tmp_path: Path, clock: ManualClock
) -> None:
    """Not before a minute, and not later than in an hour: retention may become shorter."""
    async with home(tmp_path, clock) as house:
        first, other = await house.succeeded(DATA), await house.succeeded(DATA)
        clock.advance(DAY + 1)
        now = clock.now()
        due = "UPDATE tasks SET due_at = :due WHERE id = :id"
        await house.services.database.execute(due, due=9e9, id=other.id)
        await house.retire(State.SUCCEEDED)
        for needed, expected in [(now + 600, now + 600), (now + DAY, now + HOUR), (now - 5, now + 60)]:
            await house.services.database.execute(due, due=needed, id=other.id)
            await house.services.database.execute(due, due=now, id=first.id)
            assert await house.retire(State.EXPIRED) == 1
            assert (await house.look(first)).due_at == expected


async def test_whose_bytes_are_about_to_go_holds_nothing_for_anybody(tmp_path: Path, clock: ManualClock) -> None:
    """Expired, and only spared for another one: from now on it would be a new reader each time, for ever."""
    async with home(tmp_path, clock) as house:
        first = await house.succeeded(DATA)
        clock.advance(5 * HOUR)
        second = await house.succeeded(DATA)
        clock.advance(DAY - 5 * HOUR + 1)
        await house.services.worker.clean_up()
        third = await house.succeeded(DATA)
        fourth = await house.succeeded(DATA)
        held_by = [(await house.images(task))[0].holder for task in (second, third, fourth)]
        assert held_by == [first.id, None, third.id]
        assert house.pictures.fetched == 4, "nor is it tried"


async def test_a_thumbnail_is_its_own_tasks(tmp_path: Path, clock: ManualClock) -> None:
    """It goes with the task for which it was made, whoever holds the bytes of the image."""
    async with home(tmp_path, clock) as house:
        first, second = await house.succeeded(DATA), await house.succeeded(DATA)
        (image,) = await house.images(second)
        small = await house.services.broker.thumbnails.of(image, 512)
        assert small is not None
        assert (small.owner, small.holder, image.holder) == (second.id, None, first.id)
        assert await house.holders() == sorted([first.id, second.id])


# -- in every order


@dataclass
class Watched:
    """A database that does something once before a transaction with a statement like this one."""

    database: Database
    like: str
    happening: Callable[[], Awaitable[None]] | None = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self.database, name)

    async def transact(self, *statements: Statement, wake: Sequence[str] = ()) -> list[Outcome]:
        if self.happening and any(self.like in statement.sql for statement in statements):
            happening, self.happening = self.happening, None
            await happening()
        return await self.database.transact(*statements, wake=wake)


async def test_bytes_that_expire_between_look_and_row_are_brought_again(
    tmp_path: Path, place: dict[str, Any], clock: ManualClock
) -> None:
    watched: list[Watched] = []

    @asynccontextmanager
    async def open_watched(settings: Settings) -> AsyncIterator[Any]:
        async with database_for(settings) as database:
            watched.append(Watched(database, "INSERT INTO images"))
            yield watched[0]

    async with (
        serving_pictures() as pictures,
        still(tmp_path, clock, open_database=open_watched, download_allow=(pictures.host,), **place) as services,
    ):
        house = Home(services=services, pictures=pictures, clock=clock)
        first = await house.succeeded(DATA)
        clock.advance(DAY + 1)
        second = await house.fetching(DATA)

        async def forgotten() -> None:
            await house.retire(State.SUCCEEDED)
            await house.retire(State.EXPIRED)

        watched[0].happening = forgotten
        await house.steps.fetch(second)
        assert (await house.look(first)).state == State.EXPIRED
        assert (await house.look(second)).state == State.SUCCEEDED
        assert [image.holder for image in await house.images(second)] == [None]
        await house.readable(second)
        assert (await house.holders(), pictures.fetched, house.shared()) == ([second.id], 3, 0)


async def test_a_row_that_points_and_the_end_of_whom_it_points_to_exclude_each_other(
    tmp_path: Path, place: dict[str, Any], clock: ManualClock
) -> None:
    """However the two transactions meet: whoever clears up afterwards sees every row that was written."""
    async with home(tmp_path, clock, **place) as house:
        broker = house.services.broker
        for n in range(25):
            first, second = await house.succeeded(bytes_of(n)), await house.fetching(bytes_of(n))
            old = "UPDATE tasks SET due_at = 1, ended_at = 1 WHERE id = :id"
            await broker.database.execute(old, id=first.id)
            (image,) = await house.images(first)
            row = replace(image, name=f"{second.id}.png", owner=second.id, holder=first.id)
            claimed = await broker.tasks.claim(State.SUCCEEDED, now=clock.now(), lease=LEASE, limit=1)
            written, _ = await asyncio.gather(house.steps._keep(second, row), house.retention.retire(claimed))
            assert (await broker.images.needed([first.id]) != {}) is written
            assert (await house.look(first)).state == State.EXPIRED
            await house.retire(State.EXPIRED)
            if written:
                [_ async for _ in await broker.blobs.open(row.blob)]


async def test_two_tasks_that_hold_something_for_each_other_do_not_wait_for_each_other(
    tmp_path: Path, place: dict[str, Any], clock: ManualClock
) -> None:
    """Both pins are taken in the same order."""
    async with home(tmp_path, clock, **place) as house:
        for n in range(20):
            one, other = await house.fetching(bytes_of(n)), await house.fetching(bytes_of(n))
            base = StoredImage(
                name=f"{n}.png", owner=one.id, kind="result", position=5, blob="b", media_type="image/png",
                size=1, width=1, height=1, sha256="0", created_at=clock.now(), holder=other.id,
            )  # fmt: skip
            begun = time.perf_counter()
            kept = await asyncio.gather(
                house.steps._keep(one, base),
                house.steps._keep(other, replace(base, name=f"{n}b.png", owner=other.id, holder=one.id)),
            )
            assert all(kept)
            assert time.perf_counter() - begun < 0.9, "Postgres looks for a deadlock after a second"


def bytes_of(number: int) -> bytes:
    return encoded("PNG", picture(8 + number % 50, 8 + number // 50))


class Turns:
    """Actors that take turns, one step of the store at a time, in an order drawn by lot: the same for the same seed.

    Some games are hasty: whoever had a turn mostly has the next one, too, while the others stand still.
    """

    def __init__(self, seed: int) -> None:
        self.lot = random.Random(seed)
        self._parked: list[asyncio.Future[None]] = []
        self._running = 0
        self._changed = asyncio.Event()
        self._playing = False

    async def turn(self) -> None:
        if not self._playing:
            return
        mine = asyncio.get_running_loop().create_future()
        self._parked.append(mine)
        self._running -= 1
        self._changed.set()
        await mine

    async def play(self, *actors: Awaitable[object]) -> None:
        self._playing, self._running = True, len(actors)
        haste = self.lot.choice([0.0, 0.5, 0.9])
        tasks = [asyncio.ensure_future(self._act(actor)) for actor in actors]
        while self._running or self._parked:
            if self._running:
                self._changed.clear()
                await self._changed.wait()
                continue
            self._running += 1
            again = self.lot.random() < haste
            self._parked.pop(-1 if again else self.lot.randrange(len(self._parked))).set_result(None)
        self._playing = False
        await asyncio.gather(*tasks)

    async def _act(self, actor: Awaitable[object]) -> None:
        try:
            await actor
        finally:
            self._running -= 1
            self._changed.set()


@dataclass
class TurnByTurn:
    """A database, or a blob store, each of whose calls waits for its turn."""

    inner: Any
    turns: Turns
    calls: tuple[str, ...]

    def __getattr__(self, name: str) -> Any:
        call = getattr(self.inner, name)
        if name not in self.calls:
            return call

        async def in_turn(*args: Any, **kwargs: Any) -> Any:
            await self.turns.turn()
            return await call(*args, **kwargs)

        return in_turn

    @asynccontextmanager
    async def draft(self, owner: str) -> AsyncIterator[Any]:
        async with self.inner.draft(owner) as draft:
            yield TurnByTurn(draft, self.turns, ("keep",))


SEEDS = range(88, 88 + int(os.environ.get("INTERLEAVINGS", "12")))
"""Among them is one in which bytes go between the look for them and the row that points to them."""
ROUNDS = 6


async def test_a_completed_task_has_its_images_whatever_happens_in_which_order(
    tmp_path: Path, clock: ManualClock
) -> None:
    """Equal results come home while others expire, are emptied and swept, by two workers: all orders by lot."""
    turns = Turns(0)

    @asynccontextmanager
    async def open_in_turns(settings: Settings) -> AsyncIterator[Any]:
        async with database_for(settings) as database:
            yield TurnByTurn(database, turns, ("transact", "fetch", "point", "execute"))

    async with (
        serving_pictures() as pictures,
        still(tmp_path, clock, open_database=open_in_turns, download_allow=(pictures.host,)) as services,
    ):
        blobs: Any = TurnByTurn(services.broker.blobs, turns, ("delete", "owners"))
        steps = replace(services.broker.steps, blobs=blobs, intake=Intake(blobs, max_pixels=10**6))
        retention = replace(services.worker.retention, blobs=blobs)
        house = Home(services=services, pictures=pictures, clock=clock)
        for seed in SEEDS:
            turns.lot.seed(seed)
            await live_and_die(house, steps, retention, turns, bytes_of(seed))
        assert house.shared() > len(SEEDS), "it is about something"


async def live_and_die(house: Home, steps: Steps, retention: Retention, turns: Turns, data: bytes) -> None:
    """Some rounds in which new tasks with the same result come, and old ones go; then the last of them goes."""
    tasks: list[Task] = []
    for _ in range(ROUNDS):
        new = [await house.fetching(data) for _ in range(turns.lot.randint(1, 2))]
        tasks += new
        await turns.play(
            *(replace(steps, arriving={}).fetch(task) for task in new),  # each in a process of its own
            house.forget(retention),
            house.forget(retention),
            retention.sweep(older_than=-60.0),
        )
        for task in tasks:
            row = await house.services.broker.tasks.get(task.id)
            if row is not None and row.state != State.EXPIRED:
                assert row.state == State.SUCCEEDED
                await house.readable(row)
        house.clock.advance(turns.lot.choice([60, 8 * HOUR, 16 * HOUR, DAY + 1]))
    for _ in range(3):
        house.clock.advance(DAY + 1)
        await house.services.worker.clean_up()
    await house.retention.sweep(older_than=-60.0)
    assert (await house.holders(), await house.services.database.fetch("SELECT name FROM images")) == ([], [])
