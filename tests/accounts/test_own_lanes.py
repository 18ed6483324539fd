"""The queues of users' accounts: found by few index seeks, in turn, within slots of their own."""

from __future__ import annotations

import asyncio
import math
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest

from broker.metrics import Metrics
from broker.tasks.accounts.lanes import PAUSE_SECONDS, Lanes
from broker.tasks.running import ACCOUNT_CONCURRENCY, OWN_CONCURRENCY, RunningStep, RunningSteps, SlotUse
from storage.accounts.provider_keys import ProviderKey, ProviderKeys
from storage.attempts import Attempt
from storage.errors import Stale
from storage.ids import new_provider_key_id
from storage.limits.provider_limits import AccountLimits, ProviderLimits
from storage.sql.migrate import upgrade_schema
from storage.states import TaskState
from storage.task_queue import TaskQueue
from storage.tasks import Tasks
from tests.contracts.databases import DATABASES
from tests.integration.storage.test_tasks import NOW, a_task, add
from tests.support.clock import ManualClock

pytestmark = pytest.mark.anyio

PLENTY = AccountLimits(creates_per_window=100, concurrency=100)


@pytest.fixture(params=list(DATABASES))
async def database(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Any]:
    async with AsyncExitStack() as stack:
        opened = await stack.enter_async_context(await DATABASES[request.param](request, tmp_path))
        await upgrade_schema(opened, NOW)
        yield opened


def account(number: int) -> str:
    return f"kie@{number:016x}"


async def test_lanes_are_listed_by_page_with_their_first_due_order(database: Any) -> None:
    await add(
        database,
        *(a_task(n, provider=account(n % 5), due_at=NOW + n) for n in range(15)),
        a_task(20, provider="kie"),
        a_task(21, provider=account(7), state=TaskState.WAITING),
        a_task(22, provider=account(8), lease_until=NOW + 9, leased_by="other", due_at=NOW),
    )
    queue = TaskQueue(database)
    found = await queue.list_own_lanes(after="", now=NOW, limit=4)
    assert found == {account(n): NOW + n for n in range(4)}
    assert await queue.list_own_lanes(after=account(3), now=NOW, limit=4) == {account(4): NOW + 4, account(8): math.inf}
    tasks = Tasks(database)
    assert (await tasks.get_due_work([], ["kie"], NOW)).has_own_lanes
    await database.execute("DELETE FROM tasks WHERE provider <> 'kie'")
    assert not (await tasks.get_due_work([], ["kie"], NOW)).has_own_lanes


class Recorder:
    """Keeps the statements that a database executes."""

    def __init__(self, database: Any) -> None:
        self.database, self.seen = database, list[str]()

    async def fetch(self, sql: str, **params: Any) -> Any:
        self.seen.append(sql)
        return await self.database.fetch(sql, **params)


async def test_next_provider_is_one_seek_among_all_queued_orders(tmp_path: Path) -> None:
    """With an order in each of ten thousand lanes, all orders were read for each of them: 16 seconds."""
    opener = DATABASES["sqlite"]
    async with await opener(None, tmp_path) as database:  # type: ignore[arg-type]
        await upgrade_schema(database, NOW)
        await add(database, *(a_task(n, provider=account(n), due_at=NOW) for n in range(3)), a_task(9, provider="kie"))
        recorder: Any = Recorder(database)
        queue = TaskQueue(recorder)
        assert await queue.list_providers() == ["kie", *map(account, range(3))]
        assert list(await queue.list_own_lanes(after="", now=NOW, limit=9)) == [account(n) for n in range(3)]
        for sql in recorder.seen:
            params = {"after": "", "now": NOW, "limit": 9} if ":after" in sql else {}
            plan = [row["detail"] for row in await database.fetch(f"EXPLAIN QUERY PLAN {sql}", **params)]
            assert any("(state=? AND provider>?)" in step for step in plan), plan
            assert not any("tasks_queue_deadline" in step for step in plan)


async def test_every_lane_has_its_turn_and_full_ones_rest(tmp_path: Path, clock: ManualClock) -> None:
    opener = DATABASES["sqlite"]
    async with await opener(None, tmp_path) as database:  # type: ignore[arg-type]
        await upgrade_schema(database, NOW)
        await add(database, *(a_task(n, provider=account(n), due_at=NOW) for n in range(10)))
        lanes = Lanes(clock=clock, queue=TaskQueue(database), max_lanes=4)
        seen: Counter[str] = Counter()
        for _ in range(6):
            lanes.take_turn()
            first = await lanes.read_due()
            assert await lanes.read_due() == first, "one turn, however often it is read"
            assert lanes.has_more
            seen.update(list(first))
        assert set(seen.values()) == {2}
        lanes.take_turn()
        busy = next(iter(await lanes.read_due()))
        now = clock.now()
        lanes.pause(busy, until=math.inf)
        assert (await lanes.read_due())[busy] == now + PAUSE_SECONDS
        clock.advance(PAUSE_SECONDS)
        assert (await lanes.read_due())[busy] == NOW
        lanes.pause(busy, until=clock.now() + 0.1)
        clock.advance(-3600)
        assert (await lanes.read_due())[busy] == NOW, "a clock that is set back holds up nothing"


