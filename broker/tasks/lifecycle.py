"""Every decision about a task, without I/O.

The states are drawn in `storage.tasks`. Providers report, these functions decide, the store compares and sets. Each
function takes the row as it is and returns what to change; no change means that the report was late or repeated. So a
decision that lost a race is made again on the row as it is then.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, NamedTuple, assert_never

from broker.reports import Failed, Finished, Pending, Report
from broker.tasks.policy import TaskPolicy, backoff_seconds
from storage.attempts import NO_RESULT, Attempt
from storage.ids import ACCOUNT_MARK, DELETED_OWNER, is_own_account, provider_of, shown_account
from storage.states import ACTIVE_STATES, CANCELABLE_STATES, RETAINED_STATES, TaskState
from storage.task_retention import EndedTask
from storage.tasks import Task

MAX_ROUTES: Final = 50
"""Entries of `Task.routes`; later moves are only counted and logged."""
_NO_CONTENT: Final[Mapping[str, Any]] = {
    **dict.fromkeys(("turn", "callback_url", "error_detail", "provider_code", "provider_state", "pinned_at")),
    **dict.fromkeys(("references", "outputs", "texts", "turns"), ()),
    "params": {},
    "origin": {},
    "prompt": "",
}
"""Columns of a task whose content is deleted."""
LATE_FILES_SECONDS: Final = 300.0
"""A download that runs when its task is erased may store bytes for this long."""
LEARNED_BY_CALLBACK: Final = "callback"
LEARNED_BY_CHECK: Final = "check"
"""A check found the end although a callback was expected."""
LEARNED_BY_POLL: Final = "poll"
"""A check found the end, and no callback could arrive."""
MIN_RETRIES_WHILE_KEPT: Final = 6
"""Downloads in the last part of a result's life, if it is short: the pause between two does not grow beyond."""


_NO_COLUMNS: Final[Mapping[str, Any]] = {}


class Changes(NamedTuple):
    """Columns to set in the row of the task and in the row of the attempt.

    A tuple, which is made in a third of the time of a frozen dataclass.
    """

    task: Mapping[str, Any] = _NO_COLUMNS
    attempt: Mapping[str, Any] = _NO_COLUMNS

    def __bool__(self) -> bool:
        return bool(self.task or self.attempt)


NOTHING: Final = Changes()


@dataclass(frozen=True, kw_only=True)
class DownloadFailure:
    """The reason why one result is not stored yet. code: from the task error codes."""

    code: str
    message: str
    is_blocked: bool = False
    """The address is one that is never requested, and the provider has no other."""

    @property
    def is_final(self) -> bool:
        """Return whether a repetition will hardly help; a network or a disk recovers, a missing result does not."""
        return self.code in {"result_gone", "invalid_result"}


def apply_report(
    task: Task,
    attempt: Attempt | None,
    report: Report,
    now: float,
    policy: TaskPolicy,
    *,
    onward: Sequence[str] = (),
) -> Changes:
    """Return what a report about one attempt changes.

    attempt: None if nothing was ever submitted. onward: the providers that may serve the order after a failure of this
    attempt, the next one first; empty if there is nowhere to go.
    """
    changes = _decide(task, attempt, report, now, policy, onward=onward)
    return _without_words(changes) if task.state == TaskState.EXPIRED else changes


def _decide(
    task: Task, attempt: Attempt | None, report: Report, now: float, policy: TaskPolicy, *, onward: Sequence[str]
) -> Changes:
    if attempt and attempt.job_id and report.job_id and attempt.job_id != report.job_id:
        return _second_job(attempt, report)
    match report:
        case Pending():
            return _pending(task, attempt, report, now, policy)
        case Finished():
            return _finished(task, attempt, report, now, policy)
        case Failed():
            return _failed(task, attempt, report, now, policy, onward=onward)
        case _:
            assert_never(report)


