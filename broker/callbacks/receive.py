"""Receiving callbacks: verify, store, acknowledge. What is not processed with that is processed by a worker later."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Final

from broker.callbacks.verification import CallbackVerifier, VerifiedCallback
from broker.clock import Clock
from broker.metrics import Metrics
from broker.reports import Pending, Report
from broker.tasks.steps.callbacks import CallbackQueue
from storage.callbacks import NO_CONTENT, Callbacks, StoredCallback
from storage.ids import new_callback_id
from storage.sql.database import Statement
from storage.sql.rows import new_row
from storage.sql.scope import is_private
from storage.states import TaskState
from storage.tasks import DUE_CHANNEL, Task
from webhooks import verification
from webhooks.redaction import Redactor
from webhooks.signatures.base import MAX_CLOCK_SKEW_SECONDS
from webhooks.verification import Decision, IncomingCallback, Verification

MAX_UNPROCESSED_PER_TASK: Final = 20
MAX_REJECTED_PER_MINUTE: Final = 120
"""Callbacks without proof and without effect that one process stores."""
MAX_UNPROVEN_BYTES: Final = 64 * 2**20
"""Stored of callbacks without proof, by all processes; the oldest are deleted."""
MAX_CALLBACK_AGE_SECONDS: Final = 14 * 24 * 3600.0


@dataclass(frozen=True, kw_only=True)
class CallbackReceiver:
    """Takes in the callbacks of providers."""

    clock: Clock
    verifier: CallbackVerifier
    callbacks: Callbacks
    queue: CallbackQueue
    metrics: Metrics
    redactor: Redactor
    list_secrets: Callable[[str], Awaitable[Sequence[str]]]
    """Owner → the owner's own provider keys, which a provider may repeat."""
    _unproven_lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    """One at a time: in the database they would wait for each other, each with a connection."""
    _rejected_at: deque[float] = field(default_factory=deque)
    """Monotonic times at which rejected callbacks were stored in the last minute."""

    async def receive(self, incoming: IncomingCallback) -> Decision:
        """Verify a callback and store it in the inbox. One that concerns a task wakes the workers."""
        verified = await self.verifier.verify(incoming)
        decision = verified.decision
        self.metrics.callbacks.labels(verified.provider.name, decision.verification.value).inc()
        if decision.verification == Verification.ACCEPT or await self._may_store(verified):
            owner = None if verified.task is None else verified.task.caller
            secrets = await self.list_secrets(owner) if owner and is_private(owner) else ()
            redactor = self.redactor.extend(secrets) if secrets else self.redactor
            stored = self._to_stored(incoming, verified, redactor)
            if _concerns_deleted_task(verified):
                stored = replace(stored, **NO_CONTENT)
            if verified.evidence.is_proven:
                if not await self._store_processed(stored, incoming, verified):
                    await self._insert(stored, verified.task, self.callbacks.insert_callback(stored))
            else:
                async with self._unproven_lock:
                    insert = self.callbacks.insert_unproven(stored, max_bytes=MAX_UNPROVEN_BYTES)
                    await self._insert(stored, verified.task, *insert)
            if decision.verification == Verification.ACCEPT and stored.job_ended_at is not None:
                lag_seconds = max(0.0, stored.received_at - stored.job_ended_at)
                self.metrics.callback_lag.labels(stored.provider).observe(lag_seconds)
        return decision

    async def _store_processed(
        self, stored: StoredCallback, incoming: IncomingCallback, verified: VerifiedCallback
    ) -> bool:
        """Store a callback and what it changes in one transaction; return False if it must be stored first."""
        if verified.task is None or verified.decision.verification != Verification.ACCEPT:
            return False
        # what redaction took out of the body must not come into the task: then it is read again as stored
        is_as_stored = stored.body.encode() == incoming.body
        return await self.queue.store_processed(stored, verified.task, verified.report if is_as_stored else None)

    async def _insert(self, stored: StoredCallback, task: Task | None, *statements: Statement) -> None:
        """Write a callback; then this process goes on with it, or all workers are woken."""
        goes_on = stored.is_relevant and task is not None and self.queue.is_open
        wake = (DUE_CHANNEL,) if stored.is_relevant and not goes_on else ()
        await self.callbacks.database.transact(*statements, wake=wake)
        if goes_on and task is not None:
            self.queue.take(stored, task)

    def _to_stored(self, incoming: IncomingCallback, verified: VerifiedCallback, redactor: Redactor) -> StoredCallback:
        now, task = self.clock.now(), verified.task
        body, is_truncated = verification.stored_body(
            incoming.body,
            redactor,
            token=incoming.query.get("token"),
            is_proven=verified.evidence.is_proven,
        )
        columns = {
            "id": new_callback_id(now),
            "provider": verified.provider.name,  # whose form it has; the task may be at another one by now
            "task_id": task.id if task else None,
            "attempt": verified.attempt,
            "verification": verified.decision.verification.value,
            "status": verified.decision.status,
            "reason": verified.decision.reason,
            "headers": verification.stored_headers(incoming.headers, redactor),
            "query": verification.stored_query(incoming.query, redactor),
            "body": body,
            "body_truncated": is_truncated,
            "evidence": verified.evidence.to_json(),
            "received_at": now,
            "processed_at": None if verified.is_relevant else now,
            "job_ended_at": _plausible_end(verified.report, now) if verified.is_relevant and verified.report else None,
        }
        return new_row(StoredCallback, columns)

    async def _may_store(self, verified: VerifiedCallback) -> bool:
        """Return False for an unproven callback that would crowd out those with a proof."""
        if verified.task is not None and verified.is_relevant:
            return await self.callbacks.count_unprocessed(verified.task.id) < MAX_UNPROCESSED_PER_TASK
        if verified.evidence.is_proven:
            return True
        now = self.clock.monotonic()
        while self._rejected_at and self._rejected_at[0] <= now - 60.0:
            self._rejected_at.popleft()
        if len(self._rejected_at) >= MAX_REJECTED_PER_MINUTE:
            return False
        self._rejected_at.append(now)
        return True


def _concerns_deleted_task(verified: VerifiedCallback) -> bool:
    """Return whether nothing of a callback is needed. An accepted one is: it says what the job cost."""
    is_deleted = verified.task is not None and verified.task.state == TaskState.EXPIRED
    return is_deleted and verified.decision.verification != Verification.ACCEPT


def _plausible_end(report: Report, now: float) -> float | None:
    """Return when the job ended; None for a time that cannot be true, because some callbacks name such times."""
    ended_at = None if isinstance(report, Pending) else report.ended_at
    is_plausible = ended_at is not None and -MAX_CLOCK_SKEW_SECONDS < now - ended_at < MAX_CALLBACK_AGE_SECONDS
    return ended_at if is_plausible else None
