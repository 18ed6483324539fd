"""A deleted account leaves nothing but amounts: no row in any table, no file, nothing that comes back later."""

from __future__ import annotations

import asyncio
import json
import math
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final, cast

import httpx
import pytest

from broker.bootstrap import database_for
from broker.logs import LogEvent
from broker.privacy.deletion import KEPT_SECONDS
from broker.services import Services
from broker.settings import Settings
from broker.tasks.lifecycle import LATE_FILES_SECONDS
from storage.attempts import Attempt
from storage.callbacks import StoredCallback
from storage.ids import DELETED_OWNER, new_task_id
from storage.limits.budgets import day_of
from storage.sql.database import Database, Statement
from storage.sql.rows import insert_row
from storage.states import TaskState
from storage.tasks import DUE_CHANNEL, Task
from tests.accounts.own_keys import open_market
from tests.api.test_api_callbacks import FORWARDED, WEBHOOK_PATH, address, done
from tests.journeys.test_providers import broker_at
from tests.privacy.canaries import WORD, add_key, add_user, files_below
from tests.privacy.planted_account import TABLES, WITHOUT_OWNER, PlantedAccount, dump_database, plant_account
from tests.support.api import ApiBroker, MountedApp, open_api, png
from tests.support.brokers import still
from tests.support.clock import ManualClock
from tests.support.listeners import Listeners
from tests.support.servers.postgres import Postgres
from webhooks.signatures.base import Proof
from webhooks.verification import Evidence

pytestmark = pytest.mark.anyio

KEY: Final = "key-of-the-operator-0123456789"
HEADERS: Final = {"Authorization": f"Bearer {KEY}"}


@pytest.fixture
def clock() -> ManualClock:
    """A clock that a server of Postgres agrees with."""
    return ManualClock(time.time())


@pytest.fixture(params=["sqlite", "postgres"])
async def settings(request: pytest.FixtureRequest) -> dict[str, Any]:
    """Settings of one database each."""
    if request.param == "sqlite":
        return {}
    server: Postgres = request.getfixturevalue("postgres")
    return {"database_url": await server.fresh()}


async def costs_by_user(broker: ApiBroker) -> dict[str, tuple[int, float, float]]:
    data = (await broker.client.get("/api/costs?by=user", headers=HEADERS)).json()["data"]
    sums: dict[str, tuple[int, float, float]] = {}
    for row in (*data["rows"], *data.get("ownRows", data.get("ownKeys", []))):
        attempts, usd, estimated = sums.get(row["name"], (0, 0.0, 0.0))
        sums[row["name"]] = (attempts + row["attempts"], usd + row["usd"], estimated + row["usdEstimated"])
    return sums


def check_nothing_is_left(account: PlantedAccount, dump: Any) -> None:
    """Check that tombstones have ids and amounts, and that nothing else mentions the account."""
    left = account.mentions(dump)
    assert left.keys() <= {"tasks", "attempts", "owner_deletions"}, left.keys()
    for row in left.get("tasks", []):
        assert (row["caller"], row["state"]) == (DELETED_OWNER, TaskState.EXPIRED)
        assert not any(account.user.id in str(value) or WORD in str(value) for value in row.values()), row
        assert "@" not in row["provider"][:-1], row
    for row in left.get("attempts", []):
        assert not [name for name, value in row.items() if WORD in str(value) and name != "job_id"], row
        assert not row["provider"].partition("@")[2], row


async def test_deletion_leaves_nothing_but_amounts(
    tmp_path: Path, settings: dict[str, Any], log_lines: list[LogEvent]
) -> None:
    async with open_api(tmp_path, api_keys=(KEY,), **settings) as broker:
        before_planting = files_below(tmp_path / "blobs")
        ada, bob = [await plant_account(broker, name) for name in ("ada-lovelace", "bob-by-name")]
        house = await broker.add_task(id=f"task_{'a' * 43}", prompt="of the house")
        before = await dump_database(broker)
        assert ada.mentions(before).keys() == set(TABLES) - WITHOUT_OWNER, "a new table: plant it, and delete from it"
        files, costs = files_below(tmp_path / "blobs") - before_planting, await costs_by_user(broker)
        answer = await broker.client.delete(f"/api/users/{ada.user.id}", headers=HEADERS)
        assert answer.status_code == 204, answer.text
        after = await dump_database(broker)
        check_nothing_is_left(ada, after)
        assert bob.mentions(after) == bob.mentions(before)
        assert [row for row in after["tasks"] if row["id"] == house.id] == [
            row for row in before["tasks"] if row["id"] == house.id
        ]
        assert files_below(tmp_path / "blobs") - before_planting == files // 2
        assert await costs_by_user(broker) == {bob.user.name: costs[bob.user.name], DELETED_OWNER: costs[ada.user.name]}
        assert (await broker.client.delete(f"/api/users/{ada.user.id}", headers=HEADERS)).status_code == 404
    logged = str(log_lines)
    assert "account_erased" in logged
    assert WORD not in logged
    assert ada.user.name not in logged


