"""Transitions: the only way in which a task changes.

A decision is applied to the row as it is now, in one compare-and-set transaction: row, ledger line, budget and quotas,
outbox event. When another process was quicker, the same pure decision is made again on the row as it is then.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final, NamedTuple

from broker.clock import Clock
from broker.logs import log
from broker.metrics import Metrics
from broker.notifications.outbox import Outbox, OutgoingEvents
from broker.reports import Failed, Report
from broker.tasks import lifecycle
from broker.tasks.lifecycle import LEARNED_BY_CHECK, Changes
from broker.tasks.policy import TaskPolicy
from broker.tasks.routing import Router
from broker.tasks.running import MAX_SLEEP_SECONDS, NextSteps
from storage.attempts import Attempt, Attempts
from storage.errors import Stale
from storage.ids import provider_of
from storage.images import Images, StoredImage
from storage.limits.settlement import settle_task
from storage.sql.database import Statement
from storage.sql.rows import changed_row
from storage.states import TaskState
from storage.tasks import DUE_CHANNEL, Lease, Task, Tasks, task_channel

MAX_GUARDED: Final = 10
"""Tries to write the end of a task while others of its request end, which each of them does once."""

MAX_RECENT_SUBMISSIONS: Final = 64

ENDED_CHANNEL: Final = "ended"
"""Channel that wakes what waits for the end of tasks, whichever these are."""
JOB_STATES: Final = frozenset({TaskState.SUBMITTING, TaskState.WAITING})
"""States of tasks that occupy a place at their provider."""

Decision = Callable[[Task, Attempt | None], Changes]
"""Returns what to change, given the row and one attempt as they are now."""


class AttemptSubject(NamedTuple):
    """The attempt that a decision is about."""

    number: int | None = None
    """None: the current one."""
    known: Attempt | None = None
    """Its row, as it was with the version of the task on which the decision is made first."""


@dataclass(frozen=True)
class RecentSubmissions:
    """Tasks that wait for a callback since this process submitted them, the newest ones, with their attempts.

    As they were written here: another process may have changed them. Each change of an attempt changes the version of
    its task.
    """

    _found: dict[str, tuple[Task, Attempt]] = field(default_factory=dict)

    def get_task(self, task_id: str) -> Task | None:
        return self._found[task_id][0] if task_id in self._found else None

    def get_attempt(self, task: Task, number: int) -> Attempt | None:
        """Return an attempt as it is with this version of the task; None if it is to be read."""
        found = self._found.get(task.id)
        return found[1] if found and (found[0].version, found[1].number) == (task.version, number) else None

    def record(self, after: Task, attempt: Attempt | None, changes: Mapping[str, Any]) -> None:
        """Keep a task that was changed and waits now, with the attempt that the change was about; drop any other."""
        self._found.pop(after.id, None)
        if attempt and after.state == TaskState.WAITING and after.expects_callback:
            self._found[after.id] = (after, changed_row(attempt, changes))
            if len(self._found) > MAX_RECENT_SUBMISSIONS:
                del self._found[next(iter(self._found))]


@dataclass(frozen=True, kw_only=True)
class Transitions:
    """Applies decisions to tasks."""

    clock: Clock
    policy: TaskPolicy
    tasks: Tasks
    attempts: Attempts
    images: Images
    outbox: Outbox
    metrics: Metrics
    router: Router
    next_steps: NextSteps
    recent_submissions: RecentSubmissions = field(default_factory=RecentSubmissions)

    async def read_task(self, task_id: str) -> Task | None:
        """Return a task that is to be changed; one that was submitted here lately is in memory.

        If another process has changed that one since, a decision about it is `Stale`, and made again on the row.
        """
        return self.recent_submissions.get_task(task_id) or await self.tasks.get(task_id)

    async def apply(
        self,
        task: Task,
        decide: Decision,
        *,
        about: AttemptSubject | None = None,
        also: Sequence[Statement] = (),
        results: Sequence[StoredImage] = (),
        is_leased: bool = True,
        outlives_lease: bool = True,
        is_paid: bool = False,
        report: Report | None = None,
    ) -> Task | None:
        """Apply a decision; return the row on which it was made, or None if it was not applied.

        about: the attempt that the decision reads; None if it follows from the row alone, and concerns the current one.
        also: statements of the same transaction. results: written with the change, if any. is_leased: the caller holds
        the task's lease, which ends with the change. outlives_lease: it counts after the lease was lost, like a report;
        else it is the next worker's. is_paid: paid for, so written on a full disk too. report: for metrics and log.
        """
        seen, guarded = task, 0
        while True:
            if is_leased and not outlives_lease and task.leased_by != seen.leased_by:
                return None
            attempt = None if about is None else await self._read_attempt(seen, task, about)
            changes = decide(task, attempt)
            values = _row_values(seen, task, changes, is_leased=is_leased)
            number = task.attempt if about is None else attempt.number if attempt else 0
            if not values and not (number and changes.attempt) and not also:
                return task
            after = changed_row(task, {**values, "version": task.version + 1})
            events = await self.outbox.enqueue_event(task, after, results)
            lease = self._promise_next_step(task, values)  # last: a failure before the transaction would keep its slot
            change = self._change(task, changes, values, number, events, results=results, is_paid=is_paid)
            row: Task | None = None
            begun = self.clock.monotonic()
            try:
                await self.tasks.database.transact(*change, *also, wake=self._channels(task, values, lease, events))
                row = after if lease is None else changed_row(after, values)  # the lease is in them by now
            except Stale:
                fresh = await self.tasks.get(task.id)
                guarded += bool(events.guards)
                if fresh is None or (fresh.version == task.version and not 0 < guarded <= MAX_GUARDED):
                    return None  # the row is gone, or another process executed the statements of `also`
                if fresh.version == task.version:
                    continue  # another task of the request has ended
                has_our_lease = lease is not None and fresh.leased_by == lease.holder  # so it was committed
                if not has_our_lease and (also or not await self._was_committed(fresh, task, changes)):
                    task = fresh
                    continue
                row = fresh
            finally:
                if lease and row is None:
                    self.next_steps.forgo(TaskState.FETCHING)
                self.metrics.database_seconds.labels("change").observe(self.clock.monotonic() - begun)
            self.record_change(task, changes, report)
            self.recent_submissions.record(after, attempt, changes.attempt)
            if lease and row is not None:
                self.next_steps.begin(row)
            return task

    def _change(
        self,
        task: Task,
        changes: Changes,
        values: Mapping[str, Any],
        number: int,
        events: OutgoingEvents,
        *,
        results: Sequence[StoredImage],
        is_paid: bool,
    ) -> Sequence[Statement]:
        """Return the statements that write a change. number: of the attempt that it concerns, or 0."""
        update = self.tasks.update_task(task, **values)
        if is_paid:
            update = Statement(update.sql, update.params, must_change=True, may_use_reserve=True)
        inserts = [self.images.insert_image(image) for image in results] if changes.task else []
        ledger = []
        if number and changes.attempt:
            ledger = [self.attempts.update_attempt(task.id, number, **changes.attempt)]
        settling = settle_task(task) if _must_settle(task, changes) else []
        return (*events.guards, update, *inserts, *ledger, *settling, *events.statements)

    def _promise_next_step(self, task: Task, values: dict[str, Any]) -> Lease | None:
        """Put a lease of this process into the columns of a task that goes on with a step which can begin here."""
        if values.get("state") != TaskState.FETCHING:
            return None
        lease = self.next_steps.promise([task.id], TaskState.FETCHING)
        if lease is not None:
            values |= {"lease_until": lease.until, "leased_by": lease.holder}
        return lease

    def _channels(
        self, task: Task, values: Mapping[str, Any], lease: Lease | None, events: OutgoingEvents
    ) -> Sequence[str]:
        """Return the channels that a change wakes: of its task, and of workers if it gives them anything to do soon."""
        channels = [task_channel(task.id)]
        is_due = lease is None and values.get("due_at", task.due_at) < self.clock.now() + MAX_SLEEP_SECONDS
        is_place_free = task.state in JOB_STATES and values.get("state", task.state) not in JOB_STATES
        if is_due or is_place_free or events.statements:
            channels.append(DUE_CHANNEL)
        if values.get("ended_at") is not None:
            channels.append(ENDED_CHANNEL)
        return channels

    async def apply_report(
        self,
        task: Task,
        report: Report,
        number: int | None,
        *,
        attempt: Attempt | None = None,
        also: Sequence[Statement] = (),
        is_leased: bool = True,
        outlives_lease: bool = True,
        is_paid: bool = False,
        learned_by: str | None = None,
    ) -> Task | None:
        """Apply the lifecycle's decision on a report about one attempt; return what `apply` returns.

        number: of the attempt, the current one if None. attempt: its row, as it was with this version of the task, if
        the caller has it. learned_by: for the ledger, if it is an end.
        """
        now = self.clock.now()
        onward = await self.router.find_onward(task, report) if isinstance(report, Failed) else ()

        def decide(row: Task, current: Attempt | None) -> Changes:
            changes = lifecycle.apply_report(row, current, report, now, self.policy, onward=onward)
            if learned_by is None or "ended_at" not in changes.attempt:
                return changes
            return Changes(task=changes.task, attempt={**changes.attempt, "learned_by": learned_by})

        return await self.apply(
            task,
            decide,
            about=AttemptSubject(number=number, known=attempt),
            also=also,
            is_leased=is_leased,
            outlives_lease=outlives_lease,
            is_paid=is_paid,
            report=report,
        )

    async def apply_own(
        self,
        task: Task,
        decide: Callable[[Task, float, TaskPolicy], Changes],
        *,
        results: Sequence[StoredImage] = (),
        is_leased: bool = True,
    ) -> None:
        """Apply a decision that follows from the row alone."""
        await self.apply(
            task,
            lambda row, _: decide(row, self.clock.now(), self.policy),
            results=results,
            is_leased=is_leased,
            outlives_lease=False,
        )

    async def record_unknown(self, task: Task) -> None:
        """Record that the outcome of the current submission is unknown."""
        onward = await self.router.find_other(task)
        await self.apply_own(task, partial(lifecycle.outcome_unknown, attempt=task.attempt, onward=onward))

    async def begin_submission(self, task: Task, intent: Changes, reserving: Sequence[Statement]) -> int:
        """Write the intent to submit; the caller calls `record_change` then.

        Return the number of failed submissions in a row of the key before it.

        reserving: statements that write the attempt if the provider has capacity. Raises `Stale` without capacity or
        when another process changed the row, `StorageError` when it is unknown whether the intent was written.
        """
        _, locked, *_ = await self.tasks.database.transact(
            self.tasks.update_task(task, **intent.task), *reserving, wake=(task_channel(task.id),)
        )
        return int(locked.rows[0]["errors"])

    async def release(self, task: Task) -> None:
        """End the lease of a task without a change."""
        await self.apply(task, lambda *_: lifecycle.NOTHING, outlives_lease=False)

    def record_change(self, task: Task, changes: Changes, report: Report | None = None) -> None:
        """Count and log a change that is durable. task: the row before it."""
        columns, state = changes.task, changes.task.get("state", task.state)
        _count_change(self.metrics, task, columns, self.clock.now())
        if changes.attempt:
            _count_attempt(self.metrics, task, changes.attempt, report)
        if state == task.state:
            return
        # the response to a submission has a line, too, and says the same and more
        write_line = log.debug if state == TaskState.SUBMITTING else log.info
        write_line(
            "task state changed",
            action=f"task_{state}",
            task=task.id,
            previous=str(task.state),
            attempt=columns.get("attempt", task.attempt),
            provider=provider_of(task.provider),
            code=columns.get("error_code"),
        )

    async def _read_attempt(self, seen: Task, task: Task, about: AttemptSubject) -> Attempt | None:
        """Return the attempt as it is with this version of the task: each change of an attempt changes that, too."""
        if about.known is not None and task is seen:
            return about.known
        number = about.number or task.attempt
        if not number:
            return None
        return self.recent_submissions.get_attempt(task, number) or await self.attempts.get(task.id, number)

    async def _was_committed(self, fresh: Task, task: Task, changes: Changes) -> bool:
        """Return whether the change is in the database: the connection broke between its commit and the response."""
        if not changes.task or fresh.version != task.version + 1:
            return False
        ledger = await self.attempts.get(task.id, task.attempt) if changes.attempt else None
        return _has(fresh, changes.task) and (not changes.attempt or _has(ledger, changes.attempt))


def _must_settle(task: Task, changes: Changes) -> bool:
    """Return whether a change ends a task, or changes what an ended one cost."""
    return "ended_at" in changes.task or (task.ended_at is not None and bool(changes.attempt))


def _row_values(seen: Task, task: Task, changes: Changes, *, is_leased: bool) -> dict[str, Any]:
    values = dict(changes.task)
    same_state = values.get("state", task.state) == seen.state == task.state
    if same_state and "due_at" in values and task.due_at != seen.due_at:
        values["due_at"] = min(values["due_at"], task.due_at)  # another process made it due earlier
    if (is_leased and task.leased_by == seen.leased_by) or values.get("state", task.state) != task.state:
        values |= {"lease_until": 0.0, "leased_by": ""}
    return values


def _count_change(metrics: Metrics, task: Task, columns: Mapping[str, Any], now: float) -> None:
    """Count a change of a task once, after its commit. task: the row before it."""
    state = columns.get("state", task.state)
    if state == TaskState.QUEUED and (provider := columns.get("provider", task.provider)) != task.provider:
        metrics.orders_moved.labels(provider_of(task.provider), provider_of(provider)).inc()
    if state != task.state:
        metrics.transitions.labels(task.state, state).inc()
        metrics.state_seconds.labels(task.state).observe(max(0.0, now - task.entered_at))
        if state == TaskState.SUBMITTING and task.attempt == 0:
            metrics.queue_seconds.labels(provider_of(task.provider)).observe(max(0.0, now - task.created_at))
    if columns.get("ended_at") is not None:
        # the first end that callers see; the image of a task shown as failed may still arrive
        if task.ended_at is None:
            outcome = "completed" if state == TaskState.SUCCEEDED else columns["error_code"]
            metrics.task_seconds.labels(task.model, outcome).observe(max(0.0, now - task.created_at))
            metrics.task_attempts.observe(task.attempt)
        elif state == TaskState.SUCCEEDED:
            metrics.late_results.labels(task.model).inc()


def _count_attempt(metrics: Metrics, task: Task, columns: Mapping[str, Any], report: Report | None) -> None:
    """Count and log what a change says about an attempt of a task."""
    outcome, provider = columns.get("outcome"), provider_of(task.provider)
    if columns.get("duplicate_result"):
        metrics.duplicate_results.labels(provider).inc()
        log.warning("a second result of one order was kept", action="duplicate_result", task=task.id)
    if outcome == "unknown" and columns.get("ended_at") is not None:
        metrics.unknown_outcomes.labels(provider).inc()
    if columns.get("learned_by") == LEARNED_BY_CHECK:
        metrics.callbacks_missing.labels(provider).inc()
    if outcome in {"failed", "refused"} and isinstance(report, Failed) and not report.known:
        metrics.unclassified_errors.labels(provider).inc()
        # without the message, which may repeat the prompt: it is in the task's errorDetail
        log.warning(
            "unclassified provider error",
            action="unclassified_provider_error",
            task=task.id,
            provider=provider,
            provider_code=_plain_code(report.provider_code),
        )


def _plain_code(code: str | None) -> str:
    """Return a code that is fit for a log; anything that is not a plain code may be text of the prompt."""
    return code if code and re.fullmatch(r"[A-Za-z0-9_.-]{1,64}", code) else "not plain"


def _has(row: Task | Attempt | None, values: Mapping[str, Any]) -> bool:
    return row is not None and all(getattr(row, name) == value for name, value in values.items())
