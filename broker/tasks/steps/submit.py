"""The step of QUEUED: submit an order to its provider, once."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import partial
from typing import Final, NamedTuple, TypeVar

from broker.errors import ProviderError, SinkError
from broker.logs import log
from broker.orders import Order
from broker.providers.base import Provider
from broker.reports import Failed, Report
from broker.tasks import lifecycle
from broker.tasks.accounts.pools import ProviderAccounts
from broker.tasks.lifecycle import Changes
from broker.tasks.orders import OrderBuilder
from broker.tasks.result_sink import SinkFactory, sink_failure
from broker.tasks.submissions import SubmissionQueue, account_limits, decide_cooldown
from broker.tasks.transitions import Transitions
from storage.attempts import Attempt
from storage.errors import Stale, StorageError
from storage.ids import is_own_account, provider_of
from storage.limits.provider_limits import SET_ASIDE_REASONS, ProviderLimits
from storage.sql.database import Statement
from storage.sql.rows import changed_row, new_row
from storage.states import TaskState
from storage.tasks import DUE_CHANNEL, Task

T = TypeVar("T")

STORE_RETRY_SECONDS: Final = 0.5
MAX_RESERVATIONS: Final = 2
"""Reservations of capacity at a time: they wait for each other, and each holds a database connection."""


class PreparedSubmission(NamedTuple):
    """A submission whose intent is still to be written."""

    task: Task
    """Queued, under a lease of this process."""
    order: Order
    provider: Provider
    attempt: Attempt
    callback_url: str | None
    """The URL that the provider calls; None if it does not."""
    intent: Changes
    row: Task
    """The task with the intent."""


class BegunSubmission(NamedTuple):
    """A submission whose intent is durable."""

    task: Task
    callback_url: str | None
    """The URL that the provider calls; None if it does not."""
    attempt: Attempt | None = None
    """None if the task was read again, and may have changed since."""
    errors: int | None = None
    """Failed submissions in a row of its key before it; None if unknown."""


@dataclass(frozen=True, kw_only=True)
class SubmitStep:
    """Submits orders to providers."""

    limits: ProviderLimits
    accounts: ProviderAccounts
    queue: SubmissionQueue
    orders: OrderBuilder
    sinks: SinkFactory
    transitions: Transitions
    usd_per_unit: Callable[[str], float | None]
    """Provider → value of its unit in USD; None if unknown."""
    callback_url: Callable[[str, str, int], str | None]
    """(provider, task, attempt): return the URL, with its token, that the provider calls; None without a public URL."""
    reservations: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(MAX_RESERVATIONS))

    async def run(self, task: Task) -> None:
        """Submit the order of a task.

        1. Fail if it waited too long. 2. Move on if its provider takes no orders now and another one does; fail if its
        account was removed and there is no other. 3. Choose the key. 4. Upload references, which is free, before the
        intent. 5. Write the intent, if the key has capacity. 6. Send the one request that may cost money. 7. Store the
        response.
        """
        if self.transitions.clock.now() >= task.deadline_at:
            await self.transitions.apply_own(task, lifecycle.queue_timeout)
            return
        if onward := await self.transitions.router.find_available(task):
            names = {"provider": provider_of(task.provider), "to": provider_of(onward[0])}
            log.info("order moved", action="order_moved", task=task.id, **names)
            await self.transitions.apply_own(task, partial(lifecycle.move_to, onward=onward))
            return
        if is_own_account(task.provider) and await self._is_removed(task.provider):
            await self.transitions.apply_own(task, lifecycle.account_removed)
            return
        provider = await self.queue.choose_account(task.provider)
        order = None if provider is None else await self._prepare_order(task, provider)
        if provider is None:
            await self.transitions.release(task)
        elif order is not None and (begun := await self._begin_submission(task, order, provider)) is not None:
            await self._submit_order(begun, order, provider)

    async def _is_removed(self, account: str) -> bool:
        pool = await self.accounts.find_pool(account)
        return pool is None or pool.is_removed

    async def _prepare_order(self, task: Task, provider: Provider) -> Order | None:
        """Return the order with references that the provider can read; None if that failed, which is recorded."""
        built = await self.orders.build_order(task, keeps_history=provider.keeps_history)
        order: Order | Failed = await self._find_lack_of_room(provider) or (
            await provider.upload_references(built) if built.references else built
        )
        if not isinstance(order, Failed):
            return order
        log.warning("an order could not be prepared", action="order_not_prepared", task=task.id, code=order.code)
        onward = await self.transitions.router.find_onward(task, order)
        await self.transitions.apply_own(task, partial(lifecycle.upload_failed, report=order, onward=onward))
        return None

    async def _find_lack_of_room(self, provider: Provider) -> Failed | None:
        """Return a failure if the response to the submission may have the result, and it could not be stored now."""
        if not provider.holds_submit:
            return None
        try:
            await self.sinks.check()
        except StorageError as error:
            return Failed(code="storage_full", message=str(error), retryable=True, billed="no", sent=False)
        return None

    # -- with the intent in the transaction that creates the task

    async def prepare_new(self, task: Task) -> PreparedSubmission | None:
        """Return the submission of a task to be created, leased and without references; None without a usable key."""
        provider = await self.queue.choose_account(task.provider)
        if provider is None:
            return None
        return self._prepare(task, await self.orders.build_order(task, keeps_history=provider.keeps_history), provider)

    def reserve(self, prepared: PreparedSubmission) -> list[Statement]:
        """Return the statements that write the attempt, behind the one that writes the row with the intent.

        The first one returns `errors`, as in `BegunSubmission`. `Stale` if the key has no capacity.
        """
        return self.limits.reserve_submission(prepared.attempt, account_limits(prepared.provider))

    async def submit_prepared(self, prepared: PreparedSubmission, errors: int | None) -> None:
        """Submit the order of a new task whose intent is written. errors: as in `BegunSubmission`."""
        self.transitions.record_change(prepared.task, prepared.intent)
        await self._submit_order(_begun(prepared, errors), prepared.order, prepared.provider)

    async def submit_if_written(self, prepared: PreparedSubmission) -> None:
        """Do the same if the transaction is committed that its caller did not see the end of."""
        if (begun := await self._find_written(prepared)) is not None:
            self.transitions.record_change(prepared.task, prepared.intent)
            await self._submit_order(begun, prepared.order, prepared.provider)

    async def withdraw(self, prepared: PreparedSubmission) -> None:
        """Put the order of a new task back into the queue, if its intent is written: this process stops.

        It was not sent, and without this its outcome would count as unknown.
        """
        if (begun := await self._find_written(prepared)) is not None:
            self.transitions.record_change(prepared.task, prepared.intent)
            message = "the broker stopped before the order was sent"
            report = Failed(code="provider_unavailable", message=message, retryable=True, billed="no", sent=False)
            await self.transitions.apply_report(begun.task, report, begun.task.attempt)

    async def _find_written(self, prepared: PreparedSubmission) -> BegunSubmission | None:
        await self.transitions.tasks.database.flush()
        return await self._find_intent(prepared.task, prepared.attempt.number)

    # -- with the intent in a transaction of its own

    async def _begin_submission(self, task: Task, order: Order, provider: Provider) -> BegunSubmission | None:
        """Write the intent; return what was written, or None if the key has no capacity or the task changed."""
        prepared = self._prepare(task, order, provider)
        try:
            # one writer orders the transactions of SQLite by itself, and writes many of them together
            async with self.reservations if self.limits.database.skip_locked else nullcontext():
                errors = await self.transitions.begin_submission(task, prepared.intent, self.reserve(prepared))
            begun: BegunSubmission | None = _begun(prepared, errors)
        except (Stale, StorageError):
            begun = await self._find_intent(task, prepared.attempt.number)
        if begun is None:
            self.accounts.forget(task.provider)  # its key may have been removed
            await self.transitions.release(task)
            return None
        self.transitions.record_change(task, prepared.intent)
        return begun

    def _prepare(self, task: Task, order: Order, provider: Provider) -> PreparedSubmission:
        now, number = self.transitions.clock.now(), task.attempt + 1
        columns = {
            "task_id": task.id,
            "number": number,
            "provider": task.provider,
            "key_id": provider.key_id,
            "sent_at": now,
            "price": provider.price(order),
            "usd_per_unit": self.usd_per_unit(provider.name),
        }
        url = self.callback_url(task.provider, task.id, number)
        expects_callback = url is not None and provider.expects_callback(order)
        intent = lifecycle.begin_submission(
            task, key_id=provider.key_id, expects_callback=expects_callback, now=now, policy=self.transitions.policy
        )
        return PreparedSubmission(
            task=task,
            order=order,
            provider=provider,
            attempt=new_row(Attempt, columns),
            callback_url=url if expects_callback else None,
            intent=intent,
            row=changed_row(task, {**intent.task, "version": task.version + 1}),
        )

    async def _find_intent(self, task: Task, number: int) -> BegunSubmission | None:
        """Return the submission if the row says that it was begun here, although the transaction did not."""
        row = await _retry_storage(lambda: self.transitions.tasks.get(task.id), task)
        # under another lease it is the intent of another worker
        if row and (row.state, row.attempt, row.leased_by) == (TaskState.SUBMITTING, number, task.leased_by):
            url = self.callback_url(row.provider, row.id, number) if row.expects_callback else None
            return BegunSubmission(task=row, callback_url=url)
        return None

    async def _submit_order(self, intent: BegunSubmission, order: Order, provider: Provider) -> None:
        task = intent.task
        begun = self.transitions.clock.monotonic()
        report: Report
        try:
            report = await provider.submit(order, intent.callback_url, self.sinks.for_task(task.id))
        except SinkError as error:
            report = sink_failure(error)
        except ProviderError as error:
            self._record_request(provider, "unknown", begun)
            log.warning("submission with unknown outcome", action="submit_unknown", task=task.id, why=error.summary)
            await self._update_cooldown(task, provider, None)
            await self.transitions.record_unknown(task)
            return
        self._record_request(provider, _outcome_label(report), begun)
        if isinstance(report, Failed):  # before the order is queued again, which may choose the same key
            await _retry_storage(lambda: self._update_cooldown(task, provider, report), task)
        # a success ends the cooldown of its key, also one that began after the intent
        ending = [] if isinstance(report, Failed) else [self.limits.end_cooldown(task.provider, provider.key_id)]
        storing = partial(
            self.transitions.apply_report,
            task,
            report,
            task.attempt,
            attempt=intent.attempt,
            also=ending,
            is_paid=True,
        )
        await _retry_storage(storing, task, job=report.job_id)
        if ending and intent.errors != 0:
            self.transitions.router.expire_statuses()
            self.transitions.tasks.database.notify(DUE_CHANNEL)

    def _record_request(self, provider: Provider, outcome: str, begun: float) -> None:
        clock, metrics = self.transitions.clock, self.transitions.metrics
        metrics.submissions.labels(provider.name, outcome).inc()
        metrics.submission_seconds.labels(provider.name).observe(clock.monotonic() - begun)

    async def _update_cooldown(self, task: Task, provider: Provider, report: Failed | None) -> None:
        clock, policy = self.transitions.clock, self.transitions.policy
        database, name, key_id = self.transitions.tasks.database, task.provider, provider.key_id
        failures = await self.limits.count_errors(name, key_id)
        decision = decide_cooldown(report, failures, clock.now(), policy)
        if decision is not None:
            # the answer to the order is stored after it, so it is no less urgent
            starting = self.limits.start_cooldown(name, key_id, decision.until, decision.reason)
            await database.transact(starting._replace(may_use_reserve=True))
            self.transitions.router.expire_statuses()
            if decision.reason in SET_ASIDE_REASONS:
                record = log.info if is_own_account(name) else log.error  # only its user can repair a key of a user
                record(
                    "a key was set aside: the provider refuses it, or its account is empty",
                    action="key_set_aside",
                    provider=provider.name,
                    key_id=key_id,
                    code=decision.reason,
                )
        elif failures:
            ending = self.limits.end_cooldown(name, key_id)
            await database.transact(ending._replace(may_use_reserve=True), wake=(DUE_CHANNEL,))
            self.transitions.router.expire_statuses()


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


def _begun(prepared: PreparedSubmission, errors: int | None) -> BegunSubmission:
    return BegunSubmission(
        task=prepared.row, callback_url=prepared.callback_url, attempt=prepared.attempt, errors=errors
    )


def _outcome_label(report: Report) -> str:
    if isinstance(report, Failed) and report.job_id is None:
        return "refused" if report.sent else "not_sent"
    return "accepted"
