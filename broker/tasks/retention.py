"""Retention: deletes tasks that ended long enough ago, many at a time, and everything that has no row.

Results: rows first, files later, because the task's own row leads to them; a reader in progress keeps its file.
References: files first, because only their rows lead to them. Files without any row are swept.

Decisions worth remembering

* Tasks end one by one, but are deleted by the hundred: one claim, one transaction, one deletion of files. On a busy
  machine of two cores 50 000 took 45 seconds in one process and 16 in two, and no order waited for more than a tenth
  of a second; so a day's million takes minutes, spread over the day. Dropped partitions would be quicker, but a task is
  looked up by its id alone, ends on another day than it began, and leaves a tombstone for a week (docs/scaling.md has
  the numbers of both). Reconsider at ten million tasks a day.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from broker.clock import Clock
from broker.logs import log
from broker.metrics import Metrics
from broker.tasks import lifecycle
from broker.tasks.policy import TaskPolicy
from storage.attempts import Ledger
from storage.blobs.store import BlobStore
from storage.callbacks import Callbacks
from storage.cluster_state import ClusterState, PeriodicJobs
from storage.deliveries import Deliveries
from storage.idempotency import IdempotencyRecords
from storage.ids import reference_owner
from storage.images import Images
from storage.sql.database import Database
from storage.sql.migrate import created_at
from storage.states import TaskState
from storage.task_retention import TaskRetention
from storage.tasks import Task

BATCH_SIZE: Final = 100
"""Tasks per step."""
ROWS_PER_STATEMENT: Final = 500
HOUSEKEEPING_SECONDS: Final = 60.0
SWEEP_SECONDS: Final = 3600.0
MAX_PLAUSIBLE_STRAYS: Final = 10
"""More files without a row than this are deleted only if most files have one."""


@dataclass(frozen=True, kw_only=True)
class Retention:
    """Deletes what is old enough."""

    clock: Clock
    policy: TaskPolicy
    database: Database
    tasks: TaskRetention
    images: Images
    hooks: Callbacks
    idempotency: IdempotencyRecords
    deliveries: Deliveries
    chores: PeriodicJobs
    facts: ClusterState
    blobs: BlobStore
    metrics: Metrics

    # -- tasks

    async def run(self, tasks: Sequence[Task]) -> None:
        """Expire or delete ended tasks: of one claim, all in one state, `BATCH_SIZE` at most."""
        if tasks[0].state != TaskState.EXPIRED:
            await self._expire(tasks)
            return
        if with_files := [task for task in tasks if task.step_retries == 0]:
            await self._delete_files(with_files)
        if without_files := [task for task in tasks if task.step_retries > 0]:
            await self.database.transact(*self.tasks.delete_all(without_files))

    async def _expire(self, tasks: Sequence[Task]) -> None:
        """Delete the content of tasks; their rows stay as tombstones."""
        now = self.clock.now()
        for changes, group in _group_by_changes(tasks, lambda task: lifecycle.expire(task, now, self.policy).task):
            saving = self.tasks.update_all(group, **changes)
            if changes.get("state") != TaskState.EXPIRED:
                await self.database.transact(saving)  # it ended later than the claim saw
                continue
            ids = [task.id for task in group]
            expired, *_ = await self.database.transact(
                saving, self.images.delete_of_expired(ids), *self.deliveries.delete_of_expired(ids)
            )
            state = group[0].state.value
            self.metrics.transitions.labels(state, TaskState.EXPIRED.value).inc(expired.count)
            log.info("tasks are expired now", action="task_expired", previous=state, count=expired.count)

    async def _delete_files(self, tasks: Sequence[Task]) -> None:
        """Delete the files of expired tasks, and those of references whose tasks are all expired."""
        batches = list({task.batch for task in tasks})
        alive = await self.tasks.unexpired_batches(batches)
        owners = [reference_owner(batch) for batch in batches if batch not in alive]
        with_references = sorted(await self.images.owners_with_images(owners)) if owners else []
        # bytes first: after an error in between, a row leads the next run to them
        await asyncio.gather(*(self.blobs.delete(owner) for owner in (*(task.id for task in tasks), *with_references)))
        deleting = [self.images.delete_of_owners(with_references)] if with_references else []
        files_deleted = lifecycle.files_deleted(self.clock.now(), self.policy).task
        await self.database.transact(self.tasks.update_all(tasks, **files_deleted), *deleting)

    async def apply_shorter_retention(self) -> None:
        """Apply a retention time that is shorter than before to tasks that have ended; once for all processes."""
        current = self.policy.retention_seconds
        before = float(await self.facts.set_if_absent("retention", "inf"))
        if current < before:
            last: str | None = ""
            while last is not None:
                last = await self.tasks.shorten_retention(current, after=last, limit=ROWS_PER_STATEMENT)
        if current != before:
            await self.facts.set_value("retention", repr(current))

    # -- what no task's row leads to

    async def delete_leftovers(self) -> None:
        """Delete old callbacks, idempotency keys, webhooks and files without a row, a few hundred at a time."""
        before = self.clock.now() - self.policy.retention_seconds
        await _repeat_in_batches(lambda: self.hooks.delete_before(before, ROWS_PER_STATEMENT))
        await _repeat_in_batches(lambda: self.idempotency.delete_before(before, ROWS_PER_STATEMENT))
        await _repeat_in_batches(lambda: self.deliveries.delete_before(before, ROWS_PER_STATEMENT))
        await _repeat_in_batches(lambda: Ledger(self.database).delete_older(self.clock.now(), ROWS_PER_STATEMENT))
        if await self.chores.try_acquire("sweep", now=self.clock.now(), every=SWEEP_SECONDS):
            await self.sweep(older_than=SWEEP_SECONDS)

    async def delete_leftovers_once(self) -> None:
        """Do the same, unless another process did it within the last minute."""
        if await self.chores.try_acquire("housekeeping", now=self.clock.now(), every=HOUSEKEEPING_SECONDS):
            await self.delete_leftovers()

    async def sweep(self, older_than: float) -> int:
        """Delete files without a row, whose writer died before it wrote the row; return the number of owners."""
        await self.blobs.delete_stale_drafts(older_than)
        owners = await self.blobs.list_owners(older_than, await created_at(self.database))
        strays = await self.find_strays(owners)
        if len(strays) > MAX_PLAUSIBLE_STRAYS and len(strays) > len(owners) / 2:
            log.error("most images have no row: is this the right database? None is deleted", action="sweep_refused")
            return 0
        for owner in strays:
            await self.blobs.delete(owner)
        return len(strays)

    async def find_strays(self, owners: Sequence[str]) -> list[str]:
        """Return the owners without an image row and without an unexpired task, which may still get its row."""
        strays: list[str] = []
        for start in range(0, len(owners), ROWS_PER_STATEMENT):
            batch = owners[start : start + ROWS_PER_STATEMENT]
            known = await self.images.owners_with_images(batch) | await self.tasks.active_owners(batch)
            strays += [owner for owner in batch if owner not in known]
        return strays


def _group_by_changes(
    tasks: Sequence[Task], decide: Callable[[Task], Mapping[str, Any]]
) -> list[tuple[Mapping[str, Any], list[Task]]]:
    groups: dict[str, tuple[Mapping[str, Any], list[Task]]] = {}
    for task in tasks:
        changes = decide(task)
        groups.setdefault(repr(changes), (changes, []))[1].append(task)  # a value may not be hashable
    return list(groups.values())


async def _repeat_in_batches(delete: Callable[[], Awaitable[int]]) -> None:
    deleted = ROWS_PER_STATEMENT
    while deleted == ROWS_PER_STATEMENT:
        deleted = await delete()