def _without_words(changes: Changes) -> Changes:
    """Return the changes for a task that is deleted: what it cost, but nothing of its result or of what was said."""
    words = {"provider_code": None, "duplicate_result": NO_RESULT}
    kept = {name: words[name] for name in changes.attempt.keys() & words.keys()}
    return changes._replace(attempt={**changes.attempt, **kept})


def _duplicate(attempt: Attempt, report: Report) -> Changes:
    """Keep a second result of one attempt, for comparison with the invoice."""
    if attempt.duplicate_result is not None:
        return NOTHING
    outputs = report.outputs if isinstance(report, Finished) else ()
    return Changes(attempt={"duplicate_result": json.dumps({"job_id": report.job_id, "outputs": outputs})})


def _second_job(attempt: Attempt, report: Report) -> Changes:
    """Keep a report about another job id than the attempt's: the provider made, and bills, two jobs."""
    if attempt.duplicate_result is not None:
        return NOTHING
    is_free = isinstance(report, Failed) and report.billed == "no"
    cost = 0.0 if is_free else _cost_of(attempt, report)
    return Changes(attempt={**_duplicate(attempt, report).attempt, "duplicate_cost": cost})


def _cost_of(attempt: Attempt, report: Report) -> float | None:
    """Return the cost of a billed job, in the provider's unit: as reported, or else by the price table."""
    reported = report.cost if isinstance(report, Finished) else None
    return attempt.price if reported is None else reported


def _is_current(task: Task, attempt: Attempt | None) -> bool:
    return attempt is None or attempt.number == task.attempt


def _enter(state: TaskState, now: float, **columns: Any) -> dict[str, Any]:
    """Return the columns of a task that comes into a state."""
    return {"state": state, "entered_at": now, "updated_at": now, **columns}


# -- pending


def _pending(task: Task, attempt: Attempt | None, report: Pending, now: float, policy: TaskPolicy) -> Changes:
    ledger = {}
    if attempt and report.job_id and not attempt.job_id:
        ledger = {"job_id": report.job_id, "outcome": "succeeded" if attempt.outcome == "succeeded" else "accepted"}
    is_unknown = task.state == TaskState.FAILED and task.error_code == "unknown_outcome"
    is_unknown = is_unknown or _waits_after_unknown(task, attempt)
    changes: dict[str, Any] = {}
    if not _is_current(task, attempt):
        pass
    elif report.job_id and (task.state == TaskState.SUBMITTING or is_unknown):
        changes = _waiting(task, attempt, report, now, policy)
    elif ledger.get("outcome") == "succeeded" and task.state == TaskState.FETCHING and task.job_id is None:
        changes = {"job_id": report.job_id}
    elif task.state == TaskState.WAITING:
        changes = _still_waiting(task, report, now, policy)
    return Changes(task=changes, attempt=ledger)


def _waits_after_unknown(task: Task, attempt: Attempt | None) -> bool:
    """Return whether the order is to be submitted again only because the outcome of this attempt was unknown."""
    return task.state == TaskState.QUEUED and attempt is not None and attempt.outcome == "unknown"


def _waiting(task: Task, attempt: Attempt | None, report: Pending, now: float, policy: TaskPolicy) -> dict[str, Any]:
    deadline_at = now + (policy.deadline_seconds if report.deadline_in is None else report.deadline_in)
    return _enter(
        TaskState.WAITING,
        now,
        **({"provider": attempt.provider, "key_id": attempt.key_id} if attempt else {}),
        job_id=report.job_id,
        step_retries=0,
        deadline_at=deadline_at,
        due_at=min(now + _pause(task, 0, report, policy), deadline_at),
        error_code=task.error_code if task.ended_at else None,
        provider_state=report.stage,
        provider_percent=report.percent,
    )


