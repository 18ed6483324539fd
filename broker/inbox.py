"""The inbox of callbacks: what came, what today's code says of it, and taking its news in once more.

Decisions worth remembering

* A callback is kept with what it proved, not with the proof: the token is no more to be had, a signature grows old.
  So one that comes before today's judge again brings yesterday's proofs, and can never prove more than it did then.
* A replay is a new line of the inbox that names the old one, read by a worker like every other. What it does twice was
  harmless twice before: late and repeated news change nothing.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Final

from broker.broker import Broker
from broker.errors import Refusal
from broker.logs import log
from broker.providers.base import Provider
from broker.reports import Report
from broker.tasks import lifecycle
from broker.tasks.lifecycle import Changes
from broker.tasks.steps.callbacks import CallbackStep
from storage.attempts import Attempts
from storage.callbacks import Entry, Hook
from storage.ids import new_callback_id
from storage.tasks import DUE, Task
from webhooks import verification
from webhooks.signatures.base import Proof, Unsigned
from webhooks.verification import Decision, Evidence, Verification

DAY: Final = 24 * 3600.0
STILL_EXPECTED: Final = 60.0
"""Seconds after the end of a job in which its callback may be on its way."""
MOST_MISSING: Final = 10_000

_TAKEN: Final = frozenset({Verification.ACCEPT, Verification.RECHECK})


@dataclass(frozen=True, kw_only=True)
class Explanation:
    """What today's code says of a callback.

    names: ids in its body. task: which it is about now. judgement: by today's rules, on what it proved then. taken_as:
    how a replay would be taken in; None = not at all. report: what its body says; None where it cannot be read.
    effect: what its news would do to the task now, in words.
    """

    hook: Hook
    proofs: Evidence
    names: tuple[str, ...]
    task: Task | None
    judgement: Decision
    taken_as: Verification | None
    report: Report | None
    effect: str


@dataclass(frozen=True, kw_only=True)
class Missing:
    """Callbacks that never came in the last `hours`, by provider."""

    hours: float
    by_provider: dict[str, int]


@dataclass(frozen=True, kw_only=True)
class Inbox:
    """What people and programs may do with callbacks that came."""

    broker: Broker
    callback_step: CallbackStep

    async def newest(
        self,
        *,
        limit: int,
        before: tuple[float, str] | None = None,
        task_id: str | None = None,
        verdict: str | None = None,
        provider: str | None = None,
    ) -> list[Entry]:
        """One page, newest first; `before` is (received_at, id) of the last line of the page before."""
        return await self.broker.hooks.newest(
            limit=limit, before=before, task_id=task_id, verdict=verdict, provider=provider
        )

    async def get(self, hook_id: str) -> Hook:
        """Raises `Refusal("not_found")`."""
        hook = await self.broker.hooks.get(hook_id)
        if hook is None:
            hours = self.broker.policy.retention_seconds / 3600
            raise Refusal("not_found", f"There is no callback with this id. They are kept for {hours:g} hours.")
        return hook

    async def missing(self) -> Missing:
        """Jobs whose end we learned only by asking. Their callbacks would be in here for as long as that is kept."""
        now, window = self.broker.clock.now(), min(DAY, self.broker.policy.retention_seconds)
        found = await self.broker.hooks.missing(since=now - window, until=now - STILL_EXPECTED, limit=MOST_MISSING)
        return Missing(hours=window / 3600, by_provider=found)

    async def explain(self, hook_id: str) -> Explanation:
        """Read and judge it once more. Changes nothing, asks nobody."""
        hook = await self.get(hook_id)
        provider = self.broker.providers.get(hook.provider, self.broker.provider)
        proofs = self._proofs(hook, provider)
        body, malformed = _read(hook)
        names = provider.job_ids(body)
        task = await self.broker.addressee(verification.task_in_query(hook.query), names, proofs.token)
        proofs = replace(proofs, known=task is not None)
        judgement = verification.decide(proofs) if malformed is None or proofs.token == Proof.WRONG else malformed
        taken_as = _taken_as(hook, judgement)
        return Explanation(
            hook=hook,
            proofs=proofs,
            names=names,
            task=task,
            judgement=judgement,
            taken_as=taken_as,
            report=provider.parse_callback(body) if malformed is None else None,
            effect=await self._effect(hook, task, taken_as),
        )

    async def replay(self, hook_id: str) -> tuple[Explanation, str | None]:
        """Take its news in again, as if it had just come. The id of the new line; None where it may do nothing."""
        told = await self.explain(hook_id)
        if told.task is None or told.taken_as is None:
            return told, None
        again = _again(told.hook, told.task, told.taken_as, self.broker.clock.now())
        await self.broker.database.transact(self.broker.hooks.adding(again), wake=(DUE,))
        log.info("a callback is replayed", action="callback_replayed", task=told.task.id, hook=hook_id, replay=again.id)
        return told, again.id

    def _proofs(self, hook: Hook, provider: Provider) -> Evidence:
        """What it proved then, beside what must be proved today."""
        proofs = Evidence.from_json(hook.proofs)
        signature = self.broker.signatures.get(provider.name, Unsigned())
        return replace(proofs, signature_required=signature.required and proofs.token == Proof.NONE)

    async def _effect(self, hook: Hook, task: Task | None, taken_as: Verification | None) -> str:
        if task is None or taken_as is None:
            return "nothing: it is not taken in"
        if task.state.value == "expired":
            return "nothing: the task was deleted by retention"
        report = self.callback_step.report_of(task, replace(hook, verdict=taken_as.value))
        number = hook.attempt or await self.callback_step.attempt_number(task, report) or task.attempt
        attempt = await Attempts(self.broker.database).get(task.id, number)
        changes = lifecycle.apply_report(task, attempt, report, self.broker.clock.now(), self.broker.policy)
        return _in_words(task, changes, taken_as)


def _read(hook: Hook) -> tuple[Any, Decision | None]:
    """The document in its body, or why there is none. Of one that was too large only the beginning was kept."""
    if hook.status == 413:
        return None, Decision(verification=Verification.MALFORMED, status=413, reason=hook.reason)
    try:
        return verification.parse_body(hook.body.encode("utf-8", "replace")), None
    except verification.MalformedBody as error:
        return None, Decision(verification=Verification.MALFORMED, status=error.status, reason=error.reason)


def _taken_as(hook: Hook, judgement: Decision) -> Verification | None:
    """What was believed stays believed, what was asked about is asked about; what was refused stays outside.

    One that could not be read, or whose task was not known, is worth what it proved.
    """
    if hook.verdict == Verification.REJECT or judgement.verification in {Verification.UNKNOWN, Verification.MALFORMED}:
        return None
    verdict = Verification(hook.verdict) if hook.is_news else judgement.verification
    return verdict if verdict in _TAKEN else None


def _again(hook: Hook, task: Task, taken_as: Verification, now: float) -> Hook:
    return replace(
        hook,
        id=new_callback_id(),
        task_id=task.id,
        verdict=taken_as.value,
        status=200 if taken_as == Verification.ACCEPT else 202,
        reason="replayed by hand",
        received_at=now,
        digested_at=None,
        job_ended_at=None,
        replay_of=hook.id,
    )


def _in_words(task: Task, changes: Changes, taken_as: Verification) -> str:
    state = changes.task.get("state", task.state)
    if state != task.state:
        return f"the task goes from {task.state.value} to {state.value}"
    if "due_at" in changes.task:
        return "the provider is asked soon"
    if "spare" in changes.attempt:
        return "a second result for the same order is kept as spare"
    if changes:
        return f"the task stays {task.state.value}, and its books are amended"
    return f"nothing: the task is {task.state.value}" + (" already" if taken_as == Verification.ACCEPT else "")
