"""Faults of Postgres and of the connection to it: every acknowledged task ends as it should, submitted once."""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from broker.sandbox.engine import Options
from broker.sandbox.server import serve_sandbox
from broker.settings import Settings
from storage.attempts import Attempts
from storage.errors import Stale, StorageError
from storage.sql.database import Statement
from storage.sql.migrate import SchemaTooNew, load_migrations, missing_migrations, upgrade_schema
from storage.sql.postgres import PostgresDatabase
from storage.states import TaskState
from storage.tasks import Tasks
from tests.integration.storage.test_tasks import a_task
from tests.support import samples
from tests.support.brokers import RunningBroker, open_broker
from tests.support.faulty_postgres import Cable, When, cable
from tests.support.process import free_port, until
from tests.support.servers import postgres as servers
from tests.support.servers.postgres import Postgres

pytestmark = pytest.mark.anyio

NOW = 1_000.0
ADD = "INSERT INTO notes (id, n) VALUES (:id, 0)"
BUMP = "UPDATE notes SET n = n + 1 WHERE id = :id"


def through(port: int, url: str) -> str:
    """Return the URL of the same database through another port."""
    return f"postgresql://postgres@127.0.0.1:{port}/{url.rpartition('/')[2]}"


@asynccontextmanager
async def broken(postgres: Postgres, url: str, when: When) -> AsyncIterator[tuple[PostgresDatabase, Cable]]:
    """Open a database whose connection breaks at the next commit."""
    async with (
        cable(postgres.port, when, fuse=1, armed=False) as line,
        PostgresDatabase(through(line.port, url)) as database,
    ):
        await database.check()  # it listens now, and sends nothing by itself
        line.moments, line.armed = 0, True
        yield database, line
        assert line.cut


# -- a broken connection


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("statements", [1, 3])
async def test_transaction_over_a_broken_connection_happens_once(
    postgres: Postgres, when: When, statements: int
) -> None:
    url = await postgres.fresh()
    async with PostgresDatabase(url) as direct:
        await direct.execute("CREATE TABLE notes (id TEXT PRIMARY KEY, n BIGINT)")
    async with broken(postgres, url, when) as (database, _):
        adding = [Statement(sql=ADD, params={"id": "a"}), *[Statement(sql=BUMP, params={"id": "a"})] * (statements - 1)]
        outcomes = await database.transact(*adding)
        assert [outcome.count for outcome in outcomes] == [1] * statements
        assert await database.fetch("SELECT n FROM notes") == [{"n": statements - 1}]


async def test_existing_key_is_an_error_after_a_broken_connection(postgres: Postgres) -> None:
    """A doubtful commit must not make a real conflict look like a success."""
    url = await postgres.fresh()
    async with PostgresDatabase(url) as direct:
        await direct.execute("CREATE TABLE notes (id TEXT PRIMARY KEY, n BIGINT)")
        await direct.execute(ADD, id="a")
    async with broken(postgres, url, "before") as (database, line):
        line.armed = False
        with pytest.raises(StorageError):
            await database.execute(ADD, id="a")
        line.moments, line.armed = 0, True
        await database.execute(BUMP, id="a")


async def test_one_of_two_concurrent_changes_wins_over_a_broken_connection(postgres: Postgres) -> None:
    url = await postgres.fresh()
    async with PostgresDatabase(url) as direct:
        await upgrade_schema(direct, NOW)
        task, rows = a_task(state=TaskState.WAITING), Tasks(direct)
        await direct.transact(rows.insert_task(task))
        async with broken(postgres, url, "after") as (database, _):
            with pytest.raises(Stale):  # it was committed; the caller reads again, and finds its own change
                await database.transact(
                    rows.update_task(task, step_retries=7),
                    Attempts(database).update_attempt(task.id, 1, outcome="accepted"),
                )
        row = await rows.get(task.id)
        assert row is not None
        assert (row.step_retries, row.version) == (7, task.version + 1)


async def test_read_that_is_cancelled_while_a_connection_opens_leaves_nothing_behind(postgres: Postgres) -> None:
    """At each turn of the loop; an exception that nothing awaits fails the test."""
    url = await postgres.fresh()
    for turns in range(1, 8):
        async with PostgresDatabase(url) as database:
            reading = asyncio.create_task(database.fetch("SELECT 1 AS one"))
            for _ in range(turns):
                await asyncio.sleep(0)
            reading.cancel()
            await asyncio.gather(reading, return_exceptions=True)
            assert await database.fetch("SELECT 1 AS one") == [{"one": 1}]
        del reading
        gc.collect()