# -- processes that die, and requests that were on their way


class Died(BaseException):
    """The process was killed."""


@dataclass(kw_only=True)
class DyingDatabase:
    """A database whose process is killed before one of the next writes."""

    database: Any = None
    writes_left: float = math.inf

    def __getattr__(self, name: str) -> Any:
        return getattr(self.database, name)

    @asynccontextmanager
    async def open_database(self, settings: Settings) -> AsyncIterator[Database]:
        async with database_for(settings) as self.database:
            yield cast(Database, self)

    async def transact(self, *statements: Statement, wake: Sequence[str] = ()) -> Any:
        self._count_write()
        return await self.database.transact(*statements, wake=wake)

    async def execute(self, sql: str, **params: Any) -> int:
        self._count_write()
        rows: int = await self.database.execute(sql, **params)
        return rows

    def _count_write(self) -> None:
        self.writes_left -= 1
        if self.writes_left < 0:
            raise Died


async def test_deletion_is_finished_by_the_processes_after_one_that_died(
    tmp_path: Path, settings: dict[str, Any], clock: ManualClock
) -> None:
    """Each of them is killed after a few writes, again and again."""
    database = DyingDatabase()
    async with still(tmp_path, clock, open_database=database.open_database, **settings) as services:
        broker = with_services(services, tmp_path)
        before = files_below(tmp_path / "blobs")
        account, other = [await plant_account(broker, name) for name in ("ada-lovelace", "bob-by-name")]
        planted, kept = files_below(tmp_path / "blobs"), other.mentions(await dump_database(broker))
        database.writes_left = 1
        with pytest.raises(Died):
            await services.account_deleter.delete_user(account.user.id)
        deaths = 1
        while True:
            database.writes_left = 3
            try:
                assert await services.account_deleter.finish_deletions() == 1
            except Died:
                deaths += 1
            else:
                break
        database.writes_left = math.inf
        assert deaths > 5
        left = await dump_database(broker)
        check_nothing_is_left(account, left)
        assert other.mentions(left) == kept
        clock.advance(LATE_FILES_SECONDS + 1)
        await services.worker.clean_up()  # deletes the files that a killed process has left
        assert files_below(tmp_path / "blobs") == before + (planted - before) // 2


def with_services(services: Services, folder: Path) -> ApiBroker:
    """Return the helpers of an API broker for services without a server."""
    mounted = MountedApp(services=services)
    return ApiBroker(mounted=mounted, listeners=Listeners(), client=httpx.AsyncClient(), port=0, folder=folder)


async def test_worker_finishes_deletions_of_processes_before(tmp_path: Path) -> None:
    async with open_api(tmp_path) as broker:
        user = await add_user(broker, "ada")
        task = await broker.add_task(caller=user.id, prompt=WORD)
        services = broker.services
        beginning = services.tables.owner_deletions.begin(user.id, services.clock.now())
        await services.database.transact(*services.users.delete_account(user.id), beginning)
    async with open_api(tmp_path) as broker, asyncio.timeout(5):
        while (row := await broker.services.tables.tasks.get(task.id)) and row.caller == user.id:  # noqa: ASYNC110
            await asyncio.sleep(0.01)


async def test_what_a_request_from_before_adds_is_deleted_later(
    tmp_path: Path, settings: dict[str, Any], clock: ManualClock
) -> None:
    async with still(tmp_path, clock, **settings) as services:
        broker, deleter = with_services(services, tmp_path), services.account_deleter
        user = await add_user(broker, "ada")
        await replace(deleter, request_seconds=0.0).delete_user(user.id)  # as if it took too long
        task = await broker.add_task(id=f"task_{'1' * 43}", caller=user.id, prompt=WORD, state=TaskState.QUEUED)
        await services.database.execute(
            "INSERT INTO owner_usage (owner, day, images, micros) VALUES (:owner, 1, 1, 1)", owner=user.id
        )
        assert await deleter.finish_deletions() == 1, "due at once, if the request was cut off"
        row = await services.tables.tasks.get(task.id)
        assert row is not None
        assert (row.caller, row.state, row.prompt) == (DELETED_OWNER, TaskState.EXPIRED, "")
        for _ in range(20):
            assert user.id not in str(await services.database.fetch("SELECT * FROM owner_usage"))
            if not (rows := await services.database.fetch("SELECT due_at FROM owner_deletions")):
                break
            clock.advance(rows[0]["due_at"] - clock.now())
            assert await deleter.finish_deletions() == 1
        assert rows == []
        assert clock.now() - task.created_at >= KEPT_SECONDS


