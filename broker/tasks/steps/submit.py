"""The step of QUEUED: submit an order to its provider, once."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Final, TypeVar

from broker.errors import ProviderError
from broker.logs import log
from broker.orders import Order
from broker.providers.base import Provider
from broker.reports import Failed, Report
from broker.tasks import lifecycle
from broker.tasks.orders import OrderBuilder
from broker.tasks.submissions import account_limits, cooldown_until
from broker.tasks.transitions import Transitions
from storage.attempts import Attempt
from storage.errors import StorageError
from storage.provider_limits import ProviderLimits
from storage.sql.database import Stale
from storage.states import TaskState
from storage.tasks import DUE_CHANNEL, Task

T = TypeVar("T")

STORE_RETRY_SECONDS: Final = 0.5
MAX_RESERVATIONS: Final = 2
"""Reservations of capacity at a time: they wait for each other, and each holds a database connection."""


@dataclass(frozen=True, kw_only=True)
class SubmitStep:
    """Submits orders to providers."""

    limits: ProviderLimits
    providers: Mapping[str, Provider]
    orders: OrderBuilder
    transitions: Transitions
    callback_url: Callable[[str, str, int], str | None]
    """(provider, task, attempt): return the URL, with its token, that the provider calls; None without a public URL."""
    reservations: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(MAX_RESERVATIONS))

    async def run(self, task: Task) -> None:
        """Submit the order of a task.

        1. Fail if it waited too long. 2. Upload references, which is free, before the intent. 3. Write the intent, if
        the provider has capacity. 4. Send the one request that may cost money. 5. Store the response.
        """
        provider = self.providers.get(task.provider)
        if provider is None or self.transitions.clock.now() >= task.deadline_at:
            await self.transitions.apply_own(task, lifecycle.queue_timeout)
            return
        built = self.orders.build_order(task)
        order = await provider.upload_references(built) if task.references else built
        if isinstance(order, Failed):
            log.warning(
                "references could not be uploaded", action="reference_upload_failed", task=task.id, code=order.code
            )
            await self.transitions.apply_own(task, partial(lifecycle.upload_failed, report=order))
            return
        row = await self._begin_submission(task, provider)
        if row is not None:
            await self._submit_order(row, order, provider)

    async def _begin_submission(self, task: Task, provider: Provider) -> Task | None:
        """Write the intent; return the row with it, or None if the provider has no capacity or the task changed."""
        now, number = self.transitions.clock.now(), task.attempt + 1
        attempt = Attempt(task_id=task.id, number=number, provider=provider.name, key_id=provider.key_id, sent_at=now)
        expects_callback = self.callback_url(task.provider, task.id, number) is not None
        intent = lifecycle.begin_submission(
            task, expects_callback=expects_callback, now=now, policy=self.transitions.policy
        )
        reserving = self.limits.reserve_submission(attempt, account_limits(provider))
        is_written = False
        with contextlib.suppress(Stale, StorageError):  # the row says whether it was written all the same
            async with self.reservations:
                await self.transitions.begin_submission(task, intent, reserving)
            is_written = True
        row = await _retry_storage(lambda: self.transitions.tasks.get(task.id), task)
        current = row if row and (row.state, row.attempt) == (TaskState.SUBMITTING, number) else None
        # under another lease it is the intent of another worker
        if not is_written and (current is None or current.leased_by != task.leased_by):
            await self.transitions.release(task)
            return None
        self.transitions.record_change(task, intent)
        return current

    async def _submit_order(self, task: Task, order: Order, provider: Provider) -> None:
        url = self.callback_url(task.provider, task.id, task.attempt) if task.expects_callback else None
        begun = self.transitions.clock.monotonic()
        try:
            report = await provider.submit(order, url)
        except ProviderError as error:
            self._record_request(provider, "unknown", begun)
            log.warning("submission with unknown outcome", action="submit_unknown", task=task.id, why=error.summary)
            await self._update_cooldown(provider, None)
            await self.transitions.apply_own(task, partial(lifecycle.outcome_unknown, attempt=task.attempt))
            return
        self._record_request(provider, _outcome_label(report), begun)
        storing = partial(self.transitions.apply_report, task, report, task.attempt, is_paid=True)
        await _retry_storage(storing, task, job=report.job_id)
        await self._update_cooldown(provider, report)

    def _record_request(self, provider: Provider, outcome: str, begun: float) -> None:
        clock, metrics = self.transitions.clock, self.transitions.metrics
        metrics.submissions.labels(provider.name, outcome).inc()
        metrics.submission_seconds.labels(provider.name).observe(clock.monotonic() - begun)

    async def _update_cooldown(self, provider: Provider, report: Report | None) -> None:
        clock, policy = self.transitions.clock, self.transitions.policy
        failures = (await self.limits.get_load(provider.name, clock.now())).errors
        until = cooldown_until(report, failures, clock.now(), policy)
        if until is not None:
            await self.transitions.tasks.database.transact(self.limits.start_cooldown(provider.name, until))
        elif failures:
            await self.transitions.tasks.database.transact(self.limits.end_cooldown(provider.name), wake=(DUE_CHANNEL,))


async def _retry_storage(call: Callable[[], Awaitable[T]], task: Task, *, job: str | None = None) -> T:
    """Call the database, again and again while it fails.

    An intent that is not read would never be submitted, and the provider's response is worth money.
    """
    while True:
        try:
            return await call()
        except StorageError as error:
            log.error("the database fails", action="store_retry", task=task.id, job=job, why=str(error))
            await asyncio.sleep(STORE_RETRY_SECONDS)


def _outcome_label(report: Report) -> str:
    if isinstance(report, Failed) and report.job_id is None:
        return "refused" if report.sent else "not_sent"
    return "accepted"
