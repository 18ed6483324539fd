"""Callback inbox: lists and explains stored callbacks, and replays one.

* A callback is stored with what it proved, not with the proof: its token is removed, and a signature expires. So a
  replay is judged by the old evidence, and can never prove more than the callback did on arrival.
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
from storage.callbacks import CallbackRecord, Callbacks, StoredCallback
from storage.ids import new_callback_id
from storage.tasks import DUE_CHANNEL, Task
from webhooks.verification import Verification

DAY_SECONDS: Final = 24 * 3600.0
EXPECTED_WITHIN_SECONDS: Final = 60.0
"""After the end of a job its callback may still be on its way for this long."""
MAX_MISSING: Final = 10_000

_REPLAYABLE: Final = frozenset({Verification.ACCEPT, Verification.RECHECK})


@dataclass(frozen=True, kw_only=True)
class Explanation:
    """A stored callback, verified and read again."""

    hook: StoredCallback
    verified: VerifiedCallback
    replayed_as: Verification | None
    """How a replay would be taken in; None: not at all."""
    report: Report | None
    """What its body reports; None if it is not readable."""
    effect: str
    """What the report would do to the task now, in words."""


@dataclass(frozen=True, kw_only=True)
class MissingCallbacks:
    """Callbacks that did not arrive in the last `hours`, by provider."""

    hours: float
    by_provider: dict[str, int]


@dataclass(frozen=True, kw_only=True)
class CallbackInbox:
    """Reads and replays stored callbacks."""

    clock: Clock
    policy: TaskPolicy
    attempts: Attempts
    hooks: Callbacks
    callback_step: CallbackStep
    verifier: CallbackVerifier

    async def list_newest(
        self,
        *,
        limit: int,
        before: tuple[float, str] | None = None,
        task_id: str | None = None,
        verification: str | None = None,
        provider: str | None = None,
    ) -> list[CallbackRecord]:
        """Return one page, newest first; `before` is (received_at, id) of the last entry of the page before."""
        return await self.hooks.list_newest(
            limit=limit, before=before, task_id=task_id, verification=verification, provider=provider
        )

    async def get(self, hook_id: str) -> StoredCallback:
        """Return the stored callback. Raises `ApiError("not_found")`."""
        hook = await self.hooks.get(hook_id)
        if hook is None:
            hours = self.policy.retention_seconds / 3600
            raise ApiError("not_found", f"There is no callback with this id. They are kept for {hours:g} hours.")
        return hook

    async def count_missing(self) -> MissingCallbacks:
        """Count the jobs whose end was learned only by a status check, while callbacks of that time are stored."""
        now, window = self.clock.now(), min(DAY_SECONDS, self.policy.retention_seconds)
        found = await self.hooks.count_missing(
            since=now - window, until=now - EXPECTED_WITHIN_SECONDS, limit=MAX_MISSING
        )
        return MissingCallbacks(hours=window / 3600, by_provider=found)

    async def explain(self, hook_id: str) -> Explanation:
        """Verify and read a stored callback again. Changes nothing, and sends nothing."""
        hook = await self.get(hook_id)
        verified = await self.verifier.verify_stored(hook)
        replayed_as = _replay_verification(hook, verified)
        return Explanation(
            hook=hook,
            verified=verified,
            replayed_as=replayed_as,
            report=verified.provider.parse_callback(verified.body) if verified.is_readable else None,
            effect=await self._describe_effect(hook, verified.task, replayed_as),
        )

    async def replay(self, hook_id: str) -> tuple[Explanation, str | None]:
        """Process a stored callback as if it had just arrived; return the new entry's id, or None if rejected."""
        explained = await self.explain(hook_id)
        task, replayed_as = explained.verified.task, explained.replayed_as
        if task is None or replayed_as is None:
            return explained, None
        again = _replayed_hook(explained.hook, task, replayed_as, self.clock.now())
        await self.hooks.database.transact(self.hooks.insert_callback(again), wake=(DUE_CHANNEL,))
        log.info("a callback is replayed", action="callback_replayed", task=task.id, hook=hook_id, replay=again.id)
        return explained, again.id

    async def _describe_effect(self, hook: StoredCallback, task: Task | None, replayed_as: Verification | None) -> str:
        if task is None or replayed_as is None:
            return "nothing: it is not taken in"
        if task.state.value == "expired":
            return "nothing: the task was deleted by retention"
        report = self.callback_step.report_of(task, replace(hook, verification=replayed_as.value))
        number = hook.attempt or await self.callback_step.attempt_number(task, report) or task.attempt
        attempt = await self.attempts.get(task.id, number)
        changes = lifecycle.apply_report(task, attempt, report, self.clock.now(), self.policy)
        return _describe_changes(task, changes, replayed_as)


def _replay_verification(hook: StoredCallback, verified: VerifiedCallback) -> Verification | None:
    """Return how a replay is taken in: as on arrival, if the callback was taken in then; None for a rejected one.

    One that was not readable, or whose task was unknown, is judged by what it proved.
    """
    decision = verified.decision
    if hook.verification == Verification.REJECT or decision.verification in {
        Verification.UNKNOWN,
        Verification.MALFORMED,
    }:
        return None
    taken_as = Verification(hook.verification) if hook.is_relevant else decision.verification
    return taken_as if taken_as in _REPLAYABLE else None


def _replayed_hook(hook: StoredCallback, task: Task, replayed_as: Verification, now: float) -> StoredCallback:
    return replace(
        hook,
        id=new_callback_id(),
        task_id=task.id,
        verification=replayed_as.value,
        status=200 if replayed_as == Verification.ACCEPT else 202,
        reason="replayed by hand",
        received_at=now,
        processed_at=None,
        job_ended_at=None,
        replay_of=hook.id,
    )


def _describe_changes(task: Task, changes: Changes, replayed_as: Verification) -> str:
    state = changes.task.get("state", task.state)
    if state != task.state:
        return f"the task goes from {task.state.value} to {state.value}"
    if "due_at" in changes.task:
        return "the provider is asked soon"
    if "duplicate_result" in changes.attempt:
        return "a second result for the same order is kept as spare"
    if changes:
        return f"the task stays {task.state.value}, and its books are amended"
    return f"nothing: the task is {task.state.value}" + (" already" if replayed_as == Verification.ACCEPT else "")
