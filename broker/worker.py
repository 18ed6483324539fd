"""The worker: lease what is due, take one step each, keep the leases, drain on stop.

Nothing that must happen is known only here. If this process dies, its leases end and another one goes on.
"""

from __future__ import annotations

import asyncio
import math
import secrets
from collections.abc import Awaitable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Final

from broker import retention
from broker.clock import Clock
from broker.logs import bare, log
from broker.monitoring.balance import BalanceMonitor
from broker.notifications.deliverer import Deliverer
from broker.retention import Retention
from broker.steps import Steps
from storage.database import StorageError
from storage.hooks import Hooks
from storage.lanes import Lanes, Limits
from storage.tasks import DUE, Agenda, Lease, State, Task, Tasks

PLACES: Final = {
    State.QUEUED: 32,
    State.SUBMITTING: 16,
    State.WAITING: 32,
    State.FETCHING: 24,
}
"""Steps at once, by state: a provider that hangs, or slow downloads, must not keep the other steps waiting."""
NEWS_PLACES: Final = 32
LONGEST_SLEEP: Final = 1.0
LOCKED_PAUSE: Final = 0.1
SLOW_STORE: Final = 1.0
SHORTEST_GRACE: Final = 3.0
CLOCK_JUMP: Final = 120.0
SPARED_SECONDS: Final = 3600.0
DRAIN_SECONDS: Final = 7.0


@dataclass(frozen=True, kw_only=True)
class _Running:
    """A step in progress. state: whose place it takes; None = nobody's. holder: of its lease, if it has one."""

    task_ids: tuple[str, ...] = ()
    state: State | None = None
    holder: str = ""


