"""Tasks and their tables: leases, compare-and-set, limits, pages, and the query plan of every statement."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import asyncpg
import pytest

from broker.tasks.waiting.versions import TaskVersions
from storage.accounts.owner_locks import lock_owner_account
from storage.accounts.provider_keys import ProviderKey, ProviderKeys
from storage.attempts import Attempt, Attempts
from storage.batches import Batches, StoredBatch
from storage.callbacks import Callbacks, StoredCallback
from storage.conversations.conversations import Conversations, StoredConversation
from storage.conversations.turns import NewTurn, Turns
from storage.deliveries import Deliveries, Delivery, DeliveryAttempt, DeliveryStatus
from storage.errors import Stale
from storage.files.resumable_uploads import ResumableUpload, ResumableUploads
from storage.files.uploaded_files import UploadedFile, UploadedFiles
from storage.idempotency import IdempotencyRecord, IdempotencyRecords
from storage.ids import new_provider_key_id, new_user_id
from storage.images import Images, StoredImage
from storage.limits.budgets import Budgets
from storage.limits.owner_usage import OwnerLimits, OwnerUsage, OwnerUse
from storage.limits.provider_limits import AccountLimits, AccountLoad, ProviderLimits
from storage.limits.rate_limits import RateLimits
from storage.limits.settlement import settle_task
from storage.lists.newest_tasks import NewestTasks
from storage.sql.database import Database, Outcome, Row, Statement
from storage.sql.migrate import upgrade_schema
from storage.sql.postgres import PostgresDatabase
from storage.sql.postgres_transaction import parameter_values, to_postgres
from storage.sql.rows import in_clause, insert_row
from storage.sql.scope import EVERYTHING, Scope
from storage.states import STATUS_FILTERS, TaskState
from storage.task_queue import TaskQueue
from storage.task_retention import TaskRetention
from storage.tasks import Lease, Task, Tasks
from tests.contracts.databases import DATABASES
from tests.support.statements import named_params

pytestmark = pytest.mark.anyio

NOW = 1_000.0


class Recorder:
    """Database that records every statement, to explain its plan."""

    def __init__(self, database: Database) -> None:
        self.inner = database
        self.seen: list[tuple[str, Mapping[str, Any]]] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)

    async def fetch(self, sql: str, **params: Any) -> list[Row]:
        self.seen.append((sql, params))
        return await self.inner.fetch(sql, **params)

    async def fetch_one(self, sql: str, **params: Any) -> Row | None:
        self.seen.append((sql, params))
        return await self.inner.fetch_one(sql, **params)

    async def execute(self, sql: str, **params: Any) -> int:
        return (await self.transact(Statement(sql=sql, params=params)))[0].count

    async def transact(self, *statements: Statement, wake: Sequence[str] = ()) -> list[Outcome]:
        self.seen.extend((one.sql, named_params(one)) for one in statements)
        return await self.inner.transact(*statements, wake=wake)


INSERTED: tuple[Mapping[str, Any], ...] = (
    {},
    {"leased_by": "me", "lease_until": NOW + 30.0},
    {"leased_by": "me", "state": TaskState.SUBMITTING, "attempt": 1, "version": 2, "sent_at": NOW},
    {"attempt": 2},
    {"outputs": ("https://files.example/1",)},
    {"leased_by": "me", "tokens": {"input": 1}},
    {"error_retryable": True},
    {"billed": "it's (unknown): yes"},
)


@pytest.fixture(params=DATABASES)
async def database(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Any]:
    async with await DATABASES[request.param](request, tmp_path) as opened:
        await upgrade_schema(opened, NOW)
        yield Recorder(opened)


KIE = ("kie", "default")
"""A provider and its key."""
DOWN = "provider_unavailable"


def a_task(number: int = 1, **changes: Any) -> Task:
    task_id = f"task_{number:043x}"
    values: dict[str, Any] = {
        "id": task_id,
        "batch": task_id.replace("task_", "batch_"),
        "caller": "house:local",
        "due_at": NOW,
        "provider": "kie",
        "key_id": "default",
        "model": "nano-banana",
        "mode": "text-to-image",
        "prompt": "a red bicycle",
        "deadline_at": NOW + 100,
        "created_at": NOW + number,
        "updated_at": NOW,
        "entered_at": NOW,
    }
    return Task(**{**values, **changes})


def lease(holder: str = "me", until: float = NOW + 30) -> Lease:
    return Lease(holder=holder, until=until)


async def add(database: Database, *tasks: Task) -> Tasks:
    rows = Tasks(database)
    await database.transact(*(rows.insert_task(task) for task in tasks))
    return rows


async def test_task_is_read_back_as_stored(database: Any) -> None:
    task = a_task(
        references=({"name": "r.png"},), outputs=("https://a/1", "https://a/2"), expects_callback=True, cost=4.5
    )
    rows = await add(database, task)
    assert await rows.get(task.id) == task


@pytest.mark.parametrize("changes", INSERTED, ids=lambda changes: "+".join(changes) or "queued")
async def test_new_task_is_stored_with_its_fields_whichever_have_their_defaults(
    database: Any, changes: Mapping[str, Any]
) -> None:
    tasks, task = Tasks(database), a_task(**{"key_id": "", **changes})
    await database.transact(tasks.insert_task(task))
    assert await tasks.get(task.id) == task


async def test_concurrent_claims_never_lease_the_same_task(database: Any) -> None:
    rows = await add(database, *(a_task(n, state=TaskState.WAITING) for n in range(40)))
    claims = await asyncio.gather(
        *(rows.claim(TaskState.WAITING, now=NOW, lease=lease(f"worker-{n}"), limit=10) for n in range(8))
    )
    ids = [task.id for claim in claims for task in claim]
    assert len(ids) == len(set(ids)) == 40


async def test_expired_lease_is_taken_over_and_the_late_write_is_stale(database: Any) -> None:
    """Fencing: a worker that outlived its lease cannot overwrite the changes of the next one."""
    rows = await add(database, a_task(state=TaskState.WAITING))
    (mine,) = await rows.claim(TaskState.WAITING, now=NOW, lease=lease("slow"), limit=1)
    assert await rows.claim(TaskState.WAITING, now=NOW + 29, lease=lease("other", NOW + 60), limit=1) == []
    (theirs,) = await rows.claim(TaskState.WAITING, now=NOW + 31, lease=lease("other", NOW + 60), limit=1)
    await database.transact(rows.update_task(theirs, state=TaskState.FETCHING))
    with pytest.raises(Stale):
        await database.transact(rows.update_task(mine, state=TaskState.FAILED))
    after = await rows.get(mine.id)
    assert after is not None
    assert after.state == TaskState.FETCHING


async def test_lost_lease_is_not_renewed(database: Any) -> None:
    rows = await add(database, a_task(state=TaskState.WAITING))
    (mine,) = await rows.claim(TaskState.WAITING, now=NOW, lease=lease("slow"), limit=1)
    await rows.claim(TaskState.WAITING, now=NOW + 31, lease=lease("other", NOW + 60), limit=1)
    await rows.renew([(mine.id, "slow")], NOW + 1000)
    row = await rows.get(mine.id)
    assert row is not None
    assert row.lease_until == NOW + 60


async def test_queued_tasks_are_claimed_in_order_of_due_time(database: Any) -> None:
    rows = await add(database, *(a_task(n, due_at=NOW - 100 + n) for n in (3, 1, 2)))
    claimed = await TaskQueue(database).claim("kie", now=NOW, lease=lease(), limit=2)
    assert {task.id for task in claimed} == {a_task(1).id, a_task(2).id}
    assert await rows.claim(TaskState.WAITING, now=NOW, lease=lease(), limit=10) == []


async def test_concurrent_submissions_do_not_exceed_the_window(database: Any) -> None:
    rows = await add(database, *(a_task(n) for n in range(30)))
    provider_limits, limits = ProviderLimits(database), AccountLimits(creates_per_window=20, concurrency=100)

    async def submit(task: Task) -> bool:
        attempt = Attempt(task_id=task.id, number=1, provider="kie", key_id="default", sent_at=NOW)
        try:
            await database.transact(
                rows.update_task(task, state=TaskState.SUBMITTING, attempt=1),
                *provider_limits.reserve_submission(attempt, limits),
            )
        except Stale:
            return False
        return True

    submitted = await asyncio.gather(*(submit(a_task(n)) for n in range(30)))
    assert sum(submitted) == 20
    capacity = await provider_limits.get_capacity(*KIE, limits, NOW + 1)
    assert (capacity.free, capacity.recheck_at) == (0, NOW + 10)
    assert (await provider_limits.get_capacity(*KIE, limits, NOW + 10.5)).free == 20


async def test_capacity_of_a_wide_window_is_never_too_high_and_exact_near_its_end(database: Any) -> None:
    rows = await add(database, *(a_task(n) for n in range(30)))
    provider_limits, limits = ProviderLimits(database), AccountLimits(creates_per_window=129, concurrency=1000)
    for n in range(30):
        sent_at = NOW if n < 10 else NOW + 10
        attempt = Attempt(task_id=a_task(n).id, number=1, provider="kie", key_id="default", sent_at=sent_at)
        change = rows.update_task(a_task(n), step_retries=1)
        await database.transact(change, *provider_limits.reserve_submission(attempt, limits))
    assert (await provider_limits.get_capacity(*KIE, limits, NOW + 10.5)).free == 109, "counted"
    wide = limits._replace(creates_per_window=130)
    assert (await provider_limits.get_capacity(*KIE, wide, NOW + 10.5)).free == 100, "not counted"
    assert (await provider_limits.get_capacity(*KIE, wide, NOW + 9)).free == 100, "the clock of this process is behind"


async def test_submission_beyond_the_concurrency_is_stale(database: Any) -> None:
    rows = await add(database, *(a_task(n, state=TaskState.WAITING) for n in range(3)), a_task(9))
    provider_limits, limits = ProviderLimits(database), AccountLimits(creates_per_window=20, concurrency=3)
    assert (await provider_limits.get_capacity(*KIE, limits, NOW)).free == 0
    attempt = Attempt(task_id=a_task(9).id, number=1, provider="kie", key_id="default", sent_at=NOW)
    with pytest.raises(Stale):
        await database.transact(
            rows.update_task(a_task(9), state=TaskState.SUBMITTING),
            *provider_limits.reserve_submission(attempt, limits),
        )
    row = await rows.get(a_task(9).id)
    assert row is not None
    assert row.state == TaskState.QUEUED


async def test_one_job_may_be_submitted_after_a_cooldown(database: Any) -> None:
    provider_limits, limits = ProviderLimits(database), AccountLimits(creates_per_window=20, concurrency=100)
    await database.transact(provider_limits.start_cooldown(*KIE, NOW + 5, DOWN))
    assert await provider_limits.get_capacity(*KIE, limits, NOW) == await provider_limits.get_capacity(
        *KIE, limits, NOW + 4
    )
    assert (await provider_limits.get_capacity(*KIE, limits, NOW + 6)).free == 1
    await database.transact(provider_limits.end_cooldown(*KIE))
    assert (await provider_limits.get_capacity(*KIE, limits, NOW)).free == 20


async def test_submissions_after_a_failure_wait_for_the_first_one(database: Any) -> None:
    """A provider that hangs again must cost one order, not many."""
    rows = await add(database, *(a_task(n) for n in range(3)))
    provider_limits, limits = ProviderLimits(database), AccountLimits(creates_per_window=20, concurrency=100)
    await database.transact(provider_limits.start_cooldown(*KIE, NOW, DOWN))

    async def submit(number: int) -> None:
        attempt = Attempt(task_id=a_task(number).id, number=1, provider="kie", key_id="default", sent_at=NOW + 1)
        change = rows.update_task(a_task(number), state=TaskState.SUBMITTING, attempt=1)
        await database.transact(change, *provider_limits.reserve_submission(attempt, limits))

    await submit(0)
    assert (await provider_limits.get_capacity(*KIE, limits, NOW + 2)).free == 0
    with pytest.raises(Stale):
        await submit(1)
    await database.transact(
        Attempts(database).update_attempt(a_task(0).id, 1, outcome="accepted"),
        provider_limits.end_cooldown(*KIE),
    )
    await submit(1)


async def test_clock_set_back_does_not_block_submissions(database: Any) -> None:
    rows = await add(database, *(a_task(n) for n in range(20)))
    provider_limits, limits = ProviderLimits(database), AccountLimits(creates_per_window=20, concurrency=100)
    for number in range(20):
        attempt = Attempt(task_id=a_task(number).id, number=1, provider="kie", key_id="default", sent_at=NOW)
        await database.transact(
            rows.update_task(a_task(number), step_retries=1), *provider_limits.reserve_submission(attempt, limits)
        )
    await database.transact(
        provider_limits.start_cooldown(*KIE, NOW + 60, DOWN),
        provider_limits.end_cooldown(*KIE),
        provider_limits.start_cooldown(*KIE, NOW + 60, DOWN),
    )
    assert (await provider_limits.get_capacity(*KIE, limits, NOW - 7200)).free == 1


async def test_idempotency_record_is_kept_while_a_task_of_its_batch_exists(database: Any) -> None:
    """A task may exist for days; its request repeated then must not be paid again."""
    task, records = a_task(), IdempotencyRecords(database)
    rows = await add(database, task)
    record = IdempotencyRecord(caller="me", key="k", fingerprint="f", batch=task.batch, created_at=NOW)
    await database.transact(records.claim(record))
    for state in (TaskState.QUEUED, TaskState.SUCCEEDED):
        fresh = await rows.get(task.id)
        assert fresh is not None
        await database.transact(rows.update_task(fresh, state=state))
        assert await records.delete_before(NOW + 1, 10) == 0
    fresh = await rows.get(task.id)
    assert fresh is not None
    await database.transact(rows.update_task(fresh, state=TaskState.EXPIRED))
    assert (await records.delete_before(NOW, 10), await records.delete_before(NOW + 1, 10)) == (0, 1)


async def test_unprocessed_callbacks_are_not_deleted(database: Any) -> None:
    callbacks, callback = Callbacks(database), _a_callback(a_task())
    await database.transact(callbacks.insert_callback(callback))
    assert await callbacks.delete_before(NOW + 1, 10) == 0
    await database.transact(callbacks.mark_processed(callback, NOW))
    await database.transact(*callbacks.insert_unproven(replace(callback, id="callback_2"), max_bytes=30_000))
    assert await callbacks.delete_before(NOW + 1, 10) == 1


async def test_result_of_an_expired_or_missing_task_gets_no_row(database: Any) -> None:
    rows = await add(database, a_task(1, state=TaskState.FETCHING), a_task(2, state=TaskState.EXPIRED))
    images = Images(database)
    for number in (1, 2, 3):
        image = replace(_an_image(a_task(number)), name=f"{number}.png")
        with suppress(Stale):
            await database.transact(rows.lock_task(image.owner, TaskState.FETCHING), images.insert_image(image))
    assert await images.owners_with_images([a_task(n).id for n in (1, 2, 3)]) == {a_task(1).id}


async def test_result_and_expiry_at_the_same_time_leave_no_image_row(database: Any) -> None:
    """In any order: an image row written after retention would outlive its bytes."""
    rows, images = await add(database, *(a_task(n, state=TaskState.FETCHING) for n in range(30))), Images(database)

    async def arrive(task: Task) -> None:
        image = replace(_an_image(task), name=f"{task.id}.png")
        with suppress(Stale):
            await database.transact(rows.lock_task(task.id, TaskState.FETCHING), images.insert_image(image))

    async def expire(task: Task) -> None:
        await database.transact(
            rows.update_task(task, state=TaskState.EXPIRED), images.delete_of_expired(in_clause([task.id]))
        )

    await asyncio.gather(*(step(a_task(n)) for n in range(30) for step in (arrive, expire)))
    assert await images.owners_with_images([a_task(n).id for n in range(30)]) == set()


@pytest.mark.parametrize("status", [None, *STATUS_FILTERS])
async def test_pages_contain_every_task_once(database: Any, status: str | None) -> None:
    states = [
        TaskState.QUEUED,
        TaskState.WAITING,
        TaskState.FETCHING,
        TaskState.SUCCEEDED,
        TaskState.FAILED,
        TaskState.CANCELED,
    ]
    tasks = [a_task(n, state=states[n % 6], created_at=NOW + n // 3) for n in range(60)]
    rows = await add(database, *tasks)
    seen: list[Task] = []
    before: tuple[float, str] | None = None
    while page := await NewestTasks(rows.database).list_newest(EVERYTHING, status=status, limit=7, before=before):
        seen += page
        before = (page[-1].created_at, page[-1].id)
    expected = [task for task in tasks if status is None or task.status == status]
    assert [task.id for task in seen] == [
        task.id for task in sorted(expected, key=lambda t: (t.created_at, t.id), reverse=True)
    ]


async def test_list_can_be_searched_for_words_of_the_prompt(database: Any) -> None:
    prompts = ["a red Fox", "Рыжая ЛИСА", "一只红狐狸", "100% fox_trot!", "100 fox trots"]
    mine, other = Scope(owner="me"), Scope(owner="other")
    tasks = [a_task(number, caller="me", prompt=prompt) for number, prompt in enumerate(prompts)]
    rows = await add(database, *tasks, a_task(9, caller="other", prompt="a red fox", model="nano-banana-pro"))

    async def found(scope: Scope, *words: str, model: str | None = None, limit: int = 9) -> list[str]:
        page, _ = await NewestTasks(rows.database).search_newest(
            scope, status=None, limit=limit, before=None, model=model, words=words
        )
        return [task.prompt for task in page]

    assert await found(mine, "FOX") == [prompts[4], prompts[3], prompts[0]]
    assert await found(mine, "FOX", limit=1) == [prompts[4]]
    assert await found(mine, "fox", "red") == [prompts[0]]
    assert await found(mine, "лиса", "РЫЖАЯ") == [prompts[1]]
    assert await found(mine, "红狐") == [prompts[2]]
    assert await found(mine, "0%") == [prompts[3]]
    assert await found(mine, "x_t") == [prompts[3]]
    assert await found(mine, "t!") == [prompts[3]]
    assert await found(mine, "dog") == await found(mine, "fox", model="nano-banana-pro") == []
    assert await found(other, model="nano-banana-pro") == ["a red fox"]


async def test_queue_ids_are_in_the_order_of_submission(database: Any) -> None:
    late, soon = a_task(1, due_at=NOW + 60), [a_task(n, due_at=NOW - n) for n in (2, 3, 4)]
    other, gone = a_task(5, provider="other"), a_task(6, state=TaskState.WAITING)
    await add(database, late, *soon, other, gone)
    expected = [a_task(n).id for n in (4, 3, 2, 1)]
    assert await TaskQueue(database).list_ids("kie", 10) == expected
    assert await TaskQueue(database).list_ids("kie", 2) == expected[:2]
    claimed = await TaskQueue(database).claim("kie", now=NOW, lease=lease(), limit=2)
    assert {task.id for task in claimed} == set(expected[:2])


async def test_callers_are_served_in_turn(database: Any) -> None:
    """A caller with a hundred tasks delays another caller's single one by one turn, also over several claims."""
    many = [a_task(n, caller="many", due_at=NOW - 500 + n) for n in range(100)]
    few = [a_task(200 + n, caller="few", due_at=NOW - 1) for n in range(2)]
    rows = await add(database, *many, *few)
    queue, served = TaskQueue(database), []
    for number in range(6):
        (task,) = await queue.claim("kie", now=NOW, lease=lease(f"worker {number}"), limit=1)
        served.append(task.caller)
        submitted = {"state": TaskState.SUBMITTING, "sent_at": NOW + number}
        await database.transact(rows.update_task(task, **submitted))
    assert served == ["few", "many", "few", "many", "many", "many"]
    ids = await queue.list_ids("kie", 5)
    assert ids == [task.id for task in many[4:9]]
    claimed = await queue.claim("kie", now=NOW, lease=lease("another"), limit=30)
    assert {task.id for task in claimed} == {task.id for task in many[4:34]}


