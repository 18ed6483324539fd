"""The worker: lease what is due, take one step each, keep the leases, drain on stop.

Nothing that must happen is known only here. If this process dies, its leases end and another one goes on.
"""

from __future__ import annotations

import asyncio
import math
import secrets
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Final

from broker.clock import Clock
from broker.lifecycle import Rules
from broker.logs import log
from broker.steps import Steps
from storage.database import StorageError
from storage.hooks import Hooks
from storage.keys import Keys
from storage.lanes import Lanes, Limits
from storage.migrate import born_at
from storage.tasks import DUE, Lease, State, Task, Tasks

PLACES: Final = {
    State.QUEUED: 32,
    State.SUBMITTING: 16,
    State.WAITING: 32,
    State.FETCHING: 24,
    State.SUCCEEDED: 8,
    State.FAILED: 8,
    State.CANCELED: 8,
    State.EXPIRED: 8,
}
"""Steps at once, by state: a provider that hangs, or slow downloads, must not keep the other steps waiting."""
RETENTION: Final = frozenset({State.SUCCEEDED, State.FAILED, State.CANCELED, State.EXPIRED})
"""States whose step deletes something."""
NEWS_PLACES: Final = 32
LONGEST_SLEEP: Final = 1.0
HOUSEKEEPING_EVERY: Final = 60.0
HOUSEKEEPING_BATCH: Final = 500
FEW_STRAYS: Final = 10
SWEEP_EVERY: Final = 3600.0
CLOCK_JUMP: Final = 120.0
SPARED_SECONDS: Final = 3600.0
DRAIN_SECONDS: Final = 7.0


@dataclass(frozen=True, kw_only=True)
class _Running:
    """A step in progress. state: whose place it takes; None = nobody's. holder: of its lease, if it has one."""

    task_id: str
    state: State | None = None
    holder: str = ""


