"""Receiving callbacks: verify, store, acknowledge. A worker processes them later."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import Final

from broker.callbacks.verification import CallbackVerifier, VerifiedCallback
from broker.clock import Clock
from broker.metrics import Metrics
from broker.reports import Pending, Report
from storage.callbacks import Callbacks, StoredCallback
from storage.ids import new_callback_id
from storage.tasks import DUE_CHANNEL, Task
from webhooks import verification
from webhooks.verification import Decision, IncomingCallback, Verification

MAX_UNREAD_PER_TASK: Final = 20
MAX_REJECTED_PER_MINUTE: Final = 120
MAX_CLOCK_SKEW_SECONDS: Final = 300.0
MAX_CALLBACK_AGE_SECONDS: Final = 14 * 24 * 3600.0


@dataclass(frozen=True, kw_only=True)
class ReceivedCallback:
    """The result of receiving a callback."""

    decision: Decision
    id: str | None
    """In the inbox; None if the flood guard kept it out."""


@dataclass(kw_only=True)
class FloodGuard:
    """Limits how many rejected callbacks this process stores per minute."""

    clock: Clock
    per_minute: int = MAX_REJECTED_PER_MINUTE
    _stored_at: deque[float] = field(default_factory=deque)

    def admit_rejected(self) -> bool:
        """Count one more and return True, unless the limit is reached."""
        now = self.clock.monotonic()
        while self._stored_at and self._stored_at[0] <= now - 60.0:
            self._stored_at.popleft()
        if len(self._stored_at) >= self.per_minute:
            return False
        self._stored_at.append(now)
        return True


@dataclass(frozen=True, kw_only=True)
class CallbackReceiver:
    """Takes in the callbacks of providers."""

    clock: Clock
    verifier: CallbackVerifier
    hooks: Callbacks
    metrics: Metrics
    flood_guard: FloodGuard

    async def receive(self, callback: IncomingCallback) -> ReceivedCallback:
        """Verify a callback and store it in the inbox. One that concerns a task wakes the workers."""
        verified = await self.verifier.verify(callback)
        verdict, provider = verified.decision.verification, verified.provider
        self.metrics.callbacks.labels(provider.name, verdict.value).inc()
        is_accepted = verdict == Verification.ACCEPT
        task = verified.task if verdict in {Verification.ACCEPT, Verification.RECHECK} else None
        if not await self._may_store(task, is_accepted=is_accepted):
            return ReceivedCallback(decision=verified.decision, id=None)
        hook = self._build_hook(callback, verified, has_news=task is not None)
        await self.hooks.database.transact(
            self.hooks.insert_callback(hook), wake=(DUE_CHANNEL,) if task is not None else ()
        )
        if is_accepted and hook.job_ended_at is not None:
            lag_seconds = max(0.0, hook.received_at - hook.job_ended_at)
            self.metrics.callback_lag.labels(hook.provider).observe(lag_seconds)
        return ReceivedCallback(decision=verified.decision, id=hook.id)

    def _build_hook(self, callback: IncomingCallback, verified: VerifiedCallback, *, has_news: bool) -> StoredCallback:
        now, task = self.clock.now(), verified.task
        report = verified.provider.parse_callback(verified.body) if has_news else None
        return StoredCallback(
            id=new_callback_id(),
            provider=task.provider if task else verified.provider.name,
            task_id=task.id if task else None,
            attempt=verified.attempt,
            verification=verified.decision.verification.value,
            status=verified.decision.status,
            reason=verified.decision.reason,
            headers=verification.stored_headers(callback.headers),
            query=verification.stored_query(callback.query),
            body=verification.stored_body(callback.body, callback.query.get("token")),
            evidence=verified.evidence.to_json(),
            received_at=now,
            processed_at=None if has_news else now,
            job_ended_at=_plausible_end(report, now) if report else None,
        )

    async def _may_store(self, task: Task | None, *, is_accepted: bool) -> bool:
        """Return whether to store a callback: unproven ones must not crowd out those that prove themselves."""
        if task is not None:
            return is_accepted or await self.hooks.count_unprocessed(task.id) < MAX_UNREAD_PER_TASK
        return self.flood_guard.admit_rejected()


def _plausible_end(report: Report, now: float) -> float | None:
    """Return when the job ended; None for a time that cannot be true, because some callbacks name such times."""
    ended_at = None if isinstance(report, Pending) else report.ended_at
    is_plausible = ended_at is not None and -MAX_CLOCK_SKEW_SECONDS < now - ended_at < MAX_CALLBACK_AGE_SECONDS
    return ended_at if is_plausible else None