# -- what providers do later


async def add_job(broker: ApiBroker, owner: str) -> Task:
    """Add a task whose job runs at kie.ai, for 4 credits."""
    task = await broker.add_task(caller=owner, job_id="job-of-ada", prompt=WORD)
    attempt = Attempt(
        task_id=task.id, number=1, provider="kie", key_id="default", job_id="job-of-ada", sent_at=task.created_at,
        outcome="accepted", price=4.0, usd_per_unit=0.005,
    )  # fmt: skip
    await broker.services.database.transact(insert_row("attempts", attempt))
    return task


async def check_no_content(broker: ApiBroker) -> None:
    for table in TABLES:
        text = str(await broker.services.database.fetch(f"SELECT * FROM {table}"))
        assert WORD not in text, table
        assert "x.png" not in text, table


async def test_late_callbacks_of_a_deleted_account_count_costs_and_store_nothing(tmp_path: Path) -> None:
    async with open_api(tmp_path, api_keys=(KEY,), webhook_key="key-of-the-webhooks") as broker:
        task = await add_job(broker, (await add_user(broker, "ada")).id)
        assert (await broker.client.delete(f"/api/users/{task.caller}", headers=HEADERS)).status_code == 204
        sent = [(address(broker, task), "job-of-ada", 200), (address(broker, task), "another-job", 200)]
        for path, job, status in (*sent, (f"{WEBHOOK_PATH}?task={task.id}", "job-of-ada", 401)):
            body = done(job)
            body["data"]["param"] = WORD
            answer = await broker.client.post(path, json=body, headers=FORWARDED)
            assert answer.status_code == status, answer.text
            while await broker.services.tables.callbacks.count_unprocessed(task.id):  # noqa: ASYNC110
                await asyncio.sleep(0.005)
        (row,) = await broker.services.tables.attempts.list_of_task(task.id)
        assert (row.outcome, row.billed, row.cost, row.duplicate_cost) == ("succeeded", "yes", 4.0, 4.0)
        assert await costs_by_user(broker) == {DELETED_OWNER: (1, 0.04, 0.02)}
        await check_no_content(broker)
        await broker.client.post(WEBHOOK_PATH, json={"of": "a task that nobody knows"}, headers=FORWARDED)
        (last, *_) = (await broker.client.get("/api/callbacks", headers=HEADERS)).json()["data"]
        assert (last["taskId"], last["withheld"]) == (None, True), "it may be about what was deleted"


async def test_callback_that_was_not_processed_is_counted_before_it_is_deleted(
    tmp_path: Path, settings: dict[str, Any], clock: ManualClock
) -> None:
    async with still(tmp_path, clock, **settings) as services:
        broker = with_services(services, tmp_path)
        task = await add_job(broker, (await add_user(broker, "ada")).id)
        callback = StoredCallback(
            id=f"callback_{1:024x}", provider="kie", task_id=task.id, attempt=1, verification="accept", status=200,
            reason="", received_at=clock.now(), headers="{}", query="{}", body=json.dumps(done("job-of-ada")),
            evidence=Evidence(token=Proof.BODY_VERIFIED, known=True).to_json(),
        )  # fmt: skip
        await services.database.transact(services.tables.callbacks.insert_callback(callback))
        await services.account_deleter.delete_user(task.caller)
        (row,) = await services.tables.attempts.list_of_task(task.id)
        assert (row.outcome, row.billed, row.cost) == ("succeeded", "yes", 4.0)
        await check_no_content(broker)