def _still_waiting(task: Task, report: Pending, now: float, policy: TaskPolicy) -> dict[str, Any]:
    if report.check_in == 0:
        # a callback says that something changed: check soon, but rate-limited, as anyone can send callbacks
        soon = max(now, task.checked_at + policy.min_recheck_seconds)
        return {"due_at": soon if task.due_at <= now else min(task.due_at, soon)}
    if now >= task.deadline_at:
        return _fail(task, "deadline_exceeded", "the provider did not finish in time", now, policy, billed="unknown")
    changes = _check_again(task, _pause(task, task.step_retries + 1, report, policy), now)
    if report.stage is not None and (report.stage, report.percent) != (task.provider_state, task.provider_percent):
        changes |= {"provider_state": report.stage, "provider_percent": report.percent, "updated_at": now}
    return changes


def _check_again(task: Task, pause: float, now: float) -> dict[str, Any]:
    due_at = min(now + pause, task.deadline_at)  # the last check is made at the deadline itself
    return {"due_at": due_at, "step_retries": task.step_retries + 1, "checked_at": now}


def _pause(task: Task, retries: int, report: Pending, policy: TaskPolicy) -> float:
    if report.check_in:
        return report.check_in
    if task.expects_callback:
        return float(min(policy.check_after_seconds * 1.5 ** min(retries, 20), policy.max_check_pause_seconds))
    return policy.poll_seconds if retries < 40 else policy.poll_seconds * 3


def check_failed(task: Task, now: float, policy: TaskPolicy, retry_in: float | None = None) -> Changes:
    """Return what a failed check changes: no response, or one that is not readable."""
    if task.state != TaskState.WAITING:
        return NOTHING
    if now >= task.deadline_at:
        detail = "the provider could not be reached or did not know the job"
        return Changes(task=_fail(task, "deadline_exceeded", detail, now, policy, billed="unknown"))
    return Changes(task=_check_again(task, retry_in or backoff_seconds(task.step_retries, policy), now))


def switch_to_polling(task: Task, now: float, policy: TaskPolicy) -> Changes:
    """Return the changes of a task whose callback can no longer arrive: check the job instead.

    A submission with unknown outcome goes on waiting. Only a callback can prove it, the public URL may come back, and
    giving up earlier could only cost a second submission.
    """
    if task.state != TaskState.WAITING or not task.expects_callback:
        return NOTHING
    return Changes(task={"expects_callback": False, "due_at": min(task.due_at, now + policy.poll_seconds)})


# -- finished


def _finished(task: Task, attempt: Attempt | None, report: Finished, now: float, policy: TaskPolicy) -> Changes:
    if not report.outputs:
        return _finished_empty(task, attempt, report, now, policy)
    ledger = {}
    if attempt and attempt.outcome != "succeeded":
        cost = _cost_of(attempt, report)
        job_id = attempt.job_id or report.job_id
        ledger = {"outcome": "succeeded", "job_id": job_id, "cost": cost, "billed": "yes", "ended_at": now}
    if task.state in CANCELABLE_STATES or (task.state == TaskState.FAILED and report.outputs != task.outputs):
        return Changes(task=_fetching(task, attempt, report, now, policy), attempt=ledger)
    if attempt and (task.state == TaskState.CANCELED or not _is_same_job(task, attempt, report)):
        return Changes(attempt={**ledger, **_duplicate(attempt, report).attempt})
    if task.state == TaskState.FETCHING and report.outputs != task.outputs:
        return Changes(task={"outputs": report.outputs}, attempt=ledger)  # fresh links for the next download
    return Changes(attempt=ledger)


def _is_same_job(task: Task, attempt: Attempt, report: Finished) -> bool:
    """Return whether this is the result that the task has already."""
    job_id = report.job_id or attempt.job_id
    return job_id == task.job_id if job_id and task.job_id else _is_current(task, attempt)