async def test_orders_that_are_being_prepared_count_as_turns(database: Any) -> None:
    """Uploads to a host that hangs take minutes, and nothing is sent: they must not take every free slot."""
    slow = [a_task(n, caller="slow", due_at=NOW - 500 + n) for n in range(100)]
    earlier = a_task(300, caller="usual", state=TaskState.SUCCEEDED, sent_at=NOW - 50)
    usual = [a_task(200 + n, caller="usual", due_at=NOW - 1) for n in range(3)]
    await add(database, earlier, *slow, *usual)
    queue, served = TaskQueue(database), []
    for number in range(6):
        (task,) = await queue.claim("kie", now=NOW, lease=lease(f"worker {number}"), limit=1)
        served.append(task.caller)
    assert served == ["slow", "usual"] * 3


async def test_queue_of_many_callers_is_listed_in_turns(database: Any) -> None:
    tasks = [a_task(n, caller=f"caller {n % 150:03}", due_at=NOW - 500 + n) for n in range(300)]
    await add(database, *tasks)
    assert await TaskQueue(database).list_ids("kie", 10_000) == [task.id for task in tasks]


async def test_priority_orders_the_tasks_of_one_caller_only(database: Any) -> None:
    mine = [a_task(n, caller="a", priority=priority, due_at=NOW - 9 + n) for n, priority in enumerate((0, 1, 2, 1))]
    other = a_task(9, caller="b", priority=0, due_at=NOW)
    await add(database, *mine, other)
    low, normal, high, later = (task.id for task in mine)
    assert await TaskQueue(database).list_ids("kie", 9) == [high, other.id, normal, later, low]