@pytest.mark.parametrize(
    ("when", "fuses"),
    [
        pytest.param("after", range(1, 72, 9), id="after some commits"),
        pytest.param("before", range(1, 72), id="before any commit", marks=pytest.mark.faults),
        pytest.param("after", range(1, 72), id="after any commit", marks=pytest.mark.faults),
    ],
)
async def test_connection_cut_at_any_commit_only_delays_the_task(
    tmp_path: Path, postgres: Postgres, when: When, fuses: range
) -> None:
    """For every commit of a task's life: the order is submitted once, and its result arrives."""
    places = asyncio.Semaphore(8)

    async def life(fuse: int) -> bool:
        async with places:
            return await _life(tmp_path / str(fuse), postgres, when, fuse)

    cuts = await asyncio.gather(*(life(fuse) for fuse in fuses))
    assert sum(cuts) > len(fuses) / 2, "a task's life has many commits"


async def _life(folder: Path, postgres: Postgres, when: When, fuse: int) -> bool:
    url = await postgres.fresh()
    async with (
        cable(postgres.port, when, fuse, armed=False) as line,
        open_broker(folder, database_url=through(line.port, url)) as broker,
    ):
        line.moments, line.armed = 0, True
        task_id = await broker.create_task("a red bicycle")
        data = await broker.wait_end(task_id)
        line.armed = False
        assert (data["status"], len(await broker.provider_jobs())) == ("completed", 1), (fuse, data)
        return line.cut


@pytest.mark.parametrize("when", [pytest.param("before", marks=pytest.mark.faults), "after"])
async def test_order_with_key_and_references_survives_a_broken_connection(
    tmp_path: Path, postgres: Postgres, when: When
) -> None:
    """The response is that of the first request, and the references of the existing order are kept."""
    picture = samples.plain_png()
    for fuse in range(1, 7):
        url = await postgres.fresh()
        async with (
            cable(postgres.port, when, fuse, armed=False) as line,
            open_broker(tmp_path / str(fuse), database_url=through(line.port, url)) as broker,
        ):
            line.moments, line.armed = 0, True
            answer = await broker.client.post(
                "/api/generate/image",
                data={"prompt": "a red bicycle"},
                files={"image": ("a.png", picture, "image/png")},
                headers={"Idempotency-Key": f"key-{fuse}"},
            )
            assert answer.status_code == 202, answer.text
            data = await broker.wait_end(answer.json()["taskId"])
            assert (data["status"], len(await broker.provider_jobs())) == ("completed", 1), (fuse, data)


# -- a crashing server


@pytest.mark.faults
async def test_repeated_postgres_crashes_under_load_end_every_task_once(tmp_path: Path) -> None:
    """The server crashes and restarts every 1.5 seconds while orders are created and processed."""
    orders = 60
    with servers.running() as server:
        async with open_broker(tmp_path, database_url=await server.fresh(), task_deadline=30) as broker:
            ending = asyncio.Event()
            crashing = asyncio.create_task(_crash_until(ending, server))
            ids = []
            for number in range(orders):
                ids.append(await _create_until_accepted(broker, number))
                await asyncio.sleep(0.1)
            ends = [await _wait_through_crashes(broker, task_id) for task_id in ids]
            ending.set()
            crashes = await crashing
            jobs = await broker.provider_jobs()
    assert crashes >= 4
    assert Counter(data["status"] for data in ends) == {"completed": orders}
    assert Counter(job["request"]["input"]["prompt"] for job in jobs) == {f"picture {n}": 1 for n in range(orders)}


async def _crash_until(ending: asyncio.Event, server: Postgres) -> int:
    crashes = 0
    while not ending.is_set():
        with suppress(TimeoutError):
            await asyncio.wait_for(ending.wait(), 1.5)
        await asyncio.to_thread(server.restart_hard)
        crashes += 1
    return crashes


async def _create_until_accepted(broker: RunningBroker, number: int) -> str:
    async with asyncio.timeout(30):
        while True:
            answer = await broker.client.post(
                "/api/generate/image",
                json={"prompt": f"picture {number}"},
                headers={"Idempotency-Key": f"order-{number}"},
            )
            if answer.status_code == 202:
                task_id: str = answer.json()["taskId"]
                return task_id
            assert answer.status_code == 503, answer.text
            assert answer.headers["retry-after"]