def _fetching(task: Task, attempt: Attempt | None, report: Finished, now: float, policy: TaskPolicy) -> dict[str, Any]:
    """Return the columns of a task with a result; it may be that of an earlier attempt at another provider."""
    source: dict[str, Any] = {"cost": report.cost, "provider": task.provider}
    if attempt is not None:
        cost = _cost_of(attempt, report)
        source = {"provider": attempt.provider, "key_id": attempt.key_id}
        source |= {"cost": cost, "cost_usd": attempt.to_usd(cost)}
    return _enter(
        TaskState.FETCHING,
        now,
        **source,
        job_id=report.job_id or (attempt.job_id if attempt else task.job_id),
        outputs=report.outputs,
        texts=report.texts,
        turn=report.turn,
        tokens=report.tokens,
        finished_at=now,
        billed="yes",
        step_retries=0,
        due_at=policy.download_at(source["provider"], now),
        deadline_at=now + policy.deadline_seconds,
    )


def _finished_empty(task: Task, attempt: Attempt | None, report: Finished, now: float, policy: TaskPolicy) -> Changes:
    """Check a success without a result once more, then fail; providers send these occasionally."""
    if task.state == TaskState.SUBMITTING:
        return _pending(task, attempt, Pending(job_id=report.job_id, check_in=policy.retry_seconds), now, policy)
    if task.state != TaskState.WAITING or not _is_current(task, attempt):
        return NOTHING
    if task.error_code != "no_image":
        return Changes(task={"error_code": "no_image", "due_at": now + policy.retry_seconds, "checked_at": now})
    detail = "the provider said success and named no image"
    ledger = {"outcome": "failed", "code": "no_image", "ended_at": now} if attempt else {}
    return Changes(task=_fail(task, "no_image", detail, now, policy, billed="unknown"), attempt=ledger)


# -- failed


def _failed(
    task: Task,
    attempt: Attempt | None,
    report: Failed,
    now: float,
    policy: TaskPolicy,
    *,
    onward: Sequence[str],
) -> Changes:
    ledger = {}
    if attempt and attempt.outcome not in {"succeeded", "failed", "refused"}:
        ledger = {
            "outcome": "failed" if attempt.job_id or report.job_id else "refused",
            "job_id": attempt.job_id or report.job_id,
            "code": report.code,
            "provider_code": report.provider_code,
            "billed": report.billed,
            "cost": attempt.price if report.billed == "yes" else None,
            "ended_at": now,
        }
    if task.state not in CANCELABLE_STATES or not _is_current(task, attempt):
        return Changes(attempt=ledger)
    if task.state == TaskState.QUEUED and attempt is not None and not _waits_after_unknown(task, attempt):
        return Changes(attempt=ledger)  # repeated: the decision was made before
    if task.attempt <= 1:
        task = replace(task, billed="no")  # it was unknown of this attempt alone, which the report is about
    again_at = _another_attempt_at(task, report, now, policy, onward)
    if again_at is None:
        return Changes(task=_fail_with(task, report, now, policy), attempt=ledger)
    queued = {
        **_queue_again(report.code, report.message, again_at, now),
        "billed": task.billed,
        **_redirect(task, onward, now, f"after {report.code} at {shown_account(task.provider)}"),
    }
    return Changes(task=queued, attempt=ledger)


def _another_attempt_at(
    task: Task, report: Failed, now: float, policy: TaskPolicy, onward: Sequence[str]
) -> float | None:
    """Return the moment of another attempt, or None. Only an attempt that certainly cost nothing is repeated."""
    if report.billed != "no" or task.ended_at is not None or not (report.retryable or onward):
        return None
    had_a_job = task.job_id is not None or report.job_id is not None
    if had_a_job and task.attempt >= policy.max_attempts:
        return None
    if onward and (report.is_account_error or task.attempt < len(task.candidates)):
        return now  # to a key or a provider that has not just refused it
    wait = 0.0 if onward else report.retry_in or 0.0
    again_at = now + max(wait, backoff_seconds(task.attempt - 1, policy))
    return again_at if again_at <= task.deadline_at else None


def _redirect(task: Task, onward: Sequence[str], now: float, reason: str) -> dict[str, Any]:
    """Return the columns of a task that goes to the first of these providers; none if it stays."""
    if not onward:
        return {}
    columns: dict[str, Any] = {"provider": onward[0], "candidates": tuple(onward)}
    if onward[0] != task.provider and len(task.routes) < MAX_ROUTES:
        move = {"provider": onward[0], "candidate": True, "reason": reason, "at": now}
        columns["routes"] = (*task.routes, move)
    return columns