async def test_second_worker_claims_what_the_first_did_not(database: Any) -> None:
    await add(database, *(a_task(n, due_at=NOW - 100 + n) for n in range(10)))
    queue = TaskQueue(database)
    first = await queue.claim("kie", now=NOW, lease=lease("first"), limit=4)
    second = await queue.claim("kie", now=NOW, lease=lease("second"), limit=4)
    assert {task.id for task in first} == {a_task(n).id for n in range(4)}
    assert {task.id for task in second} == {a_task(n).id for n in range(4, 8)}


async def test_recent_durations_are_those_of_successes_with_all_times(database: Any) -> None:
    """Newest first."""

    def done(number: int, **changes: Any) -> Task:
        times = {"sent_at": NOW, "finished_at": NOW + 10 * number, "ended_at": NOW + 10 * number + 1}
        return a_task(number, **{"state": TaskState.SUCCEEDED, "resolution": "2K", **times, **changes})

    rows = await add(
        database,
        *(done(n) for n in (1, 2, 3)),
        done(4, state=TaskState.FAILED),
        done(5, model="nano-banana-pro"),
        done(6, sent_at=None),
        done(7, finished_at=None),
        done(8, provider="other"),
    )
    durations = await rows.recent_durations("kie", "nano-banana")
    assert [(one.resolution, one.provider_seconds, one.download_seconds) for one in durations] == [
        ("2K", 30, 1),
        ("2K", 20, 1),
        ("2K", 10, 1),
    ]


