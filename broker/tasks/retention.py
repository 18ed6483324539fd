"""Retention: deletes tasks that ended long enough ago, many at a time, and everything that has no row.

Results: rows first, files later, because the task's own row leads to them; a reader in progress keeps its file.
References and uploaded files: files first, because only their rows lead to them. Files without any row are swept.

Tasks end one by one, but are deleted by the hundred; docs/scaling.md compares this with partitions that are dropped.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Final

from broker.clock import Clock
from broker.logs import log
from broker.metrics import Metrics
from broker.tasks import lifecycle
from broker.tasks.policy import TaskPolicy
from storage.blobs.store import BlobStore
from storage.errors import Stale
from storage.files.resumable_uploads import ResumableUploads
from storage.files.uploaded_files import UploadedFiles
from storage.ids import reference_owner
from storage.sql.database import Statement
from storage.sql.migrate import created_at
from storage.sql.rows import SqlList, in_clause
from storage.states import RETAINED_STATES, TaskState
from storage.tables import Tables
from storage.task_retention import EndedTask, just_expired
from storage.tasks import Lease

SLICE_SECONDS: Final = 0.005
"""Longest time of one transaction of retention: others wait for it."""
MAX_REST_SECONDS: Final = 0.02
MAX_SLICE: Final = 400
MIN_SLICE: Final = 100
ROWS_PER_STATEMENT: Final = 500
HOUSEKEEPING_SECONDS: Final = 60.0
SWEEP_SECONDS: Final = 3600.0
MAX_CLOCK_JUMP_SECONDS: Final = 120.0
DELETION_PAUSE_SECONDS: Final = 3600.0
MAX_PLAUSIBLE_STRAYS: Final = 10
"""More files without a row than this are deleted only if most files have one."""


@dataclass(kw_only=True)
class ClockGuard:
    """Pauses deletion for an hour after the system clock was set."""

    clock: Clock
    _offset: float = field(init=False)
    """Between the time of day and the monotonic clock."""
    _paused_until: float = -math.inf

    def __post_init__(self) -> None:
        self._offset = self.clock.now() - self.clock.monotonic()

    @property
    def deletion_paused(self) -> bool:
        return self.clock.monotonic() < self._paused_until

    def check_clock(self) -> None:
        """Compare the two clocks."""
        jump = self.clock.now() - self.clock.monotonic() - self._offset
        self._offset += jump
        if abs(jump) > MAX_CLOCK_JUMP_SECONDS:
            log.warning("the clock was set: deletion pauses for an hour", action="clock_jumped", seconds=round(jump))
            self.pause_deletion()

    def pause_deletion(self) -> None:
        self._paused_until = self.clock.monotonic() + DELETION_PAUSE_SECONDS


@dataclass(kw_only=True)
class Pace:
    """Number of tasks of one transaction, by how long the last ones took."""

    size: int = 100

    def record(self, count: int, seconds: float) -> None:
        """Aim at half of `SLICE_SECONDS`; count: of the tasks in this transaction."""
        if seconds > SLICE_SECONDS:
            self.size = max(MIN_SLICE, self.size // 2)
        elif count >= self.size and seconds < SLICE_SECONDS / 2:
            self.size = min(MAX_SLICE, self.size + self.size // 4)


@dataclass(frozen=True, kw_only=True)
class Retention:
    """Deletes what is old enough."""

    clock: Clock
    policy: TaskPolicy
    tables: Tables
    blobs: BlobStore
    metrics: Metrics
    pace: Pace = field(default_factory=Pace)

    # -- tasks

    async def take_due(self, state: TaskState, lease: Lease) -> Sequence[EndedTask]:
        """Lease ended tasks that are due, for `run`; most of them are expired at once, in the same transaction."""
        begun = self.clock.monotonic()
        tasks: Sequence[EndedTask] = ()
        if state in RETAINED_STATES:
            tasks = await self._expire_due(state, lease)
        now, retention = self.clock.now(), self.tables.task_retention
        tasks = tasks or await retention.claim(state, now=now, lease=lease, limit=self.pace.size)
        self.pace.record(len(tasks), self.clock.monotonic() - begun)
        return tasks

    async def _expire_due(self, state: TaskState, lease: Lease) -> Sequence[EndedTask]:
        """Delete the content of due tasks without a look at each; their rows stay as tombstones."""
        now, tables = self.clock.now(), self.tables
        ids = just_expired(now, lease)
        tasks = await tables.task_retention.expire_with_rows(
            tables.task_retention.expire_due(
                state,
                lifecycle.expire_now(now).task,
                now=now,
                lease=lease,
                limit=self.pace.size,
                ended_before=now - self.policy.retention_seconds,
            ),
            *self._delete_rows(ids),
        )
        if tasks:
            self._record_expired(state, len(tasks))
        return tasks

    def _delete_rows(self, expired: SqlList) -> list[Statement]:
        """Return what deletes the content of tasks outside their own rows."""
        return [
            self.tables.images.delete_of_expired(expired),
            *self.tables.deliveries.delete_of_expired(expired),
            self.tables.attempts.delete_words_of_expired(expired),
        ]

    def _record_expired(self, state: TaskState, count: int) -> None:
        self.metrics.transitions.labels(state.value, TaskState.EXPIRED.value).inc(count)
        log.info("tasks are expired now", action="task_expired", previous=state.value, count=count)

    async def run(self, tasks: Sequence[EndedTask]) -> None:
        """Expire or delete ended tasks: of one lease and all in one state; then rest as long, for the other work."""
        begun = self.clock.monotonic()
        await self._run(tasks)
        await asyncio.sleep(min(self.clock.monotonic() - begun, MAX_REST_SECONDS))

    async def _run(self, tasks: Sequence[EndedTask]) -> None:
        if tasks[0].state != TaskState.EXPIRED:
            await self._expire(tasks)
            return
        if with_files := [task for task in tasks if task.step_retries == 0]:
            await self._delete_files(with_files)
        if without_files := [task for task in tasks if task.step_retries > 0]:
            await self.tables.database.transact(*self.tables.task_retention.delete_all(without_files))

    async def _expire(self, tasks: Sequence[EndedTask]) -> None:
        """Delete the content of tasks; their rows stay as tombstones."""
        now, retention = self.clock.now(), self.tables.task_retention
        kept_until = await self._kept_until(tasks, now)
        changes = [lifecycle.expire(one, now, self.policy, kept_until=kept_until.get(one.batch, 0.0)) for one in tasks]
        ends = list(zip(tasks, (change.task for change in changes), strict=True))
        expired = [task for task, change in ends if "state" in change]
        # the others are needed by a conversation, or ended later than the claim saw
        later = [retention.update_all([task], **change) for task, change in ends if "state" not in change]
        await self.tables.database.transact(*later)
        if not expired:
            return
        changed, *_ = await self.tables.database.transact(
            retention.update_all(expired, **lifecycle.expire_now(now).task),
            *self._delete_rows(in_clause([task.id for task in expired])),
        )
        self._record_expired(expired[0].state, changed.count)

    async def _kept_until(self, tasks: Sequence[EndedTask], now: float) -> dict[str, float]:
        """Return the batches of turns of conversations, which are deleted as a whole, and when to look again."""
        retention, soon = self.policy.retention_seconds, now + HOUSEKEEPING_SECONDS
        kept = await self.tables.turns.kept_until(
            sorted({task.batch for task in tasks}), retention=retention, look_again=now + retention
        )
        return {batch: max(until, soon) for batch, until in kept.items()}

    async def _delete_files(self, tasks: Sequence[EndedTask]) -> None:
        """Delete the files of expired tasks, and those of references whose tasks are all expired.

        Later those that a turn of the same conversation shows: its references lead to the files of earlier turns.
        """
        owners = await self.tables.images.owners_with_images([reference_owner(task.batch) for task in tasks])
        if owners:
            owners -= await self.tables.task_retention.active_owners(list(owners))
        with_references = sorted(owners)
        linked = await self._find_linked([*(task.id for task in tasks), *with_references])
        if kept := [task for task in tasks if linked & {task.id, reference_owner(task.batch)}]:
            later = self.tables.task_retention.update_all(kept, due_at=self.clock.now() + SWEEP_SECONDS)
            await self.tables.database.transact(later)
            tasks = [task for task in tasks if task not in kept]
            with_references = sorted({*with_references} & {reference_owner(task.batch) for task in tasks})
        if not tasks:
            return
        # bytes first: after an error in between, a row leads the next run to them
        await self.blobs.delete_of_owners([*(task.id for task in tasks), *with_references])
        deleting = [self.tables.images.delete_of_owners(with_references)] if with_references else []
        files_deleted = lifecycle.files_deleted(self.clock.now(), self.policy).task
        await self.tables.database.transact(self.tables.task_retention.update_all(tasks, **files_deleted), *deleting)

    async def _find_linked(self, owners: Sequence[str]) -> set[str]:
        """Return the owners whose files are references of unexpired tasks of other requests."""
        links = await self.tables.images.links_to(owners)
        active = await self.tables.task_retention.active_owners([by for _, by in links]) if links else set()
        return {owner for owner, by in links if by in active}

    async def apply_shorter_retention(self) -> None:
        """Apply a retention time that is shorter than before to tasks that have ended; once for all processes."""
        current = self.policy.retention_seconds
        before = float(await self.tables.cluster_state.set_if_absent("retention", "inf"))
        if current < before:
            last: str | None = ""
            while last is not None:
                last = await self.tables.task_retention.shorten_retention(current, after=last, limit=ROWS_PER_STATEMENT)
        if current != before:
            await self.tables.cluster_state.set_value("retention", repr(current))

    # -- what no task's row leads to

    async def delete_leftovers(self) -> None:
        """Delete old callbacks, idempotency keys, webhooks, logins and files without a row, a few hundred at a time."""
        now, tables = self.clock.now(), self.tables
        before = now - self.policy.retention_seconds
        await _repeat_in_batches(tables.callbacks.delete_before, before)
        await _repeat_in_batches(tables.idempotency.delete_before, before)
        await _repeat_in_batches(tables.answer_senders.delete_before, before)
        await _repeat_in_batches(tables.deliveries.delete_before, before)
        await _repeat_in_batches(tables.batches.delete_before, before)
        await _repeat_in_batches(tables.conversations.delete_idle, before)
        await _repeat_in_batches(tables.ledger.delete_older, now)
        await _repeat_in_batches(tables.sessions.delete_expired, now)
        await _repeat_in_batches(tables.login_attempts.delete_forgotten, now)
        await _repeat_in_batches(tables.login_clients.delete_older, now)
        await tables.provider_keys.delete_unused()
        await tables.budgets.delete_older(now)
        await _repeat_in_batches(tables.owner_usage.delete_older, now)
        for uploads in (tables.uploaded_files, tables.resumable_uploads):
            await _repeat_in_batches(partial(self._delete_uploads, uploads), before)
        if await tables.periodic_jobs.try_acquire("sweep", now=now, every=SWEEP_SECONDS):
            await self.sweep(older_than=SWEEP_SECONDS)
            await self.retire_ownerless_keys()
            await self.unpin_ownerless()

    async def unpin_ownerless(self) -> None:
        """Unpin what nobody can unpin: the API key that pinned it is revoked, and belonged to no user."""
        await self.tables.task_retention.unpin_ownerless(self.policy.retention_seconds)
        await self.tables.conversations.unpin_ownerless()

    async def retire_ownerless_keys(self) -> None:
        """Retire the provider keys of owners who are deleted, once their orders are submitted."""
        keys = self.tables.provider_keys
        for key in await keys.list_ownerless(ROWS_PER_STATEMENT):
            with contextlib.suppress(Stale):  # its owner is back, or another process was faster
                await self.tables.database.transact(*keys.retire_key(key, self.clock.now()))

    async def _delete_uploads(self, rows: UploadedFiles | ResumableUploads, before: float, limit: int) -> int:
        """Delete what callers uploaded before a moment; return the number."""
        owners = await rows.owners_before(before, limit)
        for owner in owners:  # bytes first: after an error in between, a row leads the next run to them
            await self.blobs.delete(owner)
        if owners:
            await rows.delete_of_owners(owners)
        return len(owners)

    async def delete_leftovers_once(self) -> None:
        """Do the same, unless another process did it within the last minute."""
        jobs = self.tables.periodic_jobs
        if await jobs.try_acquire("housekeeping", now=self.clock.now(), every=HOUSEKEEPING_SECONDS):
            await self.delete_leftovers()

    async def sweep(self, older_than: float) -> int:
        """Delete files without a row, whose writer died before it wrote the row; return the number of owners."""
        await self.blobs.delete_stale_drafts(older_than)
        owners = await self.blobs.list_owners(older_than, await created_at(self.tables.database))
        strays = await self.find_strays(owners)
        if len(strays) > MAX_PLAUSIBLE_STRAYS and len(strays) > len(owners) / 2:
            log.error("most images have no row: is this the right database? None is deleted", action="sweep_refused")
            return 0
        for owner in strays:
            await self.blobs.delete(owner)
        return len(strays)

    async def find_strays(self, owners: Sequence[str]) -> list[str]:
        """Return the owners without a row or link, and without an unexpired task, which may still get its row."""
        strays: list[str] = []
        for start in range(0, len(owners), ROWS_PER_STATEMENT):
            batch = owners[start : start + ROWS_PER_STATEMENT]
            with_images = await self.tables.images.owners_with_images(batch)
            active = await self.tables.task_retention.active_owners(batch)
            with_files = await self.tables.uploaded_files.owners_with_files(batch)
            uploading = await self.tables.resumable_uploads.owners_with_uploads(batch)
            known = with_images | active | with_files | uploading | await self._find_linked(batch)
            strays += [owner for owner in batch if owner not in known]
        return strays


async def _repeat_in_batches(delete: Callable[[float, int], Awaitable[int]], moment: float) -> None:
    while await delete(moment, ROWS_PER_STATEMENT) == ROWS_PER_STATEMENT:
        pass
