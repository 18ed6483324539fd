"""The step of WAITING: query the provider for the state of a job; and the switch from callbacks to checks."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, replace
from functools import partial
from typing import Final

from broker.errors import ProviderError, SinkError
from broker.logs import log
from broker.reports import Pending, Report
from broker.tasks import lifecycle
from broker.tasks.accounts.pools import ProviderAccounts
from broker.tasks.result_sink import SinkFactory, sink_failure
from broker.tasks.transitions import Transitions
from storage.callbacks import Callbacks
from storage.tasks import Task

SWITCH_BATCH_SIZE: Final = 50


@dataclass(frozen=True, kw_only=True)
class CheckStep:
    """Checks jobs at their provider."""

    callbacks: Callbacks
    accounts: ProviderAccounts
    sinks: SinkFactory
    transitions: Transitions

    async def run(self, task: Task) -> None:
        provider, metrics = await self.accounts.find_bound(task), self.transitions.metrics
        if provider is None or task.job_id is None:
            await self.transitions.apply_own(task, lifecycle.check_failed)
            return
        try:
            report: Report = await provider.check(task.job_id, self.sinks.for_task(task.id))
        except SinkError as error:
            log.warning("a result could not be stored", action="result_not_stored", task=task.id, code=error.code)
            if error.code == "storage_full":  # the provider keeps it, and a disk recovers
                await self.transitions.apply_own(task, lifecycle.check_failed)
                return
            report = sink_failure(error)
        except ProviderError as error:
            metrics.checks.labels(provider.name, "error").inc()
            log.info("check failed", action="check_failed", task=task.id, why=error.summary)
            await self.transitions.apply_own(task, partial(lifecycle.check_failed, retry_in=error.retry_in))
            return
        metrics.checks.labels(provider.name, type(report).__name__.lower()).inc()
        ended = not isinstance(report, Pending)
        await self.transitions.apply_report(
            task,
            replace(report, job_id=task.job_id),
            task.attempt,
            outlives_lease=ended,
            learned_by=await self._learned_by(task) if ended else None,
        )

    async def _learned_by(self, task: Task) -> str:
        """Return how the end of a checked job counts in the ledger: an accepted callback has priority."""
        if not task.expects_callback:
            return lifecycle.LEARNED_BY_POLL
        has_callback = await self.callbacks.has_accepted(task.id, task.attempt)
        return lifecycle.LEARNED_BY_CALLBACK if has_callback else lifecycle.LEARNED_BY_CHECK


async def switch_to_polling(transitions: Transitions, sent_before: float) -> int:
    """Switch every waiting task whose current attempt was sent before this moment to checks; return their number."""
    count, decide = 0, lifecycle.switch_to_polling
    while waiting := await transitions.tasks.awaiting_callback(sent_before, SWITCH_BATCH_SIZE):
        await asyncio.gather(*(transitions.apply_own(task, decide, is_leased=False) for task in waiting))
        count += len(waiting)
    return count
