"""Failover over three providers, in histories of faults: an order ends, and is billed once at most.

The providers are simulated at the seam of the broker: each knows for every job whether it was billed, whatever it told.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any, Final
from urllib.parse import parse_qsl, urlsplit

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import SecretStr

from broker.bootstrap import load_settings, open_services
from broker.errors import ApiError, ProviderError
from broker.orders import ImageParams, Order, OrderRequest
from broker.providers.base import ProviderContext, ProviderPackage, ResultSink
from broker.reports import Failed, Finished, Pending, Report
from broker.services import Services
from broker.settings.types import PackageSettings
from storage.attempts import Attempt
from storage.sql.scope import EVERYTHING
from storage.states import TaskState
from storage.tasks import Lease, Task
from tests.support.clock import ManualClock
from webhooks.verification import IncomingCallback

pytestmark = pytest.mark.anyio

NAMES: Final = ("amber", "birch", "cedar")
ENDED: Final = {TaskState.FETCHING, TaskState.SUCCEEDED, TaskState.FAILED, TaskState.CANCELED, TaskState.EXPIRED}
"""States without a further submission; downloads have tests of their own."""


class Killed(BaseException):
    """The process dies at this point."""


@dataclass
class Script:
    """The choices of one history; the first option of each when they are used up."""

    choices: Sequence[int]
    _at: Iterator[int] = field(init=False)

    def __post_init__(self) -> None:
        self._at = iter(self.choices)

    def pick(self, *options: Any) -> Any:
        return options[next(self._at, 0) % len(options)]


@dataclass
class Job:
    """A job as its provider knows it. end: the report about it; None while it runs."""

    id: str
    provider: str
    key_id: str
    task: str
    callback_url: str | None
    cost: float = 4.0
    """Credits, as reported with a success."""
    end: Report | None = None
    is_billed: bool = False
    may_change: bool = False
    """True if it will succeed although it was reported as failed and free."""
    has_changed: bool = False

    def succeed(self) -> None:
        self.end = Finished(outputs=(f"https://files.example.com/{self.id}.png",), job_id=self.id, cost=self.cost)
        self.is_billed = True

    def change(self) -> None:
        """Succeed after a failure that was reported as free."""
        if self.may_change:
            self.may_change, self.has_changed = False, True
            self.succeed()


@dataclass
class World:
    """Everything beyond the broker: the jobs of all providers, and what happens next."""

    script: Script = field(default_factory=lambda: Script([]))
    jobs: list[Job] = field(default_factory=list)
    numbers: Iterator[int] = field(default_factory=count)
    prices: dict[str, float | None] = field(default_factory=dict)
    """By provider, in credits, where it is not 4."""
    cost: float = 4.0
    """Of each job that succeeds."""
    unknown_outcomes: int = 0
    """Submissions whose outcome the broker cannot know."""

    def begin(self, choices: Sequence[int]) -> None:
        self.script, self.jobs, self.unknown_outcomes = Script(choices), [], 0

    def end_job(self, job: Job) -> None:
        """End a job in one of the ways that a provider may report."""
        match self.script.pick("success", "free", "success", "safety", "billed failure"):
            case "success":
                job.succeed()
            case "free":
                job.end = failure("provider_error", retryable=True, job_id=job.id)
                job.may_change = self.script.pick(False, True)
            case "safety":
                job.end = failure("safety_output", retryable=False, billed="unknown", job_id=job.id)
                job.is_billed = True
            case _:
                job.end = failure("provider_error", retryable=True, billed="yes", job_id=job.id)
                job.is_billed = True


def failure(code: str, **details: Any) -> Failed:
    return Failed(**{"code": code, "message": "as simulated", "retryable": False, "billed": "no", **details})


REFUSALS: Final = (
    failure("provider_rate_limited", retryable=True, retry_in=5.0),
    failure("provider_credits"),
    failure("provider_auth"),
    failure("provider_unavailable", retryable=True, sent=False),
    failure("provider_error", retryable=True),
    failure("provider_error"),
    failure("provider_rejected", cannot_serve=True),
    failure("provider_rejected"),
    failure("safety_input"),
)


class Simulated:
    """One account at a simulated provider."""

    base_url = "https://simulated.example.com"
    holds_submit = False
    keeps_history = False
    creates_per_10s = 100
    concurrency = 100

    def __init__(self, world: World, context: ProviderContext) -> None:
        self.name = self.api_name = context.name
        self.key_id = context.key_id
        self.callback_path = f"/api/webhook/{context.name}"
        self._world = world

    def supports(self, model: str) -> bool:
        return True

    def find_obstacle(self, order: Order, references: int) -> None:
        return None

    def expects_callback(self, order: Order) -> bool:
        return True

    def ignored(self, order: Order) -> tuple[str, ...]:
        return ()

    def build_request(self, order: Order, callback_url: str | None) -> dict[str, Any]:
        return {"price": self.price(order), "unit": "credits"}

    def price(self, order: Order) -> float | None:
        return self._world.prices.get(self.name, 4.0)

    async def upload_references(self, order: Order) -> Order:
        return order

    async def submit(self, order: Order, callback_url: str | None, sink: ResultSink) -> Report:
        world = self._world
        outcome = world.script.pick(
            "accepted", "refused", "lost", "never arrived", "at once", "refused", "killed after", "killed before"
        )
        if outcome == "refused":
            return world.script.pick(*REFUSALS)  # type: ignore[no-any-return]
        world.unknown_outcomes += outcome in {"never arrived", "killed before", "lost", "killed after"}
        if outcome == "never arrived":
            raise ProviderError("the connection broke")
        if outcome == "killed before":
            raise Killed
        job = Job(f"job{next(world.numbers)}", self.name, self.key_id, order.params.prompt, callback_url, world.cost)
        world.jobs.append(job)
        if outcome == "lost":
            raise ProviderError("the connection broke")
        if outcome == "killed after":
            raise Killed
        if outcome == "at once":
            job.succeed()
            assert job.end is not None
            return job.end
        return Pending(job_id=job.id)

    async def check(self, job_id: str, sink: ResultSink) -> Report:
        job = next(one for one in self._world.jobs if one.id == job_id)
        assert (job.provider, job.key_id) == (self.name, self.key_id), "a job is checked with the key that made it"
        if self._world.script.pick(False, False, True):
            raise ProviderError("no answer")
        return job.end or Pending(job_id=job_id)

    def parse_callback(self, body: Any) -> Report:
        job = next(one for one in self._world.jobs if one.id == body["job"])
        return job.end or Pending(job_id=job.id)

    def job_ids(self, body: Any) -> tuple[str, ...]:
        return (body["job"],)

    async def cancel(self, job_id: str) -> bool:
        return False

    async def refresh_url(self, url: str) -> None:
        return None

    async def balance(self) -> None:
        return None


class SimulatedSettings(PackageSettings):
    """Two keys for each provider."""

    @property
    def keys(self) -> tuple[SecretStr, ...]:
        return SecretStr("first"), SecretStr("second")


@asynccontextmanager
async def three_providers(
    folder: Path, clock: ManualClock, world: World, *, resubmit_unknown: bool = False, **more: Any
) -> AsyncIterator[Services]:
    """Open the services with three providers of two keys each; their worker does nothing by itself."""
    catalog = folder / "catalog.toml"
    catalog.write_text('unit = "credits"\nusd_per_unit = 0.005\n[models]\n')
    packages = [
        ProviderPackage(name=name, settings=SimulatedSettings, factory=partial(Simulated, world), catalog=catalog)
        for name in NAMES
    ]
    chosen = load_settings(
        env_file=None,
        extra_providers=packages,
        data_dir=folder,
        webhook_base_url="https://broker.example.com",
        resubmit_unknown=resubmit_unknown,
        rate_per_minute=10_000_000,
        **more,
    )
    async with open_services(chosen, clock=clock, extra_providers=packages) as services:
        yield services


@dataclass
class History:
    """One order from its creation to its end."""

    services: Services
    world: World
    clock: ManualClock
    task_id: str = ""

    async def play(self) -> Task:
        await self._reset()
        request = OrderRequest(params=ImageParams(prompt=f"history {next(self.world.numbers)}"))
        (task,) = (
            await self.services.orders.create(
                "house:local", request, await self.services.orders.plan("house:local", request)
            )
        ).tasks
        self.task_id = task.id
        for _ in range(len(self.world.script.choices)):
            await self._do_something()
        return await self._settle()

    async def _reset(self) -> None:
        """Begin without cooldowns and pauses."""
        limits = self.services.tables.provider_limits
        for name in NAMES:
            await self.services.database.transact(*limits.resume_provider(name))
        self.clock.advance(3600)

    async def _do_something(self) -> None:
        pick = self.world.script.pick
        match pick("work", "work", "wait", "end", "call", "call", "cancel", "pause", "change"):
            case "work":
                await self._work()
            case "wait":
                self.clock.advance(pick(1, 15, 100, 1000))
            case "end":
                self._end_jobs()
            case "change" if self.world.jobs:
                pick(*self.world.jobs).change()
            case "call" if called := [job for job in self.world.jobs if job.end and job.callback_url]:
                await self.call_back(pick(*called))
            case "cancel" if pick(False, False, True):
                with contextlib.suppress(ApiError):  # it has ended
                    await self.services.canceler.cancel_task(self.task_id, EVERYTHING)
            case "pause":
                name, limits = pick(*NAMES), self.services.tables.provider_limits
                statements = pick([limits.pause_provider(name, self.clock.now())], limits.resume_provider(name))
                await self.services.database.transact(*statements)

    def _end_jobs(self) -> None:
        for job in self.world.jobs:
            if job.end is None:
                self.world.end_job(job)

    async def _work(self) -> None:
        """Run the step of the task, if it is due; a killed process leaves its lease behind."""
        tasks, now = self.services.tables.tasks, self.clock.now()
        task = await tasks.get(self.task_id)
        assert task is not None
        if task.state in ENDED:
            return
        lease = Lease(holder=f"worker {next(self.world.numbers)}", until=now + 30)
        if task.state == TaskState.QUEUED:
            claimed = await self.services.worker.submissions.claim(task.provider, lease, limit=1)
        else:
            claimed = await tasks.claim(task.state, now=now, lease=lease, limit=1)
        for one in claimed:
            try:
                await self.services.worker.steps.run(one)
            except Killed:
                self.clock.advance(31)

    async def call_back(self, job: Job) -> None:
        query = dict(parse_qsl(urlsplit(job.callback_url or "").query))
        callback = IncomingCallback(
            provider=job.provider, query=query, headers={}, body=json.dumps({"job": job.id}).encode(), trusted=False
        )
        await self.services.receiver.receive(callback)
        await self.services.callback_step.process_callbacks(self.task_id)

    async def _settle(self) -> Task:
        """Let all jobs end, deliver their callbacks, and work until the task has ended."""
        limits = self.services.tables.provider_limits
        for name in NAMES:
            await self.services.database.transact(*limits.resume_provider(name))
        for _ in range(60):
            self._end_jobs()
            for job in self.world.jobs:
                if job.callback_url:
                    await self.call_back(job)
            task = await self.services.tables.tasks.get(self.task_id)
            assert task is not None
            if task.state in ENDED:
                return task
            self.clock.advance(max(20.0, min(task.due_at - self.clock.now(), 1000.0)))
            await self._work()
        raise AssertionError(f"the task did not end: {task}")

    async def attempts(self) -> list[Attempt]:
        return await self.services.tables.attempts.list_of_task(self.task_id)


def check_promises(task: Task, attempts: Sequence[Attempt], world: World, *, resubmit_unknown: bool) -> None:
    jobs = world.jobs
    billed = [job for job in jobs if job.is_billed]
    succeeded = [job for job in jobs if isinstance(job.end, Finished)]
    changed = [job for job in jobs if job.has_changed]
    assert len(billed) <= 1 + len(changed) + (world.unknown_outcomes if resubmit_unknown else 0)
    if succeeded and task.state != TaskState.CANCELED:
        assert task.state == TaskState.FETCHING, "a paid image is fetched"
        source = next(job for job in succeeded if isinstance(job.end, Finished) and task.outputs == job.end.outputs)
        assert (task.provider, task.key_id) == (source.provider, source.key_id)
    counted = [attempt for attempt in attempts if attempt.outcome == "succeeded" or attempt.duplicate_result]
    assert len(counted) == len(succeeded), "each success is in the ledger"


async def run_histories(folder: Path, examples: int, *, resubmit_unknown: bool) -> None:
    """Play histories in one database; Hypothesis runs in a thread, the broker in this event loop."""
    clock, world, loop = ManualClock(), World(), asyncio.get_running_loop()
    async with three_providers(folder, clock, world, resubmit_unknown=resubmit_unknown) as services:

        async def play(choices: Sequence[int]) -> None:
            world.begin(choices)
            history = History(services, world, clock)
            task = await history.play()
            check_promises(task, await history.attempts(), world, resubmit_unknown=resubmit_unknown)

        @settings(
            max_examples=examples,
            deadline=None,
            database=None,
            suppress_health_check=list(HealthCheck),
        )
        @given(st.lists(st.integers(0, 23), max_size=40))
        def explore(choices: list[int]) -> None:
            asyncio.run_coroutine_threadsafe(play(choices), loop).result()

        await asyncio.to_thread(explore)


@dataclass
class Stage:
    """The parts of a history that a test directs step by step."""

    services: Services
    world: World
    clock: ManualClock

    async def order(self, *choices: int, provider: str | None = None) -> Task:
        """Create an order and run its first step. choices: of the provider, see `Simulated.submit`."""
        self.world.begin(choices)
        return await self.work(await self.create(provider))

    async def create(self, provider: str | None = None) -> Task:
        request = OrderRequest(params=ImageParams(prompt="a red bicycle"), provider=provider)
        (task,) = (
            await self.services.orders.create(
                "house:local", request, await self.services.orders.plan("house:local", request)
            )
        ).tasks
        return task

    async def work(self, task: Task) -> Task:
        """Run one step of a task; return the row after it."""
        lease = Lease(holder=f"worker {next(self.world.numbers)}", until=self.clock.now() + 30)
        if task.state == TaskState.QUEUED:
            claimed = await self.services.worker.submissions.claim(task.provider, lease, limit=1)
        else:
            claimed = await self.services.tables.tasks.claim(task.state, now=self.clock.now(), lease=lease, limit=1)
        for one in claimed:
            await self.services.worker.steps.run(one)
        after = await self.services.tables.tasks.get(task.id)
        assert after is not None
        return after


@pytest.fixture
async def stage(tmp_path: Path, clock: ManualClock) -> AsyncIterator[Stage]:
    world = World()
    async with three_providers(tmp_path, clock, world) as services:
        yield Stage(services, world, clock)


ACCEPTED, REFUSED, LOST = 0, 1, 2
"""Choices of `Simulated.submit`."""
LIMITED, EMPTY, WRONG_KEY, DOWN, FREE_ERROR, FREE_END, MODEL_GONE, REJECTED, UNSAFE = range(9)
"""Choices among `REFUSALS`."""


async def test_limited_key_hands_its_order_to_the_next_key(stage: Stage) -> None:
    task = await stage.order(REFUSED, LIMITED, ACCEPTED)
    assert (task.state, task.provider, task.due_at) == (TaskState.QUEUED, "amber", stage.clock.now())
    task = await stage.work(task)
    first, second = await stage.services.tables.attempts.list_of_task(task.id)
    assert (task.state, task.provider) == (TaskState.WAITING, "amber")
    assert first.key_id != second.key_id == task.key_id


async def test_job_is_checked_with_the_key_that_made_it(stage: Stage) -> None:
    task = await stage.work(await stage.order(REFUSED, LIMITED, ACCEPTED))
    stage.clock.advance(60)
    (job,) = stage.world.jobs
    job.succeed()
    assert (await stage.work(task)).state == TaskState.FETCHING  # `Simulated.check` compares the keys


@pytest.mark.parametrize("refusal", [LIMITED, EMPTY, WRONG_KEY, DOWN])
async def test_order_goes_to_the_next_provider_when_every_key_is_refused(stage: Stage, refusal: int) -> None:
    task = await stage.order(REFUSED, refusal, REFUSED, refusal, ACCEPTED)
    task = await stage.work(await stage.work(task))
    assert (task.state, task.provider, task.candidates) == (TaskState.WAITING, "birch", ("birch", "cedar", "amber"))


@pytest.mark.parametrize(
    ("refusal", "goes_on"), [(MODEL_GONE, True), (FREE_END, True), (REJECTED, False), (UNSAFE, False)]
)
async def test_code_of_a_refusal_decides_whether_another_provider_is_asked(
    stage: Stage, refusal: int, goes_on: bool
) -> None:
    task = await stage.order(REFUSED, refusal)
    if goes_on:
        assert (task.state, task.provider, task.candidates) == (TaskState.QUEUED, "birch", ("birch", "cedar"))
    else:
        assert (task.state, task.provider) == (TaskState.FAILED, "amber")


async def test_unknown_outcome_is_never_taken_elsewhere(stage: Stage) -> None:
    task = await stage.order(LOST)
    assert (task.state, task.provider) == (TaskState.SUBMITTING, "amber")
    stage.clock.advance(2000)
    task = await stage.work(task)
    assert (task.state, task.error_code, len(stage.world.jobs)) == (TaskState.FAILED, "unknown_outcome", 1)


async def test_pinned_order_waits_for_its_provider(stage: Stage) -> None:
    task = await stage.order(REFUSED, LIMITED, REFUSED, LIMITED, provider="birch")
    task = await stage.work(task)
    assert (task.state, task.provider, task.candidates) == (TaskState.QUEUED, "birch", ("birch",))
    stage.clock.advance(10)
    assert (await stage.work(task)).state == TaskState.WAITING


async def test_paused_provider_is_the_last_candidate_of_a_new_order(stage: Stage) -> None:
    limits = stage.services.tables.provider_limits
    await stage.services.database.transact(limits.pause_provider("amber", stage.clock.now()))
    plan = await stage.services.orders.plan("house:local", OrderRequest(params=ImageParams(prompt="a red bicycle")))
    assert plan.candidates == ("birch", "cedar", "amber")
    assert [route.reason for route in plan.routes] == [None, None, "paused by the operator"]


async def test_queued_order_moves_while_its_provider_is_paused(stage: Stage) -> None:
    task = await stage.create()
    assert task.provider == "amber"
    limits = stage.services.tables.provider_limits
    await stage.services.database.transact(limits.pause_provider("amber", stage.clock.now()))
    stage.clock.advance(1)
    task = await stage.work(task)
    assert (task.state, task.provider) == (TaskState.QUEUED, "birch")
    assert (await stage.work(task)).state == TaskState.WAITING


async def test_every_move_of_an_order_is_kept_with_its_reason(stage: Stage) -> None:
    task = await stage.order(REFUSED, EMPTY, REFUSED, EMPTY, ACCEPTED)
    task = await stage.work(task)  # the second key
    limits = stage.services.tables.provider_limits
    await stage.services.database.transact(limits.pause_provider("birch", stage.clock.now()))
    stage.clock.advance(1)
    task = await stage.work(task)
    assert task.provider == "cedar"
    assert [route["provider"] for route in task.routes] == [*NAMES, "birch", "cedar"]
    assert [route["reason"] for route in task.routes[3:]] == [
        "after provider_credits at amber",
        "birch takes no orders now",
    ]
    assert [route["at"] for route in task.routes[3:]] == [stage.clock.now() - 1, stage.clock.now()]
    moved = stage.services.metrics.registry.get_sample_value
    assert moved("broker_orders_moved_total", {"from": "amber", "to": "birch"}) == 1.0
    assert moved("broker_orders_moved_total", {"from": "birch", "to": "cedar"}) == 1.0


async def test_pinned_order_fails_at_once_if_its_provider_waits_for_the_operator(stage: Stage) -> None:
    """It has no other candidate, although other providers take orders: it must not wait for the next probe."""
    choices = [REFUSED, EMPTY] * 3
    task = await stage.order(*choices, provider="amber")
    task = await stage.work(task)
    assert (task.state, task.error_code) == (TaskState.FAILED, "provider_credits")
    again = await stage.order(*choices, provider="amber")
    assert (again.state, again.error_code) == (TaskState.FAILED, "provider_credits")


async def test_queued_order_of_a_provider_without_a_key_any_more_moves_on(stage: Stage) -> None:
    task = await stage.create()
    gone = stage.services.tables.tasks.update_task(task, provider="gone", candidates=("gone", "cedar"))
    await stage.services.database.transact(gone)
    await stage.services.worker.move_orphans()
    moved = await stage.services.tables.tasks.get(task.id)
    assert moved is not None
    assert (moved.state, moved.provider, moved.candidates) == (TaskState.QUEUED, "cedar", ("cedar",))
    assert (await stage.work(moved)).state == TaskState.WAITING


async def test_late_success_of_an_earlier_attempt_at_another_provider_is_fetched(stage: Stage) -> None:
    task = await stage.order(ACCEPTED)
    (job,) = stage.world.jobs
    job.end = failure("provider_error", retryable=True, job_id=job.id)
    stage.clock.advance(60)
    task = await stage.work(task)
    assert (task.state, task.provider) == (TaskState.QUEUED, "birch")
    task = await stage.work(task)
    assert (task.state, task.provider) == (TaskState.WAITING, "birch")
    history = History(stage.services, stage.world, stage.clock, task.id)
    for one in stage.world.jobs:
        one.succeed()
        await history.call_back(one)
    late = await stage.services.tables.tasks.get(task.id)
    assert late is not None
    assert (late.state, late.provider, late.job_id) == (TaskState.FETCHING, "amber", job.id)
    attempts = await history.attempts()
    assert [bool(one.duplicate_result) for one in attempts] == [False, True], "the second success is counted"


async def test_order_fails_at_once_when_every_key_waits_for_the_operator(stage: Stage) -> None:
    choices = [REFUSED, WRONG_KEY] * 8
    task = await stage.order(*choices)
    for _ in range(6):
        task = await stage.work(task)
    assert (task.state, task.error_code) == (TaskState.FAILED, "provider_auth")
    again = await stage.order(*choices)
    assert (again.state, again.error_code) == (TaskState.FAILED, "provider_auth")


async def test_no_history_bills_an_order_twice(tmp_path: Path) -> None:
    await run_histories(tmp_path, 200, resubmit_unknown=False)


async def test_resubmission_bills_once_per_unknown_outcome(tmp_path: Path) -> None:
    await run_histories(tmp_path, 100, resubmit_unknown=True)


@pytest.mark.faults
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("resubmit_unknown", [False, True])
async def test_no_history_of_thousands_bills_an_order_twice(tmp_path: Path, resubmit_unknown: bool) -> None:
    await run_histories(tmp_path, 10_000, resubmit_unknown=resubmit_unknown)
