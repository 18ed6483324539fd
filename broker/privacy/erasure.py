"""Erasure of tasks: nothing of them is left that tells of their owner; what they cost stays, under one anonymous owner.

A task that runs is canceled at its provider first, and what has been received about it is counted. Repeated, from any
point, erasure goes on where it stopped: each task is erased in one transaction, which takes it from its owner.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from broker.logs import log, safe_exc_info
from broker.tasks import lifecycle
from broker.tasks.cancellation import TaskCanceler
from broker.tasks.steps.callbacks import CallbackStep
from broker.tasks.transitions import Transitions
from storage.blobs.store import BlobStore
from storage.errors import StorageError
from storage.ids import reference_owner
from storage.sql.rows import in_clause
from storage.states import ACTIVE_STATES
from storage.tables import Tables
from storage.tasks import Task

BATCH_SIZE: Final = 100
"""Tasks read in one go."""
CONCURRENCY: Final = 8
"""Tasks erased at a time; most of the time is the providers'."""
CANCEL_SECONDS: Final = 10.0
"""For a provider to cancel a job."""


@dataclass(frozen=True, kw_only=True)
class TaskEraser:
    """Erases the tasks of an owner."""

    tables: Tables
    blobs: BlobStore
    transitions: Transitions
    canceler: TaskCanceler
    callback_step: CallbackStep

    async def erase_tasks(self, owner: str) -> int:
        """Erase all tasks of an owner, in any state; return their number. The owner must not be able to order more."""
        erased = 0
        for queued_only in (True, False):  # first those that could still be submitted
            while tasks := await self.tables.task_retention.list_of_owner(
                owner, queued_only=queued_only, limit=BATCH_SIZE
            ):
                count = await self._erase_all(tasks)
                if not count:
                    raise StorageError("the tasks of a deleted account could not be erased")
                erased += count
        return erased

    async def _erase_all(self, tasks: Sequence[Task]) -> int:
        """Erase tasks, a few at a time; return the number. The first error is raised when all have been tried."""
        slots = asyncio.Semaphore(CONCURRENCY)

        async def erase(task: Task) -> bool:
            async with slots:
                return await self._erase_task(task)

        outcomes = await asyncio.gather(*map(erase, tasks), return_exceptions=True)
        for outcome in outcomes:
            if isinstance(outcome, BaseException):
                raise outcome
        return sum(map(bool, outcomes))

    async def _erase_task(self, task: Task) -> bool:
        """1. Cancel its job. 2. Count what callbacks say. 3. Erase row and rows about it. 4. Delete its files.

        A task whose files are left by a process that died here is an expired one, whose files retention deletes.
        Return False if another process changed it all the time.
        """
        if task.state in ACTIVE_STATES:
            await self._cancel_job(task)
        await self._process_callbacks(task.id)
        clock, tables = self.transitions.clock, self.tables
        erased = await self.transitions.apply(
            task,
            lambda row, _: lifecycle.erase(row, clock.now()),
            also=(
                tables.attempts.delete_words_of_expired(in_clause([task.id])),
                tables.attempts.forget_account(task.id),
                tables.images.delete_of_expired(in_clause([task.id])),
                tables.callbacks.delete_of_task(task.id),
            ),
            is_leased=False,
        )
        await self._delete_files(task)
        return erased is not None

    async def _cancel_job(self, task: Task) -> None:
        try:
            async with asyncio.timeout(CANCEL_SECONDS):
                await self.canceler.cancel_job(task)
        except TimeoutError:
            log.info("the provider did not cancel a job in time", action="provider_cancel_failed", why="too slow")

    async def _process_callbacks(self, task_id: str) -> None:
        try:
            await self.callback_step.process_callbacks(task_id)
        except StorageError:
            raise
        except Exception as error:  # one that cannot be processed must not keep the data of an account
            log.error(
                "a callback of an erased task was not processed",
                action="callback_not_processed",
                exc_info=safe_exc_info(error),
            )

    async def _delete_files(self, task: Task) -> None:
        """Delete the results, and the references of the request, all of whose tasks belong to the owner."""
        references = reference_owner(task.batch)
        await asyncio.gather(self.blobs.delete(task.id), self.blobs.delete(references))
        await self.tables.database.transact(self.tables.images.delete_of_owners([task.id, references]))