async def test_accounts_of_users_have_slots_of_their_own(tmp_path: Path) -> None:
    async with await DATABASES["sqlite"](None, tmp_path) as database:  # type: ignore[arg-type]
        running, waiting = RunningSteps(tasks=Tasks(database), metrics=Metrics()), asyncio.Event()

        def start(count: int, slots: SlotUse) -> None:
            for _ in range(count):
                running.start(waiting.wait(), "x", RunningStep(state=TaskState.QUEUED, slots=slots))

        of_house, of_gemini = SlotUse(), SlotUse(held_by="gemini")
        before = running.free_slots(TaskState.QUEUED), running.free_slots(TaskState.QUEUED, of_gemini)
        mine, other = SlotUse(account=account(1)), SlotUse(account=account(2), held_by=account(2))
        start(ACCOUNT_CONCURRENCY, mine)
        assert running.free_slots(TaskState.QUEUED, mine) == 0
        assert running.free_slots(TaskState.QUEUED, other) == ACCOUNT_CONCURRENCY
        for number in range(3, 3 + OWN_CONCURRENCY // ACCOUNT_CONCURRENCY - 1):
            start(ACCOUNT_CONCURRENCY, SlotUse(account=account(number)))
        assert running.free_slots(TaskState.QUEUED, other) == 0, "all accounts of users together have a limit"
        assert before == (
            running.free_slots(TaskState.QUEUED, of_house),
            running.free_slots(TaskState.QUEUED, of_gemini),
        )
        waiting.set()
        await running.wait()


async def add_key(database: Any) -> ProviderKey:
    key = ProviderKey(
        id=new_provider_key_id(),
        owner="user",
        provider="kie",
        account=account(1),
        sealed="x",
        sealing_key="y",
        last_four="0001",
        is_verified=True,
        created_at=NOW,
    )
    await database.transact(ProviderKeys(database).insert_key(key))
    return key


async def submit(database: Any, key: ProviderKey, number: int) -> bool:
    """Write the intent to submit a task with a key; return whether that was possible."""
    attempt = Attempt(task_id=a_task(number).id, number=1, provider=key.account, key_id=key.id, sent_at=NOW)
    intent = Tasks(database).update_task(
        a_task(number, provider=key.account), state=TaskState.SUBMITTING, attempt=1, key_id=key.id
    )
    try:
        await database.transact(intent, *ProviderLimits(database).reserve_submission(attempt, PLENTY))
    except Stale:
        return False
    return True


async def test_submission_with_a_retired_key_or_at_a_paused_provider_is_stale(database: Any) -> None:
    await add(database, *(a_task(n, provider=account(1)) for n in range(4)))
    key, limits = await add_key(database), ProviderLimits(database)
    assert await submit(database, key, 0)
    await database.transact(limits.pause_provider("kie", NOW))
    assert not await submit(database, key, 1), "the operator's pause is for all accounts there"
    await database.transact(*limits.resume_provider("kie"))
    assert await submit(database, key, 1)
    await database.transact(*ProviderKeys(database).retire_key(key, NOW))
    assert not await submit(database, key, 2)
    with pytest.raises(Stale):
        await database.transact(*ProviderKeys(database).retire_key(key, NOW))


async def test_removal_during_submissions_loses_no_job(database: Any) -> None:
    """A submission is either written before the removal, and its key is kept, or not at all."""
    keys = ProviderKeys(database)
    await add(database, *(a_task(n, provider=account(1)) for n in range(24)))
    for begin in range(0, 24, 4):
        key = await add_key(database)
        removing = database.transact(*keys.retire_key(key, NOW))
        first, _, *others = await asyncio.gather(
            submit(database, key, begin), removing, *(submit(database, key, begin + n) for n in (1, 2, 3))
        )
        assert bool(await keys.list_of_account(key.account)) == any((first, *others))
        await database.execute("UPDATE tasks SET state = 'failed' WHERE state = 'submitting'")
        await keys.delete_unused()
        assert await keys.list_of_account(key.account) == []