async def _wait_through_crashes(broker: RunningBroker, task_id: str) -> dict[str, Any]:
    async with asyncio.timeout(60):
        while True:
            answer = await broker.client.get(f"/api/task/{task_id}", params={"wait": "1"})
            if answer.status_code == 200 and answer.json()["data"]["status"] not in {"pending", "processing"}:
                data: dict[str, Any] = answer.json()["data"]
                return data


@pytest.mark.faults
async def test_long_outage_is_reported_and_ends_with_the_server(tmp_path: Path) -> None:
    with servers.running() as server:
        async with PostgresDatabase(await server.fresh(), retry_seconds=0.3) as database:
            await database.execute("CREATE TABLE notes (id TEXT PRIMARY KEY, n BIGINT)")
            server.stop("immediate")
            with pytest.raises(StorageError, match="does Postgres run"):
                await database.execute(ADD, id="a")
            with pytest.raises(StorageError, match="does Postgres run"):
                await database.fetch("SELECT 1")
            server.start()
            assert await database.execute(ADD, id="a") == 1


async def test_listener_is_woken_again_after_a_server_restart(tmp_path: Path) -> None:
    """A listener in another process is woken when the connection is back, and by every notification after that."""
    with servers.running() as server:
        url = await server.fresh()
        async with PostgresDatabase(url) as one, PostgresDatabase(url) as other:
            with other.listen("changes") as subscription:
                one.notify("changes")
                assert await subscription.wait(10)
                server.restart_hard()
                assert await subscription.wait(10), "it may have missed something"
                is_woken = False
                while not is_woken:
                    one.notify("changes")
                    is_woken = await subscription.wait(1)


# -- a process that stops inside a transaction


async def test_process_stopped_inside_a_transaction_does_not_block_others(postgres: Postgres) -> None:
    """A stopped process keeps its locks, so Postgres ends its session; its transaction is undone and run again."""
    url = await postgres.fresh()
    async with (
        cable(postgres.port, "held", 1, armed=False) as line,
        PostgresDatabase(through(line.port, url), idle_seconds=0.5) as database,
        PostgresDatabase(url) as other,
    ):
        await other.execute("CREATE TABLE notes (id TEXT PRIMARY KEY, n BIGINT)")
        await other.execute(ADD, id="a")
        line.armed, line.fuse = True, line.moments + 1
        bump = Statement(sql=BUMP, params={"id": "a"})
        stopped = asyncio.create_task(database.transact(bump, bump))
        while not line.cut:  # noqa: ASYNC110  # its COMMIT does not arrive
            await asyncio.sleep(0.01)
        begun = time.monotonic()
        assert await other.execute(BUMP, id="a") == 1
        assert time.monotonic() - begun < 5
        await stopped
        assert await other.fetch("SELECT n FROM notes") == [{"n": 3}]


# -- many processes


async def test_callback_to_one_process_wakes_a_poll_at_another(tmp_path: Path, postgres: Postgres) -> None:
    """Two brokers: the first accepts the order, only the second gets the callback, and the first is notified."""
    url, port = await postgres.fresh(), free_port()
    options = Options(duration=0.3, callback_spacing=0.1, callback_retries=20, creates_per_window=10_000)
    shared: dict[str, Any] = {"database_url": url, "secret_key": "the same for all of them", "check_after": 60}
    shared["blob_url"] = f"file:{tmp_path / 'blobs'}"
    async with serve_sandbox(options=options) as sandbox:
        called: dict[str, Any] = {"webhook_base_url": f"http://127.0.0.1:{port}"}
        async with (
            open_broker(tmp_path / "one", sandbox=sandbox, task_deadline=30, **shared, **called) as one,
            open_broker(tmp_path / "two", sandbox=sandbox, task_deadline=30, port=port, **shared) as two,
        ):
            task_id = await one.create_task("a red bicycle")
            begun = time.monotonic()
            answer = await one.client.get(f"/api/task/{task_id}", params={"wait": "20"})
            assert answer.json()["data"]["status"] == "completed"
            assert time.monotonic() - begun < 10, "without a check of the provider, which would have taken a minute"
            data = await two.get_task(task_id)
            image = await two.client.get(data["result"])
            assert (image.status_code, len(image.content)) == (200, data["results"][0]["bytes"])


