"""The step of the callback inbox: process callbacks that were acknowledged before."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Final

from broker.net.documents import parse_off_loop
from broker.providers.base import Provider
from broker.reports import Finished, Pending, Report
from broker.tasks.lifecycle import LEARNED_BY_CALLBACK
from broker.tasks.running import NextSteps, RunningStep, RunningSteps
from broker.tasks.transitions import Transitions
from storage.callbacks import StoredCallback
from storage.errors import Stale
from storage.sql.database import Statement
from storage.sql.rows import changed_row
from storage.states import TaskState
from storage.tables import Tables
from storage.tasks import DUE_CHANNEL, Task
from webhooks.redaction import MASK
from webhooks.verification import MalformedBody, Verification, parse_body

CONCURRENCY: Final = 64
RETRY_SECONDS: Final = 1.0
SUBMISSION_PATIENCE_SECONDS: Final = 0.25
"""A callback waits so long for the answer to the submission, which is usually on its way: both would change the row."""


@dataclass(frozen=True, kw_only=True)
class CallbackStep:
    """Processes the stored callbacks of a task."""

    tables: Tables
    providers: Mapping[str, Provider]
    transitions: Transitions

    async def process_callbacks(self, task_id: str) -> None:
        """Process the stored callbacks of a task, in the order of arrival."""
        for callback in await self.tables.callbacks.list_unprocessed(task_id):
            await self.process_callback(callback, await self.tables.tasks.get(task_id))

    async def process_callback(self, callback: StoredCallback, task: Task | None) -> None:
        """Process one stored callback. task: the one that it concerns; its row may have changed since it was read."""
        callbacks = self.tables.callbacks
        is_deleted = task is None or task.state == TaskState.EXPIRED
        mark = callbacks.mark_without_content if is_deleted else callbacks.mark_processed
        mark_processed = mark(callback, self.transitions.clock.now())
        if task is None:
            with contextlib.suppress(Stale):
                await self.tables.database.transact(mark_processed)
            return
        await self._apply_report(callback, task, await self.report_of(task, callback), mark_processed)

    async def store_processed(self, callback: StoredCallback, task: Task, report: Report | None) -> bool:
        """Store a proven callback and what it changes in one transaction; return whether that was done.

        task: as when it was read, and not deleted then. report: None to read it from the callback.
        """
        found = await self.report_of(task, callback) if report is None else _usable_report(task, report)
        processed = changed_row(callback, {"processed_at": self.transitions.clock.now()})
        insert = self.tables.callbacks.insert_callback(processed)
        return await self._apply_report(callback, task, found, insert)

    async def _apply_report(self, callback: StoredCallback, task: Task, report: Report, also: Statement) -> bool:
        """Apply the report of a callback and run one more statement; return whether both are durable."""
        row = await self.transitions.apply_report(
            task,
            report,
            callback.attempt or await self.attempt_number(task, report),
            also=(also,),
            is_leased=False,
            learned_by=LEARNED_BY_CALLBACK,
        )
        if row is not None and row.state == TaskState.EXPIRED != task.state:
            await self.tables.database.transact(self.tables.callbacks.delete_of_expired(task.id))
        return row is not None

    async def attempt_number(self, task: Task, report: Report) -> int | None:
        """Return the attempt with the job of a callback whose URL names none; None if there is none."""
        attempts = await self.tables.attempts.list_of_task(task.id) if report.job_id else []
        return next((attempt.number for attempt in attempts if attempt.job_id == report.job_id), None)

    async def report_of(self, task: Task, callback: StoredCallback) -> Report:
        """Return the report in a callback; of an unverified one only that the provider is to be checked now."""
        provider = self.providers.get(callback.provider)
        if callback.verification != Verification.ACCEPT or provider is None:
            return Pending(check_in=0)
        try:
            report = await parse_off_loop(len(callback.body), partial(_parse_report, provider, callback))
        except MalformedBody:
            return Pending(check_in=0)
        return _usable_report(task, report)


def _usable_report(task: Task, report: Report) -> Report:
    """Return the report of a proven callback; only that the provider is to be checked now if its content is useless.

    That is so if redaction took secrets out of it: a masked URL leads to no image.
    """
    if isinstance(report, Finished) and MASK in "\n".join(report.outputs):
        return Pending(check_in=0)
    return replace(report, job_id=None) if report.job_id == task.id else report


def _parse_report(provider: Provider, callback: StoredCallback) -> Report:
    """Raises `MalformedBody`."""
    return provider.parse_callback(parse_body(callback.body.encode("utf-8", "replace")))


@dataclass(kw_only=True)
class CallbackQueue:
    """The callbacks that this process processes: those that it received, and all others that are in the inbox."""

    step: CallbackStep
    running: RunningSteps
    next_steps: NextSteps
    _task_ids: set[str] = field(default_factory=set)
    """Tasks whose callbacks are being processed."""
    _has_more: bool = False
    """A callback was left in the inbox until one of these has ended."""

    @property
    def count(self) -> int:
        """Number of tasks whose callbacks are being processed."""
        return len(self._task_ids)

    @property
    def is_open(self) -> bool:
        """Return whether a worker runs in this process, so that `take` is of use."""
        return self.next_steps.is_open

    async def read_task(self, task_id: str) -> Task | None:
        """Return the task of a callback that has just arrived; if it is being submitted here, as it is after that."""
        await self.running.wait_for_submission(task_id, SUBMISSION_PATIENCE_SECONDS)
        return await self.step.transitions.read_task(task_id)

    async def store_processed(self, callback: StoredCallback, task: Task, report: Report | None) -> bool:
        """Store a proven callback together with what it changes; return False if it is to be stored by itself.

        That is so while no worker runs here, after the task or the callbacks of it that came before, and after an
        error, which must not lose the callback.
        """
        if not self.is_open or task.id in self._task_ids or task.state == TaskState.EXPIRED:
            return False
        stored: list[bool] = []

        async def store() -> None:
            stored.append(await self.step.store_processed(callback, task, report))

        await self.running.contain_errors(store(), task.id, "callbacks")
        return any(stored)

    def take(self, callback: StoredCallback, task: Task) -> None:
        """Process a callback that was just stored, or leave it to the next look into the inbox."""
        if self.is_open and self._may_begin(task.id):
            self._begin(task.id, partial(self.step.process_callback, callback, task))
        else:
            self.running.tasks.database.notify(DUE_CHANNEL)

    async def start_due(self) -> None:
        """Begin to process what is in the inbox, one step per task."""
        callbacks = self.step.tables.callbacks
        for task_id in await callbacks.tasks_with_unprocessed(CONCURRENCY + len(self._task_ids)):
            if self._may_begin(task_id):
                self._begin(task_id, partial(self.step.process_callbacks, task_id))

    def _may_begin(self, task_id: str) -> bool:
        may_begin = task_id not in self._task_ids and len(self._task_ids) < CONCURRENCY
        self._has_more |= not may_begin
        return may_begin

    def _begin(self, task_id: str, work: Callable[[], Awaitable[None]]) -> None:
        self._task_ids.add(task_id)
        step = RunningStep(task_ids=(task_id,), is_quiet=True)
        self.running.start(self._process(task_id, work), "callbacks", step)

    async def _process(self, task_id: str, work: Callable[[], Awaitable[None]]) -> None:
        """Process callbacks of a task. After an error they stay in the inbox and are tried again a little later."""
        try:
            succeeded = await self.running.contain_errors(work(), task_id, "callbacks")
        except BaseException:
            self._end(task_id)
            raise
        if succeeded:
            self._end(task_id)
        else:
            self._has_more = True
            asyncio.get_running_loop().call_later(RETRY_SECONDS, self._end, task_id)

    def _end(self, task_id: str) -> None:
        self._task_ids.discard(task_id)
        if self._has_more:
            self._has_more = False
            self.running.tasks.database.notify(DUE_CHANNEL)