@dataclass(kw_only=True)
class Worker:
    """Takes steps until it is stopped.

    lease: seconds a step may be silent before others take over. patience: seconds that steps under way get on stop.
    """

    clock: Clock
    rules: Rules
    steps: Steps
    tasks: Tasks
    hooks: Hooks
    keys: Keys
    lanes: Lanes
    lease: float = 30.0
    patience: float = DRAIN_SECONDS
    beat_at: float = 0.0
    _running: dict[asyncio.Task[None], _Running] = field(default_factory=dict)
    _reading: set[str] = field(default_factory=set)
    _stopping: asyncio.Event = field(default_factory=asyncio.Event)
    _housekept_at: float = 0.0
    _swept_at: float = 0.0
    _epoch: float = field(init=False)
    _spare_until: float = -math.inf

    def __post_init__(self) -> None:
        self._epoch = self.clock.now() - self.clock.monotonic()

    async def run(self) -> None:
        """Work until `stop`, then finish what is running, or give it back after `patience`."""
        await self._shorten_retention()
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
            await self._read_news()
            await self._start_steps()
            self._housekeep()
            return await self._until_next()
        except StorageError as error:
            log.error("the store cannot be reached", action="store_trouble", why=str(error))
            return LONGEST_SLEEP

    async def clean_up(self) -> int:
        """Retention now, and nothing else: no order is submitted, no provider asked. How many tasks were removed."""
        removed = 0
        await self._shorten_retention()
        for state in (State.SUCCEEDED, State.FAILED, State.CANCELED, State.EXPIRED):
            while ended := await self.tasks.claim(state, now=self.clock.now(), lease=self._lease(), limit=64):
                removed += sum(task.state != State.EXPIRED for task in ended)
                await asyncio.gather(*(self._step(task) for task in ended))
        await self.housekeep()
        return removed

    # -- starting

    async def _read_news(self) -> None:
        for task_id in await self.hooks.tasks_with_news(NEWS_PLACES + len(self._reading)):
            if task_id not in self._reading and len(self._reading) < NEWS_PLACES:
                self._reading.add(task_id)
                self._start(self._read(task_id), _Running(task_id=task_id))

    async def _read(self, task_id: str) -> None:
        """News that could not be taken in stay in the inbox, and are tried again after a moment."""
        done = await self._guarded(self.steps.digest(task_id), task_id, "news")
        asyncio.get_running_loop().call_later(0.0 if done else LONGEST_SLEEP, self._reading.discard, task_id)

    async def _start_steps(self) -> None:
        now, lease = self.clock.now(), self._lease()
        for state in self._states():
            if state != State.QUEUED:
                await self._start_all(await self.tasks.claim(state, now=now, lease=lease, limit=self._free(state)))
        await self._start_all(await self.tasks.claim_overdue(now=now, lease=lease, limit=self._free(State.QUEUED)))
        for name in self.steps.providers:
            room = await self.lanes.room(name, self._limits(name), now)
            limit = min(room.free, self._free(State.QUEUED))
            await self._start_all(await self.tasks.claim_queued(name, now=now, lease=lease, limit=limit))

    def _states(self) -> list[State]:
        """Those whose steps may be taken. After the clock was set nothing is deleted by it for a while."""
        jump = self.clock.now() - self.clock.monotonic() - self._epoch
        self._epoch += jump
        if abs(jump) > CLOCK_JUMP:
            log.warning("the clock was set: nothing is deleted for an hour", action="clock_jumped", seconds=round(jump))
            self._spare_until = self.clock.monotonic() + SPARED_SECONDS
        return [state for state in PLACES if state not in RETENTION or not self._sparing()]

    def _sparing(self) -> bool:
        return self.clock.monotonic() < self._spare_until

    async def _start_all(self, tasks: Sequence[Task]) -> None:
        """Not a step that still runs here: its lease ended all the same, but it is worth its outcome."""
        busy = {(running.task_id, _step_of(running.state)) for running in self._running.values() if running.state}
        for task in tasks:
            if (task.id, _step_of(task.state)) in busy:
                await self.tasks.renew([(task.id, task.leased_by)], self.clock.now() + LONGEST_SLEEP)
            else:
                self._start(self._step(task), _Running(task_id=task.id, state=task.state, holder=task.leased_by))

    def _lease(self) -> Lease:
        return Lease(holder=secrets.token_hex(8), until=self.clock.now() + self.lease)

    def _limits(self, provider: str) -> Limits:
        upstream = self.steps.providers[provider]
        return Limits(creates=upstream.creates_per_10s, places=upstream.concurrency)

    def _free(self, state: State) -> int:
        return PLACES[state] - sum(running.state == state for running in self._running.values())

    def _start(self, step: Awaitable[None], what: _Running) -> None:
        running = asyncio.ensure_future(step)
        self._running[running] = what
        running.add_done_callback(self._finished)

    def _finished(self, step: asyncio.Task[None]) -> None:
        self._running.pop(step, None)
        self.tasks.database.wake(DUE)

    async def _step(self, task: Task) -> None:
        """A step that went wrong is tried again when its lease ends."""
        if not await self._guarded(self.steps.take(task), task.id, task.state.value):
            await self._guarded(self.steps.stumble(task), task.id, "stumble")

    async def _guarded(self, step: Awaitable[None], task_id: str, what: str) -> bool:
        """Whether it went well. Nothing that one task does may stop the others."""
        try:
            await step
        except StorageError as error:
            log.error("a step could not be written down", action="store_trouble", task=task_id, why=str(error))
        except Exception:
            self.steps.metrics.steps_failed.labels(what).inc()
            log.exception("a step failed unexpectedly", action="step_failed", task=task_id, step=what)
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

    async def _until_next(self) -> float:
        now = self.clock.now()
        states = [state for state in self._states() if state != State.QUEUED and self._free(state)]
        moments = [await self.tasks.next_due(state, now) or math.inf for state in states]
        if self._free(State.QUEUED):
            moments += [await self._next_submission(provider, now) for provider in self.steps.providers]
        return min(max(0.0, min(moments, default=math.inf) - now), LONGEST_SLEEP)

    async def _next_submission(self, provider: str, now: float) -> float:
        queued = await self.tasks.next_queued(provider, now)
        if queued is None:
            return math.inf
        room = await self.lanes.room(provider, self._limits(provider), now)
        return max(queued, now if room.free else room.again_at)

    # -- the rest

    def _housekeep(self) -> None:
        """What nobody's task row reminds us of: old callbacks, old keys, leftovers of writers that died."""
        now = self.clock.now()
        if now - self._housekept_at >= HOUSEKEEPING_EVERY and not self._sparing():
            self._housekept_at = now
            self._start(self._tidied(), _Running(task_id=""))

    async def _tidied(self) -> None:
        await self._guarded(self.housekeep(), "", "housekeeping")

    async def housekeep(self) -> None:
        """Remove it now, in batches that never hold the store for long."""
        now = self.clock.now()
        before = now - self.rules.retention
        await _in_batches(lambda: self.hooks.forget(before, HOUSEKEEPING_BATCH))
        await _in_batches(lambda: self.keys.forget(before, HOUSEKEEPING_BATCH))
        if now - self._swept_at >= SWEEP_EVERY:
            self._swept_at = now
            await self.sweep(older_than=SWEEP_EVERY)

    async def sweep(self, older_than: float) -> int:
        """Remove files that no row knows: their writers died between the file and the row. How many owners they had."""
        blobs = self.steps.blobs
        await blobs.sweep(older_than)
        owners = await blobs.owners(older_than, await born_at(self.tasks.database))
        strays = await self._strays(owners)
        if len(strays) > FEW_STRAYS and len(strays) > len(owners) / 2:
            log.error("most images have no row: is this the right database? None is deleted", action="sweep_refused")
            return 0
        for owner in strays:
            await blobs.delete(owner)
        return len(strays)

    async def _strays(self, owners: Sequence[str]) -> list[str]:
        strays: list[str] = []
        for start in range(0, len(owners), HOUSEKEEPING_BATCH):
            batch = owners[start : start + HOUSEKEEPING_BATCH]
            known = await self.steps.images.owning(batch)
            strays += [owner for owner in batch if owner not in known]
        return strays

    async def _shorten_retention(self) -> None:
        """A retention that is shorter than before counts for what has ended already, too."""
        for state in (State.SUCCEEDED, State.FAILED, State.CANCELED):
            await _in_batches(partial(self.tasks.due_sooner, state, self.rules.retention, HOUSEKEEPING_BATCH))

    async def _drain(self) -> None:
        if self._running:
            await asyncio.wait(list(self._running), timeout=self.patience)
        left = list(self._running.items())
        for step, _ in left:
            step.cancel()
        await asyncio.gather(*(step for step, _ in left), return_exceptions=True)
        await self._give_back(_held(what for _, what in left))

    async def _give_back(self, held: list[tuple[str, str]]) -> None:
        """Steps that were cut off become due for others at once."""
        try:
            await self.tasks.renew(held, 0.0)
        except StorageError as error:
            log.error("leases could not be given back", action="store_trouble", why=str(error))


def _step_of(state: State) -> State:
    """Ordering begins in one state and goes on in the next."""
    return State.SUBMITTING if state == State.QUEUED else state


def _held(steps: Iterable[_Running]) -> list[tuple[str, str]]:
    return [(step.task_id, step.holder) for step in steps if step.holder]


async def _in_batches(forget: Callable[[], Awaitable[int]]) -> None:
    forgotten = HOUSEKEEPING_BATCH
    while forgotten == HOUSEKEEPING_BATCH:
        forgotten = await forget()
