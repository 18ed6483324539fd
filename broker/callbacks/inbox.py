"""Callback inbox: lists and explains stored callbacks, and replays one.

* A callback is stored with the result of its verification, not with the proof: its token is removed, and a signature
  expires. So a replay is verified by the old evidence, and never proves more than the callback did on arrival.
* A replay is a new entry that names the old one, and is processed like every other. Late and repeated reports change
  nothing, so replaying twice does no harm.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final

from broker.callbacks.verification import CallbackVerifier, VerifiedCallback
from broker.clock import Clock
from broker.errors import ApiError
from broker.logs import log
from broker.reports import Report
from broker.tasks import lifecycle
from broker.tasks.lifecycle import Changes
from broker.tasks.policy import TaskPolicy
from broker.tasks.steps.callbacks import CallbackStep
from storage.attempts import Attempts
from storage.callbacks import Callbacks, StoredCallback
from storage.ids import new_callback_id
from storage.states import TaskState
from storage.tasks import DUE_CHANNEL, Task
from webhooks.verification import Verification

DAY_SECONDS: Final = 24 * 3600.0
EXPECTED_WITHIN_SECONDS: Final = 60.0
"""After the end of a job its callback may still be on its way for this long."""
MAX_MISSING: Final = 10_000


@dataclass(frozen=True, kw_only=True)
class Explanation:
    """A stored callback, verified and read again."""

    callback: StoredCallback
    verified: VerifiedCallback
    replayed_as: Verification | None
    """The verification of a replay; None if it would be rejected."""
    report: Report | None
    """The report in its body; None if it is not readable."""
    effect: str
    """The effect of the report on the task now, in words."""


@dataclass(frozen=True, kw_only=True)
class CallbackInbox:
    """Reads and replays stored callbacks."""

    clock: Clock
    policy: TaskPolicy
    attempts: Attempts
    callbacks: Callbacks
    callback_step: CallbackStep
    verifier: CallbackVerifier

    async def get(self, callback_id: str) -> StoredCallback:
        """Return the stored callback. Raises `ApiError("not_found")`."""
        callback = await self.callbacks.get(callback_id)
        if callback is None:
            hours = self.policy.retention_seconds / 3600
            raise ApiError("not_found", f"There is no callback with this id. Callbacks are stored for {hours:g} hours.")
        return callback

    async def count_missing(self) -> tuple[dict[str, int], float]:
        """Count, by provider, the jobs whose end was learned only by a status check.

        Covers the returned number of seconds until now, in which callbacks are still stored.
        """
        now, window_seconds = self.clock.now(), min(DAY_SECONDS, self.policy.retention_seconds)
        missing = await self.callbacks.count_missing(
            since=now - window_seconds, until=now - EXPECTED_WITHIN_SECONDS, limit=MAX_MISSING
        )
        return missing, window_seconds

    async def explain(self, callback_id: str) -> Explanation:
        """Verify and read a stored callback again. Changes nothing, and sends nothing."""
        callback = await self.get(callback_id)
        verified = await self.verifier.verify_stored(callback)
        replayed_as = _replay_verification(callback, verified)
        effect = "nothing: it is not processed"
        if verified.task is not None and replayed_as is not None:
            effect = await self._describe_effect(callback, verified.task, replayed_as)
        return Explanation(
            callback=callback,
            verified=verified,
            replayed_as=replayed_as,
            report=verified.report,
            effect=effect,
        )

    async def replay(self, callback_id: str) -> tuple[Explanation, str | None]:
        """Process a stored callback as if it had just arrived; return the new entry's id, or None if rejected."""
        explained = await self.explain(callback_id)
        task, replayed_as = explained.verified.task, explained.replayed_as
        if task is None or replayed_as is None:
            return explained, None
        again = _new_replay(explained.callback, task, replayed_as, self.clock.now())
        await self.callbacks.database.transact(self.callbacks.insert_callback(again), wake=(DUE_CHANNEL,))
        log.info("callback replayed", action="callback_replayed", task=task.id, callback=callback_id, replay=again.id)
        return explained, again.id

    async def _describe_effect(self, callback: StoredCallback, task: Task, replayed_as: Verification) -> str:
        if task.state == TaskState.EXPIRED:
            return "nothing: the task was deleted by retention"
        report = await self.callback_step.report_of(task, replace(callback, verification=replayed_as.value))
        number = callback.attempt or await self.callback_step.attempt_number(task, report) or task.attempt
        attempt = await self.attempts.get(task.id, number)
        changes = lifecycle.apply_report(task, attempt, report, self.clock.now(), self.policy)
        return _describe_changes(task, changes, replayed_as)


def _replay_verification(callback: StoredCallback, verified: VerifiedCallback) -> Verification | None:
    """Return the verification of a replay: that of the arrival if it was accepted then; None for a rejected one.

    One that was not readable, or whose task was unknown, is verified by its evidence.
    """
    now = verified.decision.verification
    if now in {Verification.UNKNOWN, Verification.MALFORMED} or callback.verification == Verification.REJECT:
        return None
    if callback.is_relevant:
        return Verification(callback.verification)
    return None if now == Verification.REJECT else now


def _new_replay(callback: StoredCallback, task: Task, replayed_as: Verification, now: float) -> StoredCallback:
    return replace(
        callback,
        id=new_callback_id(now),
        task_id=task.id,
        verification=replayed_as.value,
        status=200 if replayed_as == Verification.ACCEPT else 202,
        reason="replayed by hand",
        received_at=now,
        processed_at=None,
        job_ended_at=None,
        replay_of=callback.id,
    )


def _describe_changes(task: Task, changes: Changes, replayed_as: Verification) -> str:
    state = changes.task.get("state", task.state)
    if state != task.state:
        return f"the task goes from {task.state.value} to {state.value}"
    if "due_at" in changes.task:
        return "the provider is checked soon"
    if "duplicate_result" in changes.attempt:
        return "a second result for the same order is stored as a duplicate"
    if changes:
        return f"the task stays {task.state.value}, and its attempt is updated"
    return f"nothing: the task is {task.state.value}" + (" already" if replayed_as == Verification.ACCEPT else "")