async def test_download_that_ends_after_the_deletion_stores_nothing(tmp_path: Path) -> None:
    clock, begun, released = ManualClock(), asyncio.Event(), asyncio.Event()
    image = png()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(f"HTTP/1.1 200 OK\r\nContent-Length: {len(image)}\r\nContent-Type: image/png\r\n\r\n".encode())
        writer.write(image[:10])
        await writer.drain()
        begun.set()
        await released.wait()
        writer.write(image[10:])
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    host = f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
    async with server, open_api(tmp_path, api_keys=(KEY,), clock=clock, download_allow=(host,)) as broker:
        services, before = broker.services, files_below(tmp_path / "blobs")
        user = await add_user(broker, "ada")
        task = await broker.add_task(
            caller=user.id, state=TaskState.FETCHING, outputs=(f"http://{host}/x.png",), due_at=0.0
        )
        services.database.notify(DUE_CHANNEL)
        await begun.wait()
        assert (await broker.client.delete(f"/api/users/{user.id}", headers=HEADERS)).status_code == 204
        released.set()
        while services.running_steps.count:  # noqa: ASYNC110
            await asyncio.sleep(0.005)
        assert (await broker.client.get(f"/api/task/{task.id}")).status_code == 410
        assert await services.database.fetch("SELECT * FROM images") == []
        clock.advance(LATE_FILES_SECONDS + 1)
        async with asyncio.timeout(5):
            while files_below(tmp_path / "blobs") > before:
                services.database.notify(DUE_CHANNEL)
                await asyncio.sleep(0.01)


async def test_running_order_is_canceled_at_the_provider(tmp_path: Path) -> None:
    async with broker_at("replicate", tmp_path, check_after=0.1, api_keys=(KEY,)) as broker:
        user = await add_user(broker, "ada")
        secret, _ = await add_key(broker, user.id)
        broker.client.headers["Authorization"] = f"Bearer {secret}"
        task = await broker.create_task("a red fox [mood:slow:60]")
        async for _ in broker.poll_task(task):
            if any(job["reads"] for job in await broker.provider_jobs()):  # its id is known
                break
        answer = await broker.client.delete(f"/api/users/{user.id}", headers=HEADERS)
        assert answer.status_code == 204
        (job,) = await broker.provider_jobs()
        assert job["state"] == "fail"
        row = await broker.services.tables.tasks.get(task)
        assert row is not None
        assert (row.state, row.error_code, row.owner_images) == (TaskState.EXPIRED, "canceled", 1)


async def test_job_with_a_key_of_the_account_is_canceled_with_that_key(tmp_path: Path) -> None:
    async with open_market(tmp_path, check_after=0.1) as market:
        caller = await market.add_caller("ada")
        await caller.set_key("fal", "planted-key-of-ada-0001")
        task = await caller.order("a red fox [mood:slow:60]", provider="fal")
        while not any(job["reads"] for job in await market.jobs("fal")):  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        revoked = await caller.client.delete(f"/api/keys/{caller.owner}", params={"withData": "true"})
        assert revoked.status_code == 204, "it belongs to no user"
        (job,) = await market.jobs("fal")
        assert job["state"] == "fail"
        assert (await caller.client.get("/api/me")).status_code == 401
        assert (await market.house().client.get(f"/api/task/{task}")).status_code == 410
        assert await market.services.database.fetch("SELECT * FROM provider_keys") == []


async def test_revoking_a_key_of_a_user_deletes_nothing_of_the_user(tmp_path: Path) -> None:
    async with open_api(tmp_path, api_keys=(KEY,)) as broker:
        user = await add_user(broker, "ada")
        (_, of_user), (_, alone) = await add_key(broker, user.id), await add_key(broker)
        now = broker.services.clock.now()
        tasks = {key: await broker.add_task(id=new_task_id(now), caller=key) for key in (user.id, alone.id)}
        for key in (of_user, alone):
            answer = await broker.client.delete(f"/api/keys/{key.id}?withData=true", headers=HEADERS)
            assert answer.status_code == 204
        statuses = {
            owner: (await broker.client.get(f"/api/task/{task.id}")).status_code for owner, task in tasks.items()
        }
        assert statuses == {user.id: 200, alone.id: 410}


async def test_order_that_was_not_submitted_gives_its_part_of_the_budget_back(tmp_path: Path) -> None:
    async with open_api(tmp_path, api_keys=(KEY,), daily_budget=10.0) as broker:
        user = await add_user(broker, "ada")
        secret, _ = await add_key(broker, user.id)
        broker.client.headers["Authorization"] = f"Bearer {secret}"
        assert (await broker.client.post("/api/generate/image", json={"prompt": "a red fox"})).status_code == 202
        day, budgets = day_of(broker.services.clock.now()), broker.services.tables.budgets
        assert await budgets.get_used(day) > 0
        assert (await broker.client.delete(f"/api/users/{user.id}", headers=HEADERS)).status_code == 204
        assert await budgets.get_used(day) == 0
