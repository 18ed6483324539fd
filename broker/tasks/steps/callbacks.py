"""The step of the callback inbox: process callbacks that were acknowledged before."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Final

from broker.net.documents import parse_off_loop
from broker.providers.base import Provider
from broker.reports import Finished, Pending, Report
from broker.tasks.lifecycle import LEARNED_BY_CALLBACK
from broker.tasks.running import RunningStep, RunningSteps
from broker.tasks.transitions import Transitions
from storage.callbacks import StoredCallback
from storage.sql.database import Stale
from storage.states import TaskState
from storage.tables import Tables
from storage.tasks import Task
from webhooks.redaction import MASK
from webhooks.verification import MalformedBody, Verification, parse_body

CONCURRENCY: Final = 32
RETRY_SECONDS: Final = 1.0


@dataclass(frozen=True, kw_only=True)
class CallbackStep:
    """Processes the stored callbacks of a task."""

    tables: Tables
    providers: Mapping[str, Provider]
    transitions: Transitions

    async def process_callbacks(self, task_id: str) -> None:
        for callback in await self.tables.callbacks.list_unprocessed(task_id):
            task = await self.tables.tasks.get(task_id)
            is_deleted = task is None or task.state == TaskState.EXPIRED
            mark = self.tables.callbacks.mark_without_content if is_deleted else self.tables.callbacks.mark_processed
            mark_processed = mark(callback, self.transitions.clock.now())
            if task is None:
                with contextlib.suppress(Stale):
                    await self.tables.database.transact(mark_processed)
                continue
            report = await self.report_of(task, callback)
            await self.transitions.apply_report(
                task,
                report,
                callback.attempt or await self.attempt_number(task, report),
                also=(mark_processed,),
                is_leased=False,
                learned_by=LEARNED_BY_CALLBACK,
            )

    async def attempt_number(self, task: Task, report: Report) -> int | None:
        """Return the attempt with the job of a callback whose URL names none; None if there is none."""
        attempts = await self.tables.attempts.list_of_task(task.id) if report.job_id else []
        return next((attempt.number for attempt in attempts if attempt.job_id == report.job_id), None)

    async def report_of(self, task: Task, callback: StoredCallback) -> Report:
        """Return the report in a callback; of an unverified one only that the provider is to be checked now.

        The same for one that the redaction of secrets made useless: a masked URL leads to no image.
        """
        provider = self.providers.get(callback.provider)
        if callback.verification != Verification.ACCEPT or provider is None:
            return Pending(check_in=0)
        try:
            report = await parse_off_loop(len(callback.body), partial(_parse_report, provider, callback))
        except MalformedBody:
            return Pending(check_in=0)
        if isinstance(report, Finished) and any(MASK in url for url in report.outputs):
            return Pending(check_in=0)
        return replace(report, job_id=None) if report.job_id == task.id else report


def _parse_report(provider: Provider, callback: StoredCallback) -> Report:
    """Raises `MalformedBody`."""
    return provider.parse_callback(parse_body(callback.body.encode("utf-8", "replace")))


@dataclass(kw_only=True)
class CallbackQueue:
    """The tasks with unprocessed callbacks."""

    step: CallbackStep
    running: RunningSteps
    _task_ids: set[str] = field(default_factory=set)
    """Tasks whose callbacks are being processed."""

    async def start_due(self) -> None:
        """Begin to process callbacks, one step per task."""
        callbacks = self.step.tables.callbacks
        for task_id in await callbacks.tasks_with_unprocessed(CONCURRENCY + len(self._task_ids)):
            if task_id not in self._task_ids and len(self._task_ids) < CONCURRENCY:
                self._task_ids.add(task_id)
                self.running.start(self._process(task_id), "callbacks", RunningStep(task_ids=(task_id,)))

    async def _process(self, task_id: str) -> None:
        """Process the callbacks of a task. After an error they stay in the inbox and are tried again a little later."""
        succeeded = await self.running.contain_errors(self.step.process_callbacks(task_id), task_id, "callbacks")
        delay = 0.0 if succeeded else RETRY_SECONDS
        asyncio.get_running_loop().call_later(delay, self._task_ids.discard, task_id)