async def test_load_has_cooldown_and_running_jobs(database: Any) -> None:
    await add(database, *(a_task(n, state=TaskState.WAITING) for n in range(3)), a_task(9))
    provider_limits = ProviderLimits(database)
    assert await provider_limits.get_load(*KIE, NOW) == AccountLoad(paused_until=0.0, running=3, errors=0)
    await database.transact(provider_limits.start_cooldown(*KIE, NOW + 5, DOWN))
    assert await provider_limits.get_load(*KIE, NOW) == AccountLoad(
        paused_until=NOW + 5, running=3, errors=1, reason=DOWN
    )
    assert (await provider_limits.get_load(*KIE, NOW - 9e6)).paused_until == 0.0


async def test_every_statement_uses_an_index(database: Any) -> None:
    """Growth must not slow the worker: every statement finds its rows by an index, and reads few of them."""
    task = a_task(state=TaskState.WAITING)
    rows = await add(database, task, a_task(2), a_task(3, state=TaskState.SUCCEEDED, ended_at=NOW, due_at=NOW + 9e6))
    database.seen.clear()
    await _use_everything(database, rows, task)
    statements = dict(database.seen)
    is_postgres = isinstance(database.inner, PostgresDatabase)
    if is_postgres:
        await _grow(database)
    look = _postgres_scans if is_postgres else _sqlite_scans
    assert await look(database, "SELECT count(*) FROM tasks WHERE prompt = 'x'", {}), "the check must find a scan"
    scans = {sql: await look(database, sql, params) for sql, params in statements.items()}
    assert {sql: found for sql, found in scans.items() if found} == {}