def move_to(
    task: Task, now: float, policy: TaskPolicy, onward: Sequence[str], *, report: Failed | None = None
) -> Changes:
    """Return the changes of a queued task that goes to another provider.

    report: why its own could not get the references; None if it takes no orders now.
    """
    if task.state != TaskState.QUEUED or onward[0] == task.provider:
        return NOTHING
    reason = (
        f"{shown_account(task.provider)} takes no orders now"
        if report is None
        else f"after {report.code} at {shown_account(task.provider)}"
    )
    return Changes(task={**_redirect(task, onward, now, reason), "updated_at": now})


def _queue_again(code: str, detail: str, again_at: float, now: float) -> dict[str, Any]:
    """Return the columns of a task that goes back to the queue, with the reason in case it times out there."""
    columns = {"job_id": None, "step_retries": 0, "due_at": again_at, "error_code": code, "error_detail": detail}
    return _enter(TaskState.QUEUED, now, **columns)


def _fail_with(task: Task, report: Failed, now: float, policy: TaskPolicy) -> dict[str, Any]:
    columns = _fail(task, report.code, report.message, now, policy, billed=report.billed, retryable=report.retryable)
    return {**columns, "provider_code": report.provider_code}


def _fail(
    task: Task, code: str, detail: str, now: float, policy: TaskPolicy, *, billed: str, retryable: bool = True
) -> dict[str, Any]:
    """Return the columns of a failed task. An end that callers saw before keeps its time.

    After an attempt that may have been billed, a later one that was not does not make the task free.
    """
    return _enter(
        TaskState.FAILED,
        now,
        error_code=code,
        error_detail=detail,
        error_retryable=retryable,
        billed="unknown" if billed == "no" and task.billed == "unknown" and task.ended_at is None else billed,
        ended_at=task.ended_at or now,
        due_at=_kept_until(task, now, policy),
    )


def _kept_until(task: EndedTask, ended_at: float, policy: TaskPolicy) -> float:
    """Return when retention deletes a task that has ended; never while it is pinned."""
    return ended_at + policy.retention_seconds if task.pinned_at is None else math.inf


# -- submitting


def begin_submission(task: Task, *, key_id: str, expects_callback: bool, now: float, policy: TaskPolicy) -> Changes:
    """Return the changes to write before the one request that can cost money: a crash must not submit twice.

    The row is due when the deadline of the provider is over, or at once where no callback can arrive.
    """
    deadline_at = now + policy.deadline_seconds if task.attempt == 0 else task.deadline_at
    columns = _enter(
        TaskState.SUBMITTING,
        now,
        attempt=task.attempt + 1,
        key_id=key_id,
        sent_at=now,
        expects_callback=expects_callback,
        job_id=None,
        step_retries=0,
        deadline_at=deadline_at,
        due_at=max(deadline_at, now) if expects_callback else now,
    )
    return Changes(task=columns)


def upload_failed(task: Task, now: float, policy: TaskPolicy, report: Failed, onward: Sequence[str] = ()) -> Changes:
    """Return the changes after a failed upload of references. Nothing was submitted: retry until the deadline."""
    if task.state != TaskState.QUEUED:
        return NOTHING
    if onward and onward[0] != task.provider:
        return move_to(task, now, policy, onward, report=report)
    deadline_at = min(task.deadline_at, now + policy.deadline_seconds)
    again_at = now + max(report.retry_in or 0.0, backoff_seconds(task.step_retries, policy))
    if not report.retryable or again_at > deadline_at:
        return Changes(task=_fail_with(task, report, now, policy))
    again = {"due_at": again_at, "step_retries": task.step_retries + 1, "deadline_at": deadline_at}
    return Changes(task={**again, "error_code": report.code, "error_detail": report.message})


