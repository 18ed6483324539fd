"""How far a task is, and how long it may still take: its place in the queue, and what the last ones like it took.

The place comes from one look at the queue per process and moment, whoever asks. The estimate is the median of our own
history, or none: no percentage is made up, and a time that has passed is not stretched.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Final

from broker.clock import Clock
from broker.showing import UNKNOWN, Progress
from broker.snapshots import Snapshot
from storage.provider_limits import WINDOW_SECONDS, Lanes, Limits, Load
from storage.states import State
from storage.tasks import Task, Tasks, Took

MOST_PLACES: Final = 10_000
"""Who stands behind so many is told only that: their place is one more than that, however far back they are."""
LOOK_SECONDS: Final = 1.5
HISTORY_SECONDS: Final = 30.0
FEW: Final = 5
"""Fewer images than that are no history."""
MANY: Final = 50


@dataclass(frozen=True, kw_only=True)
class _Line:
    """The queue of one provider. places: by task id, from 1. full: there are more than we looked at."""

    places: Mapping[str, int]
    full: bool
    load: Load


@dataclass(frozen=True, kw_only=True)
class _Pace:
    """Seconds that one image takes at the provider, and from there to us."""

    making: float
    fetching: float


@dataclass(kw_only=True)
class Forecast:
    """limits: of each provider in use, as they are now. models: all that a provider may have made images with."""

    clock: Clock
    tasks: Tasks
    lanes: Lanes
    limits: Callable[[str], Limits | None]
    models: Sequence[str]
    most_places: int = MOST_PLACES
    _lines: dict[str, Snapshot[_Line]] = field(default_factory=dict)
    _histories: dict[str, Snapshot[Mapping[str, Sequence[Took]]]] = field(default_factory=dict)

    async def of(self, task: Task) -> Progress:
        """What can be told of a task beyond its row; costs nothing for one that has ended."""
        if task.ended:
            return UNKNOWN
        if task.state == State.QUEUED:
            return await self._queued(task)
        return self._left(await self._pace(task), _begun(task), fetching=task.state == State.FETCHING)

    # -- the queue

    async def _queued(self, task: Task) -> Progress:
        snapshot = self._lines.setdefault(task.provider, self._line_of(task.provider))
        line = await snapshot.get()
        place = line.places.get(task.id)
        eta = await self._done_in(task, place, line.load) if place else None
        behind = self.most_places + 1 if line.full else None
        return Progress(position=place or behind, eta=eta, fresh_for=max(0.0, snapshot.fresh_for))

    def _line_of(self, provider: str) -> Snapshot[_Line]:
        async def look() -> _Line:
            ids = await self.tasks.line(provider, self.most_places + 1)
            return _Line(
                places={task_id: place for place, task_id in enumerate(ids[: self.most_places], 1)},
                full=len(ids) > self.most_places,
                load=await self.lanes.load(provider, self.clock.now()),
            )

        return Snapshot(look, seconds=LOOK_SECONDS, clock=self.clock)

    async def _done_in(self, task: Task, place: int, load: Load) -> int | None:
        """Seconds until it is done: its turn comes as fast as the lane lets orders in, and jobs run at once."""
        pace, limits, now = await self._pace(task), self.limits(task.provider), self.clock.now()
        if pace is None or limits is None or limits.creates <= 0 or limits.places <= 0:
            return None
        by_window = (place - 1) // limits.creates * WINDOW_SECONDS
        by_places = max(0, place - max(0, limits.places - load.running)) * pace.making / limits.places
        pause = max(0.0, load.paused_until - now)
        turn = max(pause + max(by_window, by_places), task.due_at - now)
        return coarse(turn + pace.making + pace.fetching)

    # -- history

    def _left(self, pace: _Pace | None, begun: float | None, *, fetching: bool) -> Progress:
        """An estimate that was exceeded says no more; one that cannot be made yet may be in a while."""
        if pace is None:
            return Progress(fresh_for=HISTORY_SECONDS)
        if begun is None:
            return UNKNOWN
        whole = pace.fetching if fetching else pace.making + pace.fetching
        left = min(begun + whole - self.clock.now(), whole)  # the clock may have been set back
        return Progress(eta=coarse(left), fresh_for=_steady(left))

    async def _pace(self, task: Task) -> _Pace | None:
        """By model and resolution, else by model, else by provider."""
        snapshot = self._histories.setdefault(task.provider, self._history_of(task.provider))
        history = await snapshot.get()
        same_model = history.get(task.model, ())
        everything = [one for model in history.values() for one in model]
        alike = [one for one in same_model if one.resolution == task.resolution]
        enough = next((took for took in (alike, same_model, everything) if len(took) >= FEW), None)
        return _pace_of(enough[:MANY]) if enough else None

    def _history_of(self, provider: str) -> Snapshot[Mapping[str, Sequence[Took]]]:
        async def look() -> Mapping[str, Sequence[Took]]:
            return {model: await self.tasks.took(provider, model) for model in self.models}

        return Snapshot(look, seconds=HISTORY_SECONDS, clock=self.clock)


def _begun(task: Task) -> float | None:
    return task.finished_at if task.state == State.FETCHING else task.sent_at


def _pace_of(took: Iterable[Took]) -> _Pace:
    """A clock that was set in between makes no time negative."""
    took = list(took)
    return _Pace(
        making=max(0.0, median(one.making for one in took)),
        fetching=max(0.0, median(one.fetching for one in took)),
    )


def _step(seconds: float) -> int:
    """An estimate is no exacter than that, and an answer that is the same for a while need not be sent again."""
    return next((step for most, step in ((30, 5), (120, 10), (600, 30)) if seconds <= most), 60)


def coarse(seconds: float) -> int | None:
    """Rounded up to a step; None when the time is over."""
    if seconds <= 0:
        return None
    step = _step(seconds)
    return math.ceil(seconds / step) * step


def _steady(seconds: float) -> float:
    """How long the rounded estimate stays what it is."""
    if seconds <= 0:
        return math.inf
    step = _step(seconds)
    return seconds - (math.ceil(seconds / step) - 1) * step
