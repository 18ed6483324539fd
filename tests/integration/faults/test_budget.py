"""The daily budget and an owner's quotas in histories of faults: reservations and costs never exceed them.

Each is settled once: what is used is at any moment what the attempts say.

The providers are those of the failover histories. Several orders share one day; processes are killed, callbacks come
late and twice, providers bill what they reported as free.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Final

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from broker.errors import ApiError
from broker.orders import ImageParams, OrderRequest
from broker.services import Services
from broker.tasks import lifecycle
from storage.attempts import Attempt
from storage.ids import new_user_id
from storage.ledger import SECONDS_PER_DAY
from storage.limits.budgets import day_of, to_micros
from storage.limits.owner_usage import OwnerUse
from storage.sql.scope import EVERYTHING
from storage.states import TaskState
from storage.tasks import Task
from tests.integration.faults.test_failover import NAMES, History, Stage, World, failure, three_providers
from tests.support.accounts import add_key_holder
from tests.support.clock import ManualClock

pytestmark = pytest.mark.anyio

PRICE: Final = to_micros(0.02)
"""Of one image at each provider, by the price table."""
COST: Final = to_micros(0.015)
"""What the providers report for an image."""
OWNER: Final = new_user_id()
LONG: Final = (pytest.mark.faults, pytest.mark.timeout(900))


class OrderHistory(History):
    """One of several orders."""

    async def do_something(self) -> None:
        await self._do_something()

    async def finish(self) -> None:
        """Work until the order has ended, its image is stored, and all callbacks have come, twice."""
        task = await self._settle()
        if task.state == TaskState.FETCHING:
            done = partial(lifecycle.downloaded, stored=1, failures=())
            await self.services.transitions.apply_own(task, done, is_leased=False)
        for job in self.world.jobs:
            job.change()
            for _ in range(2 if job.callback_url and job.end else 0):
                await self.call_back(job)


@dataclass
class Day:
    """The orders of one day under a budget, and what they must amount to."""

    services: Services
    world: World
    clock: ManualClock
    limit: int
    """Millionths of a USD."""
    share: int
    """Reservation of one order."""
    number: int
    """Days since the epoch."""
    orders: list[OrderHistory] = field(default_factory=list)

    async def play(self) -> None:
        pick = self.world.script.pick
        for _ in range(len(self.world.script.choices)):
            if not self.orders or pick(True, False, False, False):
                if day_of(self.clock.now()) == self.number:
                    await self.create()
            else:
                await pick(*self.orders).do_something()
            await self.check()
        for order in self.orders:
            await order.finish()
            await self.check()
        assert all([(await self.task_of(order)).ended_at is not None for order in self.orders])

    async def create(self) -> None:
        """Order an image; assert that it is refused only if it does not fit."""
        used = await self.used()
        request = OrderRequest(params=ImageParams(prompt=f"order {next(self.world.numbers)}"))
        try:
            plan = await self.services.orders.plan(OWNER, request)
            (task,) = (await self.services.orders.create(OWNER, request, plan)).tasks
        except ApiError as error:
            assert (error.code, used + self.share > self.limit) == ("quota_exceeded", True)
        else:
            assert used + self.share <= self.limit
            self.orders.append(OrderHistory(self.services, self.world, self.clock, task.id))

    async def used(self) -> int:
        return await self.services.tables.budgets.get_used(self.number)

    async def task_of(self, order: OrderHistory) -> Task:
        task = await self.services.tables.tasks.get(order.task_id)
        assert task is not None
        return task

    async def check(self) -> None:
        """Compare the day and each reservation with the attempts."""
        used = await self.used()
        total, excess, images, in_flight = 0, 0, 0, 0
        for order in self.orders:
            task, attempts = await self.task_of(order), await order.attempts()
            expected = self.share if task.ended_at is None else sum(map(micros_of, attempts))
            assert task.reserved == task.owner_micros == expected, (task.state, attempts)
            image = 1 if task.ended_at is None else int(any(attempt.billed != "no" for attempt in attempts))
            assert task.owner_images == image, (task.state, attempts)
            total, images, in_flight = total + expected, images + image, in_flight + (task.ended_at is None)
            excess += max(0, expected - self.share)
        assert used == total
        use = await self.services.tables.owner_usage.read_use(OWNER, self.number)
        assert use == OwnerUse(images=images, micros=total, in_flight=in_flight)
        assert used <= self.limit + excess
        if not any(job.has_changed for job in self.world.jobs):
            assert excess == 0, "a provider that bills what it reports never costs more than was reserved"


def micros_of(attempt: Attempt) -> int:
    """Return what an attempt costs, or may have cost."""
    assert attempt.duplicate_cost is None, "these providers make one job of one submission"
    if attempt.billed == "yes":
        return COST if attempt.outcome == "succeeded" else PRICE
    return 0 if attempt.billed == "no" else PRICE


async def run_days(folder: Path, examples: int, *, resubmit_unknown: bool, images: int) -> None:
    """Play days in one database. images: the budget of a day, in images."""
    loop, midnight, world = asyncio.get_running_loop(), 20_000 * SECONDS_PER_DAY, World(cost=3.0)
    clock = ManualClock(midnight)
    days = iter(range(1, 10 * examples))
    providers = three_providers(
        folder, clock, world, resubmit_unknown=resubmit_unknown, daily_budget=0.02 * images, task_deadline=60
    )
    async with providers as services:

        async def play(choices: Sequence[int]) -> None:
            world.begin(choices)
            limits = services.tables.provider_limits
            for name in NAMES:
                await services.database.transact(*limits.resume_provider(name))
            clock.advance(midnight + 30 * next(days) * SECONDS_PER_DAY - clock.now())
            attempts = services.policy.max_attempts if resubmit_unknown else 1
            limit, today = to_micros(0.02 * images), day_of(clock.now())
            await Day(services, world, clock, limit=limit, share=PRICE * attempts, number=today).play()

        @settings(max_examples=examples, deadline=None, database=None, suppress_health_check=list(HealthCheck))
        @given(st.lists(st.integers(0, 23), max_size=40))
        def explore(choices: list[int]) -> None:
            asyncio.run_coroutine_threadsafe(play(choices), loop).result()

        await asyncio.to_thread(explore)


@pytest.mark.parametrize("examples", [40, pytest.param(1000, marks=LONG)])
async def test_no_order_of_a_day_exceeds_the_budget(tmp_path: Path, examples: int) -> None:
    await run_days(tmp_path, examples, resubmit_unknown=False, images=3)


@pytest.mark.parametrize("examples", [20, pytest.param(1000, marks=LONG)])
async def test_budget_covers_every_repeated_submission(tmp_path: Path, examples: int) -> None:
    await run_days(tmp_path, examples, resubmit_unknown=True, images=7)


# -- single steps


@pytest.fixture
async def stage(tmp_path: Path, clock: ManualClock) -> AsyncIterator[Stage]:
    world = World(cost=3.0)
    async with three_providers(tmp_path, clock, world, daily_budget=0.05) as services:
        yield Stage(services, world, clock)


async def reserved_of(stage: Stage, task: Task) -> int | None:
    """Return the reservation of the only task of the day, which the day must agree with."""
    fresh = await stage.services.tables.tasks.get(task.id)
    assert fresh is not None
    assert await stage.services.tables.budgets.get_used(day_of(task.created_at)) == fresh.reserved
    return fresh.reserved


@pytest.mark.parametrize(
    ("end", "amount"), [("success", COST), ("free", 0), ("billed", PRICE)], ids=["success", "free", "billed failure"]
)
async def test_late_report_corrects_what_an_ended_task_holds(stage: Stage, end: str, amount: int) -> None:
    """Until then the price stays reserved: a canceled job may be billed."""
    task = await stage.order(0)
    await stage.services.canceler.cancel_task(task.id, EVERYTHING)
    assert await reserved_of(stage, task) == PRICE
    (job,) = stage.world.jobs
    job.succeed()
    if end != "success":
        billed = "no" if end == "free" else "yes"
        job.end = failure("provider_error", retryable=True, billed=billed, job_id=job.id)
    for _ in range(2):
        await History(stage.services, stage.world, stage.clock, task.id).call_back(job)
        assert await reserved_of(stage, task) == amount


async def test_second_job_of_one_submission_is_counted_beyond_the_reservation(stage: Stage) -> None:
    """The provider bills both, so less is left for other orders; a repeated callback of either changes nothing."""
    task = await stage.order(0)
    first = stage.world.jobs[0]
    second = replace(first, id="job of the same submission")
    stage.world.jobs.append(second)
    for job in (first, second):
        job.succeed()
    history = OrderHistory(stage.services, stage.world, stage.clock, task.id)
    await history.finish()
    assert await reserved_of(stage, task) == 2 * COST
    (attempt,) = await history.attempts()
    assert (attempt.cost, attempt.duplicate_cost) == (3.0, 3.0)


async def test_late_success_after_an_unknown_outcome_is_settled_before_the_download(stage: Stage) -> None:
    task = await stage.order(2)
    stage.clock.advance(stage.services.policy.deadline_seconds)
    task = await stage.work(task)
    assert (task.state, await reserved_of(stage, task)) == (TaskState.FAILED, PRICE)
    (job,) = stage.world.jobs
    job.succeed()
    await History(stage.services, stage.world, stage.clock, task.id).call_back(job)
    assert await reserved_of(stage, task) == COST


async def test_task_that_was_never_submitted_releases_its_reservation(stage: Stage) -> None:
    task = await stage.create()
    assert await reserved_of(stage, task) == PRICE
    await stage.services.canceler.cancel_task(task.id, EVERYTHING)
    assert await reserved_of(stage, task) == 0


async def test_provider_whose_price_does_not_fit_in_the_budget_is_no_candidate(stage: Stage) -> None:
    stage.world.prices = {"amber": 8.0, "birch": None}
    request = OrderRequest(params=ImageParams(prompt="a red bicycle"), count=2)
    plan = await stage.services.orders.plan("house:local", request)
    assert plan.candidates == ("cedar",)
    assert {route.provider: route.reason for route in plan.routes if not route.is_candidate} == {
        "amber": "its price does not fit in what is left of the daily budget",
        "birch": "its price is not known, so it cannot be reserved in the daily budget",
    }
    assert plan.quote.upper_bound_usd == 0.04


async def test_provider_whose_price_does_not_fit_in_the_quota_is_no_candidate(stage: Stage) -> None:
    stage.world.prices = {"amber": 8.0, "birch": None}
    ann = await add_key_holder(stage.services, usd=0.03)
    plan = await stage.services.orders.plan(ann.owner, OrderRequest(params=ImageParams(prompt="a red bicycle")))
    assert plan.candidates == ("cedar",)
    assert {route.provider: route.reason for route in plan.routes if not route.is_candidate} == {
        "amber": "its price does not fit in what is left of the quota of USD per day",
        "birch": "its price is not known, so it cannot be reserved in the quota of USD per day",
    }


async def test_order_reserves_the_highest_price_of_its_candidates(stage: Stage) -> None:
    stage.world.prices = {"birch": 9.0, "cedar": 2.0}
    task = await stage.create()
    assert set(task.candidates) == set(NAMES)
    assert await reserved_of(stage, task) == to_micros(9 * 0.005)