@pytest.mark.parametrize("openings", [0, pytest.param(1, marks=pytest.mark.faults)])
async def test_provider_window_holds_over_all_processes(tmp_path: Path, postgres: Postgres, openings: int) -> None:
    """Two brokers on one account: together they submit no more jobs in ten seconds than it allows."""
    url = await postgres.fresh()
    shared: dict[str, Any] = {"database_url": url, "secret_key": "the same for all of them", "creates_per_10s": 10}
    shared["blob_url"] = f"file:{tmp_path / 'blobs'}"
    options = Options(duration=0.1, creates_per_window=10_000)
    async with (
        serve_sandbox(options=options) as sandbox,
        open_broker(tmp_path / "one", sandbox=sandbox, task_deadline=40, **shared) as one,
        open_broker(tmp_path / "two", sandbox=sandbox, task_deadline=40, **shared) as two,
    ):
        await asyncio.gather(*(broker.create_task(f"picture {n}") for n in range(8) for broker in (one, two)))
        expected = 16 if openings else 10
        async with asyncio.timeout(60):
            while await count_tasks(one, "completed") < expected:  # noqa: ASYNC110
                await asyncio.sleep(0.05)
        rows = await one.services.database.fetch("SELECT sent_at FROM attempts ORDER BY sent_at")
        assert await count_tasks(two, "pending") == 16 - expected
    sent = [row["sent_at"] for row in rows]
    assert len(sent) == expected
    assert all(later - earlier >= 10 for earlier, later in zip(sent, sent[10:], strict=False))


async def count_tasks(broker: RunningBroker, status: str) -> int:
    answer = await broker.client.get("/api/tasks", params={"status": status, "limit": 100})
    return len(answer.json()["data"])


async def test_provider_concurrency_holds_over_all_processes(tmp_path: Path, postgres: Postgres) -> None:
    """At most two jobs at once over all processes."""
    url = await postgres.fresh()
    shared: dict[str, Any] = {"database_url": url, "secret_key": "the same for all of them", "max_concurrent": 2}
    shared["blob_url"] = f"file:{tmp_path / 'blobs'}"
    options = Options(duration=0.3, creates_per_window=10_000)
    async with (
        serve_sandbox(options=options) as sandbox,
        open_broker(tmp_path / "one", sandbox=sandbox, task_deadline=40, **shared) as one,
        open_broker(tmp_path / "two", sandbox=sandbox, task_deadline=40, **shared) as two,
    ):
        ids = await asyncio.gather(*(broker.create_task(f"picture {n}") for n in range(6) for broker in (one, two)))
        ends = await asyncio.gather(*(two.wait_end(task_id, seconds=40) for task_id in ids))
        jobs = await one.provider_jobs()
    assert Counter(data["status"] for data in ends) == {"completed": 12}
    spans = [(job["createdAt"], job["createdAt"] + 0.3) for job in jobs]
    most = max(sum(begun <= at < ended for begun, ended in spans) for at, _ in spans)
    assert (len(jobs), most) == (12, 2)


async def test_poller_in_another_process_is_notified_at_once(postgres: Postgres) -> None:
    url = await postgres.fresh()
    async with PostgresDatabase(url) as one, PostgresDatabase(url) as other:
        await one.execute("CREATE TABLE notes (id TEXT PRIMARY KEY, n BIGINT)")
        await asyncio.gather(one.check(), other.check())  # both listen
        with other.listen("task:1") as subscription, other.listen("task:2") as silent:
            await one.transact(Statement(sql=ADD, params={"id": "a"}), wake=("task:1",))
            assert await subscription.wait(5)
            assert not await silent.wait(0)


async def test_thousands_of_notifications_at_once_all_arrive(postgres: Postgres) -> None:
    """More channels than one notification of Postgres can hold."""
    url = await postgres.fresh()
    async with PostgresDatabase(url) as one, PostgresDatabase(url) as other:
        await asyncio.gather(one.check(), other.check())
        names = [f"task:task_{n:043x}" for n in range(3000)]
        subscriptions = [other.listen(name) for name in names]
        opened = [subscription.__enter__() for subscription in subscriptions]
        one.notify(*names)
        assert all(await asyncio.gather(*(subscription.wait(10) for subscription in opened)))
        for subscription in subscriptions:
            subscription.__exit__(None, None, None)


KEY = "key-of-the-probe-0123456789"