FEW_PAGES = 300


async def _sqlite_scans(database: Any, sql: str, params: Mapping[str, Any]) -> list[str]:
    plan = await database.fetch(f"EXPLAIN QUERY PLAN {sql}", **params)
    scans = [row["detail"] for row in plan if row["detail"].startswith("SCAN") and "INDEX" not in row["detail"]]
    tables = {row["name"] for row in await database.fetch("SELECT name FROM sqlite_master WHERE type = 'table'")}
    return [scan for scan in scans if scan.split()[1] in tables]  # others are rows that the statement itself made


async def _grow(database: Any) -> None:
    """Add twenty thousand rows per table, or four thousand wide ones: all tasks of one provider, most of them ended."""
    await database.inner.execute(
        "INSERT INTO attempts (task_id, number, provider, key_id, sent_at, outcome, billed)"
        " VALUES ('t', 1, 'kie', 'default', 0, 'failed', 'no')"
    )
    inner = database.inner
    await inner.transact(UploadedFiles(inner).insert_file(_a_file()), insert_row("resumable_uploads", _an_upload()))
    await inner.transact(Batches(inner).insert_batch(_a_batch()), ProviderKeys(inner).insert_key(_a_provider_key()))
    await inner.transact(OwnerUsage(inner).reserve("me", 1, OwnerUse(images=1), OwnerLimits()))
    conversations, turns = Conversations(inner), Turns(inner)
    await conversations.insert_if_fewer(_a_conversation(), 5)
    counting = conversations.count_turn("conv_1", title="", most=5, now=NOW)
    await inner.transact(counting, turns.insert_turn(_a_turn(a_task(1))))
    await inner.execute("UPDATE turns SET waits = 0")
    for table, columns in (
        (
            "tasks",
            "'id', 'task_' || md5(g::text), 'batch', md5(g::text), 'created_at', g, 'ended_at', g, "
            "'state', 'succeeded', 'due_at', 9e9, 'sent_at', g, 'finished_at', g, 'callback_url', 'https://a.example/'",
        ),
        ("attempts", "'task_id', 'task_' || md5(g::text), 'job_id', md5(g::text), 'sent_at', g - 30000"),
        (
            "callbacks",
            "'id', md5(g::text), 'task_id', md5(g::text), 'processed_at', 9e9, 'received_at', 9e9, "
            "'unproven_position', g",
        ),
        ("images", "'name', md5(g::text), 'owner', md5(g::text), 'sha256', md5(g::text)"),
        ("owner_usage", "'owner', md5(g::text), 'day', 99999"),
        ("conversations", "'id', md5(g::text), 'owner', md5(g::text), 'updated_at', 9e9"),
        ("turns", "'id', md5(g::text), 'conversation_id', md5(g::text), 'batch', md5(g::text)"),
        (
            "provider_keys",
            "'id', md5(g::text), 'owner', md5(g::text), 'account', md5(g::text), 'sealed', repeat('x', 700), "
            "'sealing_key', 'y'",
        ),
        ("idempotency", "'key', md5(g::text), 'created_at', 9e9"),
        ("deliveries", "'id', md5(g::text), 'task_id', md5(g::text), 'created_at', g, 'ended_at', 9e9, 'due_at', NULL"),
        ("delivery_attempts", "'delivery_id', md5(g::text)"),
        (
            "batches",
            f"'id', md5(g::text), 'created_at', {NOW} + g / 1e6, 'caller', md5(g::text), 'name', repeat('x', 700)",
        ),
        ("uploaded_files", "'owner', md5(g::text), 'id', md5(g::text), 'created_at', g, 'name', repeat('x', 700)"),
        ("resumable_uploads", "'id', md5(g::text), 'owner', md5(g::text), 'created_at', 9e9, 'name', repeat('x', 700)"),
    ):
        for begin in range(
            1, 4000 if "repeat" in columns else 20000, 4000
        ):  # a statement is limited to a few seconds, also on a busy machine
            await database.inner.execute(
                f"""INSERT INTO {table} SELECT r.* FROM {table} t, generate_series({begin}, {begin + 3999}) g,
                    LATERAL jsonb_populate_record(t, jsonb_build_object({columns})) r
                    WHERE t.ctid = (SELECT max(ctid) FROM {table})"""
            )
        await database.inner.execute(f"ANALYZE {table}")