@dataclass(kw_only=True)
class Worker:
    """Takes steps until it is stopped.

    lease: seconds a step may be silent before others take over. patience: seconds that steps under way get on stop.
    """

    clock: Clock
    steps: Steps
    tasks: Tasks
    hooks: Hooks
    lanes: Lanes
    deliverer: Deliverer
    retention: Retention
    balances: BalanceMonitor
    lease: float = 30.0
    patience: float = DRAIN_SECONDS
    beat_at: float = 0.0
    _running: dict[asyncio.Future[object], _Running] = field(default_factory=dict)
    _reading: set[str] = field(default_factory=set)
    _stopping: asyncio.Event = field(default_factory=asyncio.Event)
    _housekept_at: float = 0.0
    _epoch: float = field(init=False)
    _spare_until: float = -math.inf
    _recover_from: float = field(init=False)

    def __post_init__(self) -> None:
        self._epoch = self.clock.now() - self.clock.monotonic()
        self._recover_from = self.clock.monotonic() + SHORTEST_GRACE  # there may have been some just before we came

    async def run(self) -> None:
        """Work until `stop`, then finish what is running, or give it back after `patience`."""
        self.beat_at = self.clock.now()
        await self._guarded(self.retention.shorten(), "", "retention")
        with self.tasks.database.listen(DUE) as bell:
            keeper = asyncio.create_task(self._keep_leases(), name="lease-keeper")
            try:
                while not self._stopping.is_set():
                    await bell.wait(await self._turn())
            finally:
                await self._drain()
                keeper.cancel()
                await asyncio.gather(keeper, return_exceptions=True)

    def stop(self) -> None:
        """Begin nothing new."""
        self._stopping.set()
        self.tasks.database.wake(DUE)

    @property
    def busy(self) -> int:
        """Steps in progress."""
        return len(self._running)

    async def _turn(self) -> float:
        """One look at the table; returns the seconds until the next one. A store in trouble is asked again soon."""
        try:
            self.beat_at = self.clock.now()
            agenda = await self._agenda()
            if agenda.news:
                await self._read_news()
            busy = self.busy
            was_due = await self._start_steps(agenda)
            if was_due:
                agenda = await self._agenda()
            self._housekeep()
            # due, and not to be had: somebody else is just changing it
            return max(LOCKED_PAUSE if was_due and self.busy == busy else 0.0, await self._until_next(agenda))
        except StorageError as error:
            log.error("the store cannot be reached", action="store_trouble", why=str(error))
            self._in_trouble()
            return LONGEST_SLEEP

    def _in_trouble(self) -> None:
        """Leases could not be renewed: whoever has an answer of a provider in hand gets the time to write it down."""
        self._recover_from = self.clock.monotonic() + max(self.lease, SHORTEST_GRACE)

    async def _agenda(self) -> Agenda:
        begun = self.clock.monotonic()
        agenda = await self.tasks.agenda(self._states(), list(self.steps.providers), self.clock.now())
        took = self.clock.monotonic() - begun
        self.steps.metrics.store_seconds.labels("look").observe(took)
        if took < SLOW_STORE:
            return agenda
        self._in_trouble()  # the store was away, and came back before it was given up
        return replace(agenda, due={state: at for state, at in agenda.due.items() if state != State.SUBMITTING})

    async def clean_up(self) -> int:
        """Retention now, and nothing else: no order is submitted, no provider asked. How many tasks were removed."""
        removed = 0
        await self.retention.shorten()
        for state in retention.STATES:
            while ended := await self._claim(state, retention.AT_ONCE):
                removed += sum(task.state != State.EXPIRED for task in ended)
                await self._guarded(self.retention.retire(ended), "", "retention")
        await self.retention.housekeep()
        return removed

    # -- starting

    async def _read_news(self) -> None:
        for task_id in await self.hooks.tasks_with_news(NEWS_PLACES + len(self._reading)):
            if task_id not in self._reading and len(self._reading) < NEWS_PLACES:
                self._reading.add(task_id)
                self._start(self._read(task_id), _Running(task_ids=(task_id,)))

    async def _read(self, task_id: str) -> None:
        """News that could not be taken in stay in the inbox, and are tried again after a moment."""
        done = await self._guarded(self.steps.digest(task_id), task_id, "news")
        asyncio.get_running_loop().call_later(0.0 if done else LONGEST_SLEEP, self._reading.discard, task_id)

    async def _start_steps(self, agenda: Agenda) -> bool:
        """Whether any was due."""
        now = self.clock.now()
        due = [state for state, at in agenda.due.items() if at <= now]
        for state in due:
            if state in retention.STATES:
                await self._retire(state)
            else:
                await self._start_all(await self._claim(state, self._free(state)))
        if agenda.overdue <= now:
            overdue = await self.tasks.claim_overdue(now=now, lease=self._lease(), limit=self._free(State.QUEUED))
            await self._start_all(overdue)
        waiting = [provider for provider, at in agenda.queued.items() if at <= now]
        for provider in waiting:
            room = await self.lanes.room(provider, self._limits(provider), now)
            limit = min(room.free, self._free(State.QUEUED))
            await self._start_all(await self.tasks.claim_queued(provider, now=now, lease=self._lease(), limit=limit))
        telling = agenda.telling <= now and self.deliverer.free_slots > 0 and not self.deliverer.pause_seconds
        if telling:
            await self._tell()
        return bool(due or waiting or telling or agenda.overdue <= now)

    async def _tell(self) -> None:
        """Webhooks to callers; the deliverer has places of its own."""
        for delivery in await self.deliverer.claim():
            self._start(self._guarded(self.deliverer.deliver(delivery), delivery.task_id, "delivery"), _Running())

    async def _claim(self, state: State, limit: int) -> list[Task]:
        return await self.tasks.claim(state, now=self.clock.now(), lease=self._lease(), limit=limit)

    async def _retire(self, state: State) -> None:
        """Many tasks in one step; one such step at a time and state."""
        if tasks := await self._claim(state, retention.AT_ONCE * self._free(state)):
            step = self._guarded(self.retention.retire(tasks), "", "retention")
            ids = tuple(task.id for task in tasks)
            self._start(step, _Running(task_ids=ids, state=state, holder=tasks[0].leased_by))

    def _states(self) -> list[State]:
        """Those whose steps may be taken. After the clock was set nothing is deleted by it for a while."""
        jump = self.clock.now() - self.clock.monotonic() - self._epoch
        self._epoch += jump
        if abs(jump) > CLOCK_JUMP:
            log.warning("the clock was set: nothing is deleted for an hour", action="clock_jumped", seconds=round(jump))
            self._spare_until = self.clock.monotonic() + SPARED_SECONDS
        recovering = self.clock.monotonic() >= self._recover_from
        living: list[State] = [s for s in PLACES if s != State.QUEUED and (recovering or s != State.SUBMITTING)]
        return living if self._sparing() else [*living, *retention.STATES]

    def _sparing(self) -> bool:
        return self.clock.monotonic() < self._spare_until

    async def _start_all(self, tasks: Sequence[Task]) -> None:
        """Not a step that still runs here: its lease ended all the same, but it is worth its outcome."""
        busy = self._busy()
        for task in tasks:
            if (task.id, _step_of(task.state)) in busy:
                await self.tasks.renew([(task.id, task.leased_by)], self.clock.now() + LONGEST_SLEEP)
            else:
                self._start(self._step(task), _Running(task_ids=(task.id,), state=task.state, holder=task.leased_by))

    def _busy(self) -> set[tuple[str, State]]:
        steps = [(running.task_ids, running.state) for running in self._running.values()]
        return {(task_id, _step_of(state)) for task_ids, state in steps if state for task_id in task_ids}

    def _lease(self) -> Lease:
        return Lease(holder=secrets.token_hex(8), until=self.clock.now() + self.lease)

    def _limits(self, provider: str) -> Limits:
        upstream = self.steps.providers[provider]
        return Limits(creates=upstream.creates_per_10s, places=upstream.concurrency)

    def _free(self, state: State) -> int:
        return PLACES.get(state, 1) - sum(running.state == state for running in self._running.values())

    def _start(self, step: Awaitable[object], what: _Running) -> None:
        running = asyncio.ensure_future(step)
        self._running[running] = what
        running.add_done_callback(self._finished)

    def _finished(self, step: asyncio.Future[object]) -> None:
        self._running.pop(step, None)
        self.tasks.database.wake(DUE)

    async def _step(self, task: Task) -> None:
        """A step that went wrong is tried again when its lease ends."""
        if not await self._guarded(self.steps.take(task), task.id, task.state.value):
            await self._guarded(self.steps.stumble(task), task.id, "stumble")

    async def _guarded(self, step: Awaitable[object], task_id: str, what: str) -> bool:
        """Whether it went well. Nothing that one task does may stop the others."""
        try:
            await step
        except StorageError as error:
            log.error("a step could not be written down", action="store_trouble", task=task_id, why=str(error))
        except Exception as error:
            self.steps.metrics.steps_failed.labels(what).inc()
            log.error("a step failed unexpectedly", action="step_failed", task=task_id, step=what, exc_info=bare(error))
        else:
            return True
        return False

    # -- leases and sleep

    async def _keep_leases(self) -> None:
        while True:
            await asyncio.sleep(self.lease / 3)
            try:
                await self.tasks.renew(_held(self._running.values()), self.clock.now() + self.lease)
            except StorageError as error:
                log.error("leases could not be renewed", action="store_trouble", why=str(error))
                self._in_trouble()

    async def _until_next(self, agenda: Agenda) -> float:
        now = self.clock.now()
        moments = [at for state, at in agenda.due.items() if self._free(state)]
        if self._free(State.QUEUED):
            moments += [await self._next_submission(provider, at, now) for provider, at in agenda.queued.items()]
            moments.append(agenda.overdue)
        if self.deliverer.free_slots:
            moments.append(max(agenda.telling, now + self.deliverer.pause_seconds))
        return min(max(0.0, min(moments, default=math.inf) - now), LONGEST_SLEEP)

    async def _next_submission(self, provider: str, queued: float, now: float) -> float:
        if math.isinf(queued):
            return queued
        room = await self.lanes.room(provider, self._limits(provider), now)
        return max(queued, now if room.free else room.again_at)

    # -- the rest

    def _housekeep(self) -> None:
        """What nobody's task row reminds us of."""
        now = self.clock.now()
        if now - self._housekept_at >= retention.EVERY and not self._sparing():
            self._housekept_at = now
            self._start(self._guarded(self.retention.housekeep_for_all(), "", "housekeeping"), _Running())
            self._start(self._guarded(self.balances.refresh(), "", "balance"), _Running())

    async def _drain(self) -> None:
        if self._running:
            await asyncio.wait(list(self._running), timeout=self.patience)
        left = list(self._running.items())
        for step, _ in left:
            step.cancel()
        await asyncio.gather(*(step for step, _ in left), return_exceptions=True)
        await self.tasks.database.settled()  # what they had handed in is written all the same
        await self._give_back(_held(what for _, what in left))

    async def _give_back(self, held: list[tuple[str, str]]) -> None:
        """Steps and webhooks that were cut off become due for others at once."""
        try:
            await self.tasks.renew(held, 0.0)
            await self.deliverer.release()
        except StorageError as error:
            log.error("leases could not be given back", action="store_trouble", why=str(error))


def _step_of(state: State) -> State:
    """Ordering begins in one state and goes on in the next."""
    return State.SUBMITTING if state == State.QUEUED else state


def _held(steps: Iterable[_Running]) -> list[tuple[str, str]]:
    return [(task_id, step.holder) for step in steps if step.holder for task_id in step.task_ids]
