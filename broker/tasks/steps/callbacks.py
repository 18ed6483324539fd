"""The step of the callback inbox: process callbacks that were acknowledged before."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, replace

from broker.clock import Clock
from broker.providers.base import Provider
from broker.reports import Pending, Report
from broker.tasks.lifecycle import LEARNED_BY_CALLBACK
from broker.tasks.transitions import Transitions
from storage.attempts import Attempts
from storage.callbacks import Callbacks, StoredCallback
from storage.sql.database import Stale
from storage.tasks import Task, Tasks
from webhooks.verification import Verification


@dataclass(frozen=True, kw_only=True)
class CallbackStep:
    """Processes the stored callbacks of a task."""

    clock: Clock
    tasks: Tasks
    attempts: Attempts
    hooks: Callbacks
    providers: Mapping[str, Provider]
    transitions: Transitions

    async def process_callbacks(self, task_id: str) -> None:
        for hook in await self.hooks.list_unprocessed(task_id):
            task = await self.tasks.get(task_id)
            mark_processed = self.hooks.mark_processed(hook, self.clock.now())
            if task is None:
                with contextlib.suppress(Stale):
                    await self.tasks.database.transact(mark_processed)
                continue
            report = self.report_of(task, hook)
            await self.transitions.apply_report(
                task,
                report,
                hook.attempt or await self.attempt_number(task, report),
                also=(mark_processed,),
                is_leased=False,
                learned_by=LEARNED_BY_CALLBACK,
            )

    async def attempt_number(self, task: Task, report: Report) -> int | None:
        """Return the attempt with the job of a callback whose URL names none; None if there is none."""
        attempts = await self.attempts.list_of_task(task.id) if report.job_id else []
        return next((attempt.number for attempt in attempts if attempt.job_id == report.job_id), None)

    def report_of(self, task: Task, hook: StoredCallback) -> Report:
        """Return the report in a callback; of an unverified one only that the provider is to be checked now."""
        provider = self.providers.get(hook.provider)
        if hook.verification != Verification.ACCEPT or provider is None:
            return Pending(check_in=0)
        report = provider.parse_callback(json.loads(hook.body))
        return replace(report, job_id=None) if report.job_id == task.id else report