async def test_readiness_follows_the_database(tmp_path: Path) -> None:
    with servers.running() as server:
        url = await server.fresh()

        def open_with_short_timeout(_: Settings) -> PostgresDatabase:
            return PostgresDatabase(url, retry_seconds=0.5)

        given: Any = {"database_url": url, "open_database": open_with_short_timeout, "api_keys": (KEY,)}
        async with open_broker(tmp_path, **given) as broker:
            broker.client.headers["authorization"] = f"Bearer {KEY}"
            assert (await broker.client.get("/ready")).status_code == 200
            server.stop("immediate")
            answer = await broker.client.get("/ready")
            assert (answer.status_code, answer.json()["checks"]["blobs"]) == (503, "ok")
            assert answer.json()["checks"]["database"] != "ok"
            assert (await broker.client.get("/health")).status_code == 200
            poll = await broker.client.get("/api/task/task_" + "0" * 43)
            assert (poll.status_code, poll.headers["retry-after"]) == (503, "5")
            server.start()
            await until(lambda: _ready(broker))


async def _ready(broker: RunningBroker) -> bool:
    return (await broker.client.get("/ready")).status_code == 200


async def test_unresponsive_server_is_given_up(tmp_path: Path) -> None:
    """A stopped server neither rejects the connection nor responds."""
    with servers.running() as server:
        async with PostgresDatabase(await server.fresh(), retry_seconds=0.5, statement_seconds=0.5) as database:
            await database.check()
            pids = [int(name) for name in os.listdir("/proc") if name.isdigit()]
            ours = [pid for pid in pids if _is_of(pid, server)]
            for pid in ours:
                os.kill(pid, signal.SIGSTOP)
            try:
                begun = time.monotonic()
                with pytest.raises(StorageError, match="does Postgres run"):
                    await database.fetch("SELECT 1 AS one")
                assert time.monotonic() - begun < 5
            finally:
                for pid in ours:
                    os.kill(pid, signal.SIGCONT)
            assert await database.fetch("SELECT 1 AS one") == [{"one": 1}]


def _is_of(pid: int, server: Postgres) -> bool:
    try:
        status = Path(f"/proc/{pid}/status").read_text()
        parent = int(status.split("PPid:")[1].split()[0])
        postmaster = int((server.folder / "postmaster.pid").read_text().split()[0])
    except (OSError, ValueError):
        return False
    return postmaster in {pid, parent}


async def test_start_waits_for_the_migration_of_another_process(postgres: Postgres) -> None:
    """Without a time limit."""
    url = await postgres.fresh()
    limits: dict[str, Any] = {"retry_seconds": 0.4, "lock_seconds": 0.4, "statement_seconds": 0.8}
    async with PostgresDatabase(url) as one, PostgresDatabase(url, **limits) as other:
        slow = Statement(sql="SELECT pg_sleep(1.2)")
        running = asyncio.create_task(one.transact(Statement(sql=one.exclusive), slow))
        await asyncio.sleep(0.2)
        assert await upgrade_schema(other, NOW)
        assert running.done()
        await running


@pytest.mark.parametrize("option", ["channel_binding=prefer", "connect_timeout=3", "pgbouncer=true", "sslmode=disable"])
async def test_url_with_options_of_other_drivers_is_accepted(postgres: Postgres, option: str) -> None:
    async with PostgresDatabase(f"{await postgres.fresh()}?{option}") as database:
        await database.check()


@pytest.mark.parametrize(
    ("end", "cure"), [("?sslmode=bogus", "DATABASE_URL"), ("?no_such_option=1", "options of DATABASE_URL")]
)
async def test_invalid_database_url_is_an_error_with_its_cure(postgres: Postgres, end: str, cure: str) -> None:
    with pytest.raises(StorageError, match=cure):
        async with PostgresDatabase(f"{await postgres.fresh()}{end}", retry_seconds=0.3) as database:
            await database.check()


async def test_empty_and_newer_database_are_reported(postgres: Postgres) -> None:
    async with PostgresDatabase(await postgres.fresh()) as database:
        assert [m.number for m in await missing_migrations(database)] == [m.number for m in load_migrations()]
        await upgrade_schema(database, NOW)
        assert await missing_migrations(database) == []
        await database.execute("INSERT INTO migrations VALUES (9999, '9999_future', 1.0)")
        with pytest.raises(SchemaTooNew, match="9999"):
            await missing_migrations(database)