async def _postgres_scans(database: Any, sql: str, params: Mapping[str, Any]) -> list[str]:
    """Return the pages that a statement reads if they are many; its changes are undone."""
    query = to_postgres(sql)
    connection = await asyncpg.connect(await _url_of(database))
    change = connection.transaction()
    await change.start()
    try:
        rows = await connection.fetch(
            f"EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) {query.text}", *parameter_values(query, params)
        )
    except asyncpg.UniqueViolationError:
        return []  # the row exists, and was found without a scan
    finally:
        await change.rollback()
        await connection.close()
    plan = json.loads(rows[0][0])[0]["Plan"]
    pages = plan["Shared Hit Blocks"] + plan["Shared Read Blocks"]
    return [f"{pages} pages"] if pages > FEW_PAGES else []


async def _url_of(database: Any) -> str:
    (row,) = await database.fetch("SELECT current_database() AS name, inet_server_port() AS port")
    return f"postgresql://postgres@127.0.0.1:{row['port']}/{row['name']}"


async def _use_everything(database: Any, rows: Tasks, task: Task) -> None:
    images, callbacks, records, provider_limits = (
        Images(database),
        Callbacks(database),
        IdempotencyRecords(database),
        ProviderLimits(database),
    )
    limits = AccountLimits(creates_per_window=1, concurrency=1)
    retention = TaskRetention(database)
    await rows.get(task.id)
    await TaskVersions(database).get(task.id)
    await TaskVersions(database).read_all([task.id])
    await rows.get_by_job("job")
    await rows.list_of_batch(task.batch)
    for status in (None, *STATUS_FILTERS):
        await NewestTasks(rows.database).list_newest(EVERYTHING, status=status, limit=5, before=(NOW, "task"))
    await Attempts(database).list_of_task(task.id)
    await Attempts(database).get(task.id, 1)
    assert await Attempts(database).count_ended("kie", "default", NOW) == {}
    await rows.claim(TaskState.WAITING, now=NOW, lease=lease(until=NOW), limit=5)
    await TaskQueue(database).claim("kie", now=NOW, lease=lease(until=NOW), limit=5)
    await TaskQueue(database).claim_movable("kie", ["fal"], now=NOW, lease=lease(until=NOW), limit=5)
    assert await TaskQueue(database).list_providers() == ["kie"]
    assert await TaskQueue(database).list_own_lanes(after="", now=NOW, limit=5) == {}
    await rows.claim_overdue(now=NOW + 1000, lease=lease(until=NOW), limit=5)
    await rows.renew([(task.id, "me")], NOW)
    await retention.shorten_retention(60.0, after="", limit=5)
    await retention.active_owners(["x", "refs_y"])
    await rows.get_due_work([TaskState.WAITING, TaskState.EXPIRED], ["kie"], NOW)
    await rows.count_by_state([TaskState.QUEUED, TaskState.SUBMITTING, TaskState.WAITING, TaskState.FETCHING])
    await TaskQueue(database).list_ids("kie", 10_000)
    await rows.recent_durations("kie", "nano-banana")
    await provider_limits.get_load(*KIE, NOW)
    await rows.awaiting_callback(NOW, 5)
    attempt = Attempt(task_id=task.id, number=1, provider="kie", key_id="default", sent_at=NOW)
    await database.transact(
        *provider_limits.reserve_submission(attempt, AccountLimits(creates_per_window=5, concurrency=5))
    )
    await database.transact(Attempts(database).update_attempt(task.id, 1, job_id="job"))
    await provider_limits.get_capacity(*KIE, limits, NOW)
    await database.transact(
        provider_limits.start_cooldown(*KIE, NOW, DOWN),
        provider_limits.end_cooldown(*KIE),
    )
    await provider_limits.get_capacity(*KIE, AccountLimits(creates_per_window=5, concurrency=5), NOW)
    await images.get_by_name("x")
    await images.owners_with_images(["x", "y"])
    await images.links_to(["x", "y"])
    await images.list_of_owner(task.id, "result")
    await images.get_at(task.id, "thumbnail-512", 0)
    await database.transact(lock_owner_account(new_user_id()), rows.check_pins(task, 5))
    await database.transact(rows.lock_owner(task.id), rows.lock_owner(f"refs_{task.id[5:]}"))
    await rows.list_of_owner(task.id)
    await rows.list_of_owner(f"refs_{task.id[5:]}")
    await database.transact(images.insert_image(_an_image(task)), images.delete_of_expired(in_clause([task.id])))
    callback = _a_callback(task)
    await database.transact(callbacks.insert_callback(callback))
    await callbacks.get(callback.id)
    for only in ({}, {"task_id": task.id}, {"verification": "reject"}, {"provider": "fal"}):
        await callbacks.list_newest(limit=5, before=(NOW, "callback"), **only)
    await callbacks.has_accepted(task.id, 1)
    await callbacks.count_missing(since=0, until=NOW, limit=5)
    await callbacks.tasks_with_unprocessed(5)
    await callbacks.list_unprocessed(task.id)
    await callbacks.count_unprocessed(task.id)
    await database.transact(callbacks.mark_processed(callback, NOW))
    await callbacks.delete_before(NOW, 5)
    await database.transact(callbacks.delete_of_expired(task.id))
    await database.transact(rows.lock_batch(task.batch), rows.check_ended(task, 0))
    record = IdempotencyRecord(caller="me", key="k", fingerprint="f", batch=task.batch, created_at=NOW)
    await database.transact(records.claim(record))
    await records.get("me", "k")
    await records.list_unsent("me", "f", own="here", since=NOW)
    await records.next_ordinal("me", "f")
    await records.insert_if_absent(record)
    await records.take_over(record, replace(record, sender="another"))
    await records.mark_left(record, NOW)
    await records.mark_answered(record, NOW)
    limits_of_callers = RateLimits(database)
    await database.transact(limits_of_callers.add_usage("me", 1, limit=5, now=NOW))
    await limits_of_callers.get("me")
    budgets = Budgets(database)
    await database.transact(budgets.reserve(1, 1, limit=5), *settle_task(replace(task, reserved=1, owner_images=1)))
    await budgets.get_used(1)
    usage, needs = OwnerUsage(database), OwnerUse(images=1, in_flight=1, pins=1, stored_bytes=1)
    most, owner = OwnerLimits(in_flight=9, pins=9, stored_bytes=10**9), "another"
    room = usage.require_room(owner, needs, most)
    await database.transact(limits_of_callers.lock_usage(owner), *room, usage.reserve(owner, 1, needs, most))
    await usage.read_use(owner, 1)
    await usage.delete_older(NOW, 5)
    await database.transact(usage.delete_of_owner(owner))
    await records.delete_before(NOW, 5)
    fresh = await rows.get(task.id)
    assert fresh is not None
    await database.transact(rows.update_task(fresh, step_retries=1))
    await database.transact(retention.update_all([fresh], step_retries=1), *retention.delete_all([fresh]))
    await database.transact(images.delete_of_owners(["x"]))
    await _use_deliveries(Deliveries(database))
    await _use_files(UploadedFiles(database), ResumableUploads(database))
    await _use_own_accounts(ProviderKeys(database))
    await _use_batches(Batches(database))
    await _use_conversations(Conversations(database), Turns(database), images, task)


