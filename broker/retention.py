"""Retention: what ended long enough ago is forgotten, many tasks at a time, and so is what nobody's row speaks of.

Results: rows first, files later, with the task's own row to remind of them; whoever reads a file in that moment keeps
it. References: files first, because nothing but their rows reminds of them. What has no row at all is swept.

Decisions worth remembering

* Tasks end one by one, but are forgotten by the hundred: one claim, one transaction, one deletion of files. On a busy
  machine of two cores 50 000 took 45 seconds in one process and 16 in two, and no order beside them waited for more
  than a tenth of a second; so a day's million is a matter of minutes, spread over the day. Partitions that are dropped
  would be quicker, but a task is looked up by its id alone, ends on another day than it began, and is remembered for a
  week (docs/scaling.md has the numbers of both). Reconsider at ten million tasks a day.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from broker import lifecycle
from broker.clock import Clock
from broker.lifecycle import Rules
from broker.logs import log
from broker.metrics import Metrics
from broker.steps import reference_owner
from storage.blobs import BlobStore
from storage.chores import Chores
from storage.database import Database
from storage.deliveries import Deliveries
from storage.facts import Facts
from storage.hooks import Hooks
from storage.idempotency import IdempotencyRecords
from storage.images import Images
from storage.ledger import Ledger
from storage.migrate import born_at
from storage.tasks import State, Task, Tasks

STATES: Final = (State.SUCCEEDED, State.FAILED, State.CANCELED, State.EXPIRED)
"""States whose step deletes something."""
AT_ONCE: Final = 100
BATCH: Final = 500
EVERY: Final = 60.0
SWEEP_EVERY: Final = 3600.0
FEW_STRAYS: Final = 10


@dataclass(frozen=True, kw_only=True)
class Retention:
    """Forgets what is old enough."""

    clock: Clock
    rules: Rules
    database: Database
    tasks: Tasks
    images: Images
    hooks: Hooks
    idempotency: IdempotencyRecords
    deliveries: Deliveries
    chores: Chores
    facts: Facts
    blobs: BlobStore
    metrics: Metrics

    # -- tasks

    async def retire(self, tasks: Sequence[Task]) -> None:
        """The step of ended tasks: of one claim, all in one state, at most `AT_ONCE`."""
        if tasks[0].state != State.EXPIRED:
            await self._expire(tasks)
            return
        full = [task for task in tasks if task.tries == 0]
        if full:
            await self._empty(full)
        if empty := [task for task in tasks if task.tries > 0]:
            await self.database.transact(*self.tasks.deleting_all(empty))

    async def _expire(self, tasks: Sequence[Task]) -> None:
        """What the callers gave and got is forgotten; that there were tasks is remembered for a while."""
        now = self.clock.now()
        for changes, alike in _alike(tasks, lambda task: lifecycle.expired(task, now, self.rules).task):
            saving = self.tasks.saving_all(alike, **changes)
            if changes.get("state") != State.EXPIRED:
                await self.database.transact(saving)  # ended later than it seemed
                continue
            ids = [task.id for task in alike]
            untelling = self.deliveries.deleting_expired(ids)
            expired, *_ = await self.database.transact(saving, self.images.deleting_expired(ids), *untelling)
            self.metrics.transitions.labels(alike[0].state.value, State.EXPIRED.value).inc(expired.count)
            log.info("tasks are expired now", action="task_expired", was=alike[0].state.value, count=expired.count)

    async def _empty(self, tasks: Sequence[Task]) -> None:
        """Delete the files of expired tasks, and those of references whose orders are all expired."""
        batches = list({task.batch for task in tasks})
        alive = await self.tasks.unexpired_batches(batches)
        owners = [reference_owner(batch) for batch in batches if batch not in alive]
        referring = sorted(await self.images.owning(owners)) if owners else []
        # bytes first: a row is what reminds the next try of them, if this one goes wrong in between
        await asyncio.gather(*(self.blobs.delete(owner) for owner in (*(task.id for task in tasks), *referring)))
        deleting = [self.images.deleting(referring)] if referring else []
        emptied = lifecycle.emptied(self.clock.now(), self.rules).task
        await self.database.transact(self.tasks.saving_all(tasks, **emptied), *deleting)

    async def shorten(self) -> None:
        """A retention that is shorter than before counts for what has ended already, too: once, by whoever is first."""
        ours = self.rules.retention
        before = float(await self.facts.agree("retention", "inf"))
        if ours < before:
            last: str | None = ""
            while last is not None:
                last = await self.tasks.due_sooner(ours, after=last, limit=BATCH)
        if ours != before:
            await self.facts.replace("retention", repr(ours))

    # -- what no task's row reminds of

    async def housekeep(self) -> None:
        """Delete old callbacks, idempotency keys, webhooks and files without a row, a few hundred at a time."""
        before = self.clock.now() - self.rules.retention
        await _in_batches(lambda: self.hooks.forget(before, BATCH))
        await _in_batches(lambda: self.idempotency.delete_before(before, BATCH))
        await _in_batches(lambda: self.deliveries.forget(before, BATCH))
        await _in_batches(lambda: Ledger(self.database).delete_older(self.clock.now(), BATCH))
        if await self.chores.take("sweep", now=self.clock.now(), every=SWEEP_EVERY):
            await self.sweep(older_than=SWEEP_EVERY)

    async def housekeep_for_all(self) -> None:
        """Unless another process does it just now."""
        if await self.chores.take("housekeeping", now=self.clock.now(), every=EVERY):
            await self.housekeep()

    async def sweep(self, older_than: float) -> int:
        """Remove files that no row knows: their writers died between the file and the row. How many owners they had."""
        await self.blobs.sweep(older_than)
        owners = await self.blobs.owners(older_than, await born_at(self.database))
        strays = await self._strays(owners)
        if len(strays) > FEW_STRAYS and len(strays) > len(owners) / 2:
            log.error("most images have no row: is this the right database? None is deleted", action="sweep_refused")
            return 0
        for owner in strays:
            await self.blobs.delete(owner)
        return len(strays)

    async def _strays(self, owners: Sequence[str]) -> list[str]:
        strays: list[str] = []
        for start in range(0, len(owners), BATCH):
            batch = owners[start : start + BATCH]
            # one whose task lives may get its row any moment, and is cleared away with its task
            known = await self.images.owning(batch) | await self.tasks.living(batch)
            strays += [owner for owner in batch if owner not in known]
        return strays


def _alike(
    tasks: Sequence[Task], decide: Callable[[Task], Mapping[str, Any]]
) -> list[tuple[Mapping[str, Any], list[Task]]]:
    """Tasks by what is to be changed in them."""
    groups: defaultdict[tuple[Any, ...], list[Task]] = defaultdict(list)
    for task in tasks:
        groups[tuple(sorted(decide(task).items()))].append(task)
    return [(dict(changes), alike) for changes, alike in groups.items()]


async def _in_batches(forget: Callable[[], Awaitable[int]]) -> None:
    forgotten = BATCH
    while forgotten == BATCH:
        forgotten = await forget()