def outcome_unknown(task: Task, now: float, policy: TaskPolicy, attempt: int, onward: Sequence[str] = ()) -> Changes:
    """Return the changes after a submission with unknown outcome: wait for its callback, then fail or submit again.

    attempt: number of that attempt; by now a later one may have begun. onward: as in `apply_report`.
    """
    if task.state != TaskState.SUBMITTING or attempt != task.attempt:
        return NOTHING
    if task.expects_callback and now < task.deadline_at:
        return Changes(task={"due_at": task.deadline_at}, attempt={"outcome": "unknown"})
    detail = "the connection broke during the submission; whether the provider made and billed an image is unknown"
    ledger = {"outcome": "unknown", "code": "unknown_outcome", "ended_at": now}
    if policy.resubmit_unknown and task.attempt < policy.max_attempts:
        # at its old place: behind all later orders it could time out in the queue
        again = _queue_again("unknown_outcome", detail, min(task.created_at, now), now)
        again |= _redirect(task, onward, now, f"after unknown_outcome at {shown_account(task.provider)}")
        again |= {"billed": "unknown", "deadline_at": now + policy.deadline_seconds}
        return Changes(task=again, attempt=ledger)
    return Changes(task=_fail(task, "unknown_outcome", detail, now, policy, billed="unknown"), attempt=ledger)


def queue_timeout(task: Task, now: float, policy: TaskPolicy) -> Changes:
    """Return the changes of a task that waited in the queue for too long."""
    if task.state != TaskState.QUEUED or now < task.deadline_at:
        return NOTHING
    code = task.error_code or "deadline_exceeded"
    detail = task.error_detail or "the order waited in the queue for too long"
    return Changes(task=_fail(task, code, detail, now, policy, billed="no"))


def account_removed(task: Task, now: float, policy: TaskPolicy) -> Changes:
    """Return the changes of a queued task whose user has removed the key with which it was to be submitted."""
    if task.state != TaskState.QUEUED:
        return NOTHING
    detail = f"your own key at {provider_of(task.provider)} was removed before the order was submitted"
    return Changes(task=_fail(task, "provider_auth", detail, now, policy, billed="no"))


# -- fetching


def downloaded(task: Task, now: float, policy: TaskPolicy, stored: int, failures: Sequence[DownloadFailure]) -> Changes:
    """Return the changes after a download: `stored` results are here, each of `failures` is one that is not."""
    if task.state != TaskState.FETCHING:
        return NOTHING
    if not failures:
        return Changes(task=_succeed(task, now, policy))
    worst = min(failures, key=lambda failure: (failure.is_final, failure.is_blocked))  # the one that may still recover
    late, over = now >= task.deadline_at, now >= task.deadline_at + policy.result_kept_seconds
    longest_pause, kept_seconds = policy.max_retry_seconds, policy.short_kept_seconds.get(provider_of(task.provider))
    if kept_seconds is not None and task.finished_at is not None:
        over = now >= task.finished_at + kept_seconds
        longest_pause = min(longest_pause, kept_seconds / MIN_RETRIES_WHILE_KEPT)
    is_exhausted = worst.is_blocked or task.step_retries + 1 >= policy.max_dead_link_retries
    is_conclusive = worst.is_final and (late or is_exhausted)
    if stored and (is_conclusive or over):
        return Changes(task=_succeed(task, now, policy))  # partial success: the rest is not available
    if over:
        return Changes(task=_fail(task, worst.code, worst.message, now, policy, billed="yes"))
    pause = backoff_seconds(task.step_retries, policy, max_seconds=longest_pause)
    changes: dict[str, Any] = {"due_at": now + pause, "step_retries": task.step_retries + 1}
    if (is_conclusive or late) and task.ended_at is None:
        # callers see the failure now; the image is paid, so the download is retried while the provider keeps it
        changes |= {"ended_at": now, "updated_at": now}
        changes |= {"error_code": worst.code, "error_detail": worst.message, "error_retryable": True}
    return Changes(task=changes)