def _a_batch() -> StoredBatch:
    return StoredBatch(id="batch_1", caller="me", dialect="gemini", name="", model="m", created_at=NOW, updated_at=NOW)


async def _use_batches(batches: Batches) -> None:
    batch = _a_batch()
    ended = batches.insert_if_ended(batch.id, "failed", replace(_a_delivery(a_task()), id="evt_batch"))
    await batches.database.transact(batches.insert_batch(batch), batches.touch(batch.id, NOW), ended)
    assert await batches.get(batch.id) == batch
    assert await batches.list_newest("me", "gemini", before=(NOW + 1, "x"), limit=5) == [batch]
    await batches.delete_before(NOW, 5)
    assert await batches.delete(batch)


def _a_conversation() -> StoredConversation:
    return StoredConversation(id="conv_1", owner="me", title="", turns=0, created_at=NOW, updated_at=NOW)


def _a_turn(task: Task) -> NewTurn:
    return NewTurn(
        id="turn_1",
        conversation_id="conv_1",
        parent_id=None,
        parent_task=None,
        batch=task.batch,
        inputs=0,
        created_at=NOW,
    )


async def _use_conversations(conversations: Conversations, turns: Turns, images: Images, task: Task) -> None:
    conversation, turn, me = _a_conversation(), _a_turn(task), Scope(owner="me")
    assert await conversations.insert_if_fewer(conversation, 5)
    counting = conversations.count_turn(conversation.id, title="", most=5, now=NOW)
    await conversations.database.transact(counting, turns.insert_turn(turn))
    second = replace(turn, id="turn_2", batch="batch_2", parent_id=turn.id, parent_task=task.id)
    await conversations.database.transact(counting, turns.insert_turn(second))
    assert await conversations.get(conversation.id, me)
    assert len(await conversations.list_newest(me, before=(NOW + 1, "x"), limit=5)) == 1
    assert await turns.get(turn.id)
    await turns.get_of_task(task.id)
    assert [one.number for one in await turns.list_newest(conversation.id, before=3, limit=5)] == [2, 1]
    assert [one.id for one in await turns.list_line("turn_2", 5)] == ["turn_2", "turn_1"]
    await turns.list_tasks([task.batch, "batch_2"])
    await turns.get_model_turns([task.id])
    assert await turns.list_batches(conversation.id) == ["batch_2", task.batch]
    assert await turns.has_waiting()
    await turns.list_free(5)
    await turns.get_free(turn.id)
    await turns.end_wait(turn.id)
    await images.list_of_owners([task.id, "refs_1"])
    await conversations.database.transact(
        images.insert_link(replace(_an_image(task), name="of another", owner="refs_1"))
    )
    assert await turns.kept_until([task.batch, "x"], retention=5, look_again=0) == {task.batch: NOW + 5}
    await conversations.set_title(conversation.id, "x")
    await conversations.database.transact(conversations.pin(conversation, NOW, limit=5))
    await conversations.unpin(conversation.id)
    await conversations.delete_idle(NOW + 1, 5)
    await conversations.mark_deleted(conversation.id, NOW)
    await conversations.list_deleted(5)
    await conversations.mark_deleted_of_owner("me", NOW)
    await conversations.delete(conversation.id)


def _a_file() -> UploadedFile:
    return UploadedFile(
        owner="file_1",
        caller="me",
        id="1",
        name="fox.png",
        blob="b",
        media_type="image/png",
        size=3,
        width=1,
        height=1,
        sha256="0",
        created_at=NOW,
    )


def _an_upload() -> ResumableUpload:
    return ResumableUpload(id="1", owner="upload_1", caller="me", name="fox.png", created_at=NOW)


async def _use_files(files: UploadedFiles, uploads: ResumableUploads) -> None:
    file, upload = _a_file(), _an_upload()
    await uploads.database.transact(uploads.insert_upload(upload))
    await uploads.database.transact(uploads.append_part(upload, "b", 3))
    with pytest.raises(Stale):
        await uploads.database.transact(uploads.append_part(upload, "b", 3))
    upload = replace(upload, parts=("b",), received=3)
    assert await uploads.get("1") == upload
    await files.database.transact(files.insert_file(file), uploads.finish(upload, file.id))
    with pytest.raises(Stale):
        await files.database.transact(files.insert_file(replace(file, owner="file_2")))
    with pytest.raises(Stale):
        await files.database.transact(uploads.finish(upload, "2"))
    assert await files.get("me", "1") == file
    assert await files.list_newest("me", since=0, before=(NOW + 1, "x"), limit=5) == [file]
    for rows, owner in ((files, file.owner), (uploads, upload.owner)):
        assert await rows.owners_before(NOW + 1, 5) == [owner]
        await rows.delete_of_owners(["x"])
    assert await files.owners_with_files([file.owner, "x"]) == {file.owner}
    assert await uploads.owners_with_uploads([upload.owner, "x"]) == {upload.owner}
    assert await files.delete(file)
    await uploads.delete(upload)


async def _use_own_accounts(keys: ProviderKeys) -> None:
    key = _a_provider_key()
    await keys.database.transact(keys.insert_key(key))
    await keys.find_active(key.owner, key.provider)
    await keys.list_active(key.owner)
    await keys.list_of_owner(key.owner)
    await keys.list_of_account(key.account)
    await keys.list_sealed_by_others("another", after="", limit=5)
    attempt = Attempt(task_id=f"task_{9:043x}", number=1, provider=key.account, key_id=key.id, sent_at=NOW)
    reserving = ProviderLimits(keys.database).reserve_submission(
        attempt, AccountLimits(creates_per_window=5, concurrency=5)
    )
    await keys.database.transact(*reserving, keys.reseal_key(key, "again", "another"))
    await keys.database.transact(*keys.retire_key(key, NOW), *keys.delete_key(key), *keys.delete_of_owner(key.owner))
    await keys.delete_unused()


def _a_provider_key() -> ProviderKey:
    return ProviderKey(
        id=new_provider_key_id(),
        owner="user",
        provider="kie",
        account="kie@1",
        sealed="x" * 700,
        sealing_key="y",
        last_four="0001",
        is_verified=True,
        created_at=NOW,
    )


async def _use_deliveries(deliveries: Deliveries) -> None:
    delivery = _a_delivery(a_task())
    await deliveries.database.transact(deliveries.insert_delivery(delivery))
    await deliveries.get(delivery.id)
    for task_id in (None, delivery.task_id):
        for outcome in (None, DeliveryStatus.PENDING):
            await deliveries.list_newest(limit=5, task_id=task_id, outcome=outcome, before=(NOW + 1, "x"))
    await deliveries.count_pending()
    await deliveries.claim(now=NOW, lease=lease(until=NOW), limit=5, busy_hosts=["b.example"])
    (claimed,) = await deliveries.claim(now=NOW, lease=lease(until=NOW), limit=5)
    await deliveries.renew([claimed], NOW)
    await deliveries.release([claimed])
    (claimed,) = await deliveries.claim(now=NOW, lease=lease(until=NOW), limit=5)
    await deliveries.record_attempt(
        claimed, _an_attempt(claimed), outcome=DeliveryStatus.FAILED, due_at=None, ended_at=NOW
    )
    with pytest.raises(Stale):
        await deliveries.record_attempt(
            claimed, replace(_an_attempt(claimed), at=NOW + 1), outcome=DeliveryStatus.FAILED
        )
    await deliveries.list_attempts(delivery.id)
    await deliveries.delete_before(NOW, 5)
    await deliveries.replay(delivery.id, NOW)
    await deliveries.database.transact(
        deliveries.insert_delivery(replace(delivery, id="evt_2", due_at=None, ended_at=1.0))
    )
    await deliveries.delete_before(NOW, 5)
    await deliveries.database.transact(*deliveries.delete_of_expired(in_clause([delivery.task_id, "x"])))


def _a_delivery(task: Task) -> Delivery:
    return Delivery(
        id="evt_1",
        caller=task.caller,
        task_id=task.id,
        type="task.completed",
        url="https://a.example/callback",
        host="a.example",
        body="{}",
        due_at=NOW,
        created_at=NOW,
    )


def _an_attempt(delivery: Delivery) -> DeliveryAttempt:
    return DeliveryAttempt(delivery_id=delivery.id, number=delivery.attempts + 1, at=NOW, status=500, milliseconds=1)


def _an_image(task: Task) -> StoredImage:
    return StoredImage(
        name="x",
        owner=task.id,
        kind="result",
        position=0,
        blob="b",
        media_type="image/png",
        size=1,
        width=1,
        height=1,
        sha256="0",
        created_at=NOW,
    )


def _a_callback(task: Task) -> StoredCallback:
    return StoredCallback(
        id="callback_1",
        provider="kie",
        task_id=task.id,
        verification="accept",
        status=200,
        reason="",
        headers="{}",
        query="{}",
        body="{}",
        evidence="{}",
        received_at=NOW,
    )