def _succeed(task: Task, now: float, policy: TaskPolicy) -> dict[str, Any]:
    columns = {"error_code": None, "error_detail": None, "error_retryable": False}
    return _enter(TaskState.SUCCEEDED, now, **columns, ended_at=now, due_at=_kept_until(task, now, policy))


# -- ends


def cancel(task: Task, now: float, policy: TaskPolicy) -> Changes:
    """Return the changes of a cancellation; NOTHING when the image is being downloaded or the task has ended."""
    if task.state not in CANCELABLE_STATES or task.has_ended:
        return NOTHING
    billed = "no" if task.state == TaskState.QUEUED else "unknown"
    changes = _fail(task, "canceled", "canceled by the caller", now, policy, billed=billed)
    return Changes(task={**changes, "state": TaskState.CANCELED})


def expire(task: EndedTask, now: float, policy: TaskPolicy, *, kept_until: float = 0.0) -> Changes:
    """Return the changes at the end of retention: content is deleted, the row stays as a tombstone.

    kept_until: it is needed until then at least.
    """
    expires_at = max(_kept_until(task, task.ended_at or now, policy), kept_until)
    if now < expires_at:
        return Changes(task={"due_at": expires_at})
    return expire_now(now)


def delete(task: Task, now: float, policy: TaskPolicy) -> Changes:
    """Return the changes of a deletion on request: retention that is over now; NOTHING while the task has not ended."""
    if not task.has_ended or task.state == TaskState.EXPIRED:
        return NOTHING
    return expire_now(now)


def erase(task: Task, now: float) -> Changes:
    """Return the changes of a task whose account is deleted, in any state: only amounts and times stay.

    A task that has not ended ends here. Its files are deleted again once a download that still runs has ended.
    """
    columns = {**(_NO_CONTENT if task.state == TaskState.EXPIRED else expire_now(now).task)}
    columns |= {"caller": DELETED_OWNER, "job_id": None, "aspect_ratio": None, "requested_provider": None}
    columns |= {"candidates": (), "routes": ()}
    if is_own_account(task.provider):
        columns |= {"provider": f"{provider_of(task.provider)}{ACCOUNT_MARK}", "key_id": ""}
    if task.ended_at is None:
        columns |= {"ended_at": now, "error_code": "canceled", "error_retryable": False}
    if task.state in ACTIVE_STATES:
        columns["due_at"] = now + LATE_FILES_SECONDS
    return Changes(task=columns)


def pin(task: Task, now: float, policy: TaskPolicy) -> Changes:
    """Return the changes that keep a task beyond retention; NOTHING if it is pinned already, or expired."""
    if task.pinned_at is not None or task.state == TaskState.EXPIRED:
        return NOTHING
    changes: dict[str, Any] = {"pinned_at": now}
    if task.state in RETAINED_STATES:
        # without its lease: retention may have claimed the row before it was pinned
        changes |= {"due_at": math.inf, "lease_until": 0.0, "leased_by": ""}
    return Changes(task=changes)


def unpin(task: Task, now: float, policy: TaskPolicy) -> Changes:
    """Return the changes that hand a task back to retention, which may be due at once; NOTHING if it is not pinned."""
    if task.pinned_at is None or task.state == TaskState.EXPIRED:
        return NOTHING
    changes: dict[str, Any] = {"pinned_at": None}
    if task.state in RETAINED_STATES:
        changes["due_at"] = (task.ended_at or now) + policy.retention_seconds
    return Changes(task=changes)


def expire_now(now: float) -> Changes:
    """Return the changes that delete the content of an ended task."""
    return Changes(task=_enter(TaskState.EXPIRED, now, **_NO_CONTENT, step_retries=0, due_at=now))


def files_deleted(now: float, policy: TaskPolicy) -> Changes:
    """Return the changes of an expired task after its files are deleted."""
    return Changes(task={"step_retries": 1, "due_at": now + policy.tombstone_seconds})
