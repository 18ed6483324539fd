"""Every decision about a task's life, and no I/O.

The states are drawn in `storage.tasks`. Providers report, these functions decide, the store compares and sets. All of
them take the row as it is and return what to change; nothing to change means that the news was old. So a decision that
lost a race is simply taken again on the row the winner left.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, assert_never

from broker.reports import Failed, Finished, Pending, Report
from storage.tasks import Attempt, State, Task

UNSENT: Final = frozenset({State.QUEUED, State.SUBMITTING, State.WAITING})
"""States in which a first success is what everybody waits for, and in which a task can be canceled."""


@dataclass(frozen=True, kw_only=True)
class Rules:
    """Patience, in seconds unless said otherwise.

    check_after: first question to the provider when callbacks are expected. check_most: longest pause between two.
    poll_every: pause between questions when no callback can come. ask_every: least time between two questions that
    strangers provoke. deadline: how long a provider may take. queue: how long an order may wait for its turn.
    keep: how long a provider keeps results. retry: first pause after a failed step, doubled each time up to retry_most.
    dead_links: tries of a result that seems gone or is no image before the caller is told.
    max_attempts: submissions per task, all of them but
    the last known to have cost nothing. resubmit_unknown: order again when an outcome stays unknown (may cost twice).
    retention: how long an end is kept. tombstone: how long we remember that it was.
    """

    check_after: float = 30.0
    check_most: float = 60.0
    poll_every: float = 3.0
    ask_every: float = 10.0
    deadline: float = 900.0
    queue: float = 24 * 3600.0
    keep: float = 24 * 3600.0
    retry: float = 2.0
    retry_most: float = 3600.0
    dead_links: int = 6
    max_attempts: int = 3
    resubmit_unknown: bool = False
    retention: float = 24 * 3600.0
    tombstone: float = 7 * 24 * 3600.0


@dataclass(frozen=True, kw_only=True)
class Changes:
    """Columns to set in the task's row and in the attempt's line of the ledger."""

    task: Mapping[str, Any] = field(default_factory=dict)
    attempt: Mapping[str, Any] = field(default_factory=dict)

    def __bool__(self) -> bool:
        return bool(self.task or self.attempt)


NOTHING: Final = Changes()


@dataclass(frozen=True, kw_only=True)
class Trouble:
    """Why one result is not here yet. code: from the task error codes."""

    code: str
    message: str

    @property
    def final(self) -> bool:
        """Whether more of the same will hardly help, unlike a network or a disk that recovers."""
        return self.code in {"result_gone", "invalid_result"}


def after(task: Task, attempt: Attempt | None, report: Report, now: float, rules: Rules) -> Changes:
    """What a report about one attempt means for its task. `attempt` is None if nothing was ever submitted."""
    if attempt and attempt.job_id and report.job_id and attempt.job_id != report.job_id:
        return _second_job(attempt, report)
    match report:
        case Pending():
            return _pending(task, attempt, report, now, rules)
        case Finished():
            return _finished(task, attempt, report, now, rules)
        case Failed():
            return _failed(task, attempt, report, now, rules)
        case _:
            assert_never(report)


def _second_job(attempt: Attempt, report: Report) -> Changes:
    """Two job ids on one callback address: the provider ordered twice. Kept for whoever reads the invoice."""
    return _spare(attempt, report)


def _spare(attempt: Attempt, report: Report) -> Changes:
    if attempt.spare is not None:
        return NOTHING
    outputs = report.outputs if isinstance(report, Finished) else ()
    return Changes(attempt={"spare": json.dumps({"job_id": report.job_id, "outputs": outputs})})


def _is_current(task: Task, attempt: Attempt | None) -> bool:
    return attempt is None or attempt.number == task.attempt


# -- pending


def _pending(task: Task, attempt: Attempt | None, report: Pending, now: float, rules: Rules) -> Changes:
    ledger = _accepted(attempt, report)
    if not _is_current(task, attempt):
        return Changes(attempt=ledger)
    if report.job_id and (task.state == State.SUBMITTING or _is_unknown(task)):
        return Changes(task=_waiting(task, report, now, rules), attempt=ledger)
    if report.job_id and task.state == State.FETCHING and task.job_id is None:
        return Changes(task={"job_id": report.job_id}, attempt=ledger)
    if task.state == State.WAITING:
        return Changes(task=_still_waiting(task, report, now, rules), attempt=ledger)
    return Changes(attempt=ledger)


def _is_unknown(task: Task) -> bool:
    """We gave up because nobody could tell whether there is a job."""
    return task.state == State.FAILED and task.error_code == "unknown_outcome"


def _accepted(attempt: Attempt | None, report: Pending) -> dict[str, Any]:
    if attempt is None or attempt.job_id or not report.job_id:
        return {}
    return {"job_id": report.job_id, "outcome": "succeeded" if attempt.outcome == "succeeded" else "accepted"}


def _waiting(task: Task, report: Pending, now: float, rules: Rules) -> dict[str, Any]:
    deadline_at = now + rules.deadline
    return {
        "state": State.WAITING,
        "entered_at": now,
        "job_id": report.job_id,
        "tries": 0,
        "deadline_at": deadline_at,
        "due_at": min(now + _pause(task, 0, report, rules), deadline_at),
        "error_code": task.error_code if task.ended_at else None,
        "provider_state": report.stage,
        "provider_percent": report.percent,
        "updated_at": now,
    }


def _still_waiting(task: Task, report: Pending, now: float, rules: Rules) -> dict[str, Any]:
    if report.check_in == 0:  # somebody says there is news: ask soon, but not as often as strangers please
        soon = max(now, task.checked_at + rules.ask_every)
        return {"due_at": soon if task.due_at <= now else min(task.due_at, soon)}
    if now >= task.deadline_at:
        return failing(task, "deadline_exceeded", "the provider did not finish in time", now, rules, billed="unknown")
    return {**_ask_again(task, _pause(task, task.tries + 1, report, rules), now), **_progress(task, report, now)}


def _progress(task: Task, report: Pending, now: float) -> dict[str, Any]:
    """What the provider says of how far it is, if it says something new."""
    told = {"provider_state": report.stage, "provider_percent": report.percent}
    is_news = report.stage is not None and told != {name: getattr(task, name) for name in told}
    return {**told, "updated_at": now} if is_news else {}


def _ask_again(task: Task, pause: float, now: float) -> dict[str, Any]:
    due_at = now + pause
    if now < task.deadline_at:
        due_at = min(due_at, task.deadline_at)  # the last question is asked at the deadline itself
    return {"due_at": due_at, "tries": task.tries + 1, "checked_at": now}


def _pause(task: Task, tries: int, report: Pending, rules: Rules) -> float:
    if report.check_in:
        return report.check_in
    if task.hooked:
        return float(min(rules.check_after * 1.5 ** min(tries, 20), rules.check_most))
    return rules.poll_every if tries < 40 else rules.poll_every * 3


def unheard(task: Task, now: float, rules: Rules, retry_in: float | None = None) -> Changes:
    """The provider could not be asked, or its answer made no sense."""
    if task.state != State.WAITING:
        return NOTHING
    if now >= task.deadline_at:
        detail = "the provider could not be reached or did not know the job"
        return Changes(task=failing(task, "deadline_exceeded", detail, now, rules, billed="unknown"))
    return Changes(task=_ask_again(task, retry_in or backoff(task.tries, rules, most=rules.check_most), now))


def cut_off(task: Task, now: float, rules: Rules) -> Changes:
    """The address that the provider was given is ours no more: ask, instead of waiting for a call.

    An order of unknown outcome goes on waiting. A callback is all that can ever prove it, the address may come back,
    and to give it up earlier could only cost a second order.
    """
    if task.state != State.WAITING or not task.hooked:
        return NOTHING
    return Changes(task={"hooked": False, "due_at": min(task.due_at, now + rules.poll_every)})


# -- finished


def _finished(task: Task, attempt: Attempt | None, report: Finished, now: float, rules: Rules) -> Changes:
    if not report.outputs:
        return _empty(task, attempt, report, now, rules)
    ledger = _succeeded(attempt, report, now)
    if task.state in UNSENT or (task.state == State.FAILED and report.outputs != task.outputs):
        return Changes(task=_fetching(task, report, now, rules), attempt=ledger)
    if attempt and (task.state == State.CANCELED or not _is_same_job(task, attempt, report)):
        return Changes(attempt={**ledger, **_spare(attempt, report).attempt})
    if task.state == State.FETCHING and report.outputs != task.outputs:
        return Changes(task={"outputs": report.outputs}, attempt=ledger)  # fresh links; tried in their turn
    return Changes(attempt=ledger)


def _is_same_job(task: Task, attempt: Attempt, report: Finished) -> bool:
    """Whether this is the success that the task already has."""
    job_id = report.job_id or attempt.job_id
    return job_id == task.job_id if job_id and task.job_id else _is_current(task, attempt)


def _succeeded(attempt: Attempt | None, report: Finished, now: float) -> dict[str, Any]:
    if attempt is None or attempt.outcome == "succeeded":
        return {}
    return {
        "outcome": "succeeded",
        "job_id": attempt.job_id or report.job_id,
        "cost": report.cost,
        "billed": "yes",
        "ended_at": now,
    }


def _fetching(task: Task, report: Finished, now: float, rules: Rules) -> dict[str, Any]:
    return {
        "state": State.FETCHING,
        "entered_at": now,
        "job_id": report.job_id or task.job_id,
        "outputs": report.outputs,
        "finished_at": now,
        "cost": report.cost,
        "billed": "yes",
        "tries": 0,
        "due_at": now,
        "deadline_at": now + rules.deadline,
        "updated_at": now,
    }


def _empty(task: Task, attempt: Attempt | None, report: Finished, now: float, rules: Rules) -> Changes:
    """Success without a result: read once more, then it is a failure (kie.ai does this now and then)."""
    if task.state == State.SUBMITTING:
        return _pending(task, attempt, Pending(job_id=report.job_id, check_in=rules.retry), now, rules)
    if task.state != State.WAITING or not _is_current(task, attempt):
        return NOTHING
    if task.error_code != "no_image":
        return Changes(task={"error_code": "no_image", "due_at": now + rules.retry, "checked_at": now})
    detail = "the provider said success and named no image"
    ledger = {"outcome": "failed", "code": "no_image", "ended_at": now} if attempt else {}
    return Changes(task=failing(task, "no_image", detail, now, rules, billed="unknown"), attempt=ledger)


# -- failed


def _failed(task: Task, attempt: Attempt | None, report: Failed, now: float, rules: Rules) -> Changes:
    ledger = _lost(task, attempt, report, now)
    if task.state not in UNSENT or not _is_current(task, attempt):
        return Changes(attempt=ledger)
    if task.state == State.QUEUED and attempt is not None:
        return Changes(attempt=ledger)  # said again: what follows from it was decided before
    again_at = _another_attempt_at(task, report, now, rules)
    if again_at is None:
        return Changes(task=_told(task, report, now, rules), attempt=ledger)
    return Changes(task=requeued(task, report.code, report.message, again_at, now), attempt=ledger)


def _lost(task: Task, attempt: Attempt | None, report: Failed, now: float) -> dict[str, Any]:
    if attempt is None or attempt.outcome in {"succeeded", "failed", "refused"}:
        return {}
    return {
        "outcome": "failed" if attempt.job_id or report.job_id else "refused",
        "job_id": attempt.job_id or report.job_id,
        "code": report.code,
        "provider_code": report.provider_code,
        "billed": report.billed,
        "ended_at": now,
    }


def _another_attempt_at(task: Task, report: Failed, now: float, rules: Rules) -> float | None:
    """When to order again, or None. Only what certainly cost nothing is ordered again."""
    if not report.retryable or report.billed != "no" or task.ended_at is not None:
        return None
    had_a_job = task.job_id is not None or report.job_id is not None
    if had_a_job and task.attempt >= rules.max_attempts:
        return None
    again_at = now + max(report.retry_in or 0.0, backoff(task.attempt - 1, rules, most=rules.check_most))
    return again_at if again_at <= task.deadline_at else None


def _told(task: Task, report: Failed, now: float, rules: Rules) -> dict[str, Any]:
    return {
        **failing(task, report.code, report.message, now, rules, billed=report.billed, retryable=report.retryable),
        "provider_code": report.provider_code,
    }


def requeued(task: Task, code: str, detail: str, again_at: float, now: float) -> dict[str, Any]:
    """Back into the queue, remembering why in case its patience ends there."""
    return {
        "state": State.QUEUED,
        "entered_at": now,
        "job_id": None,
        "tries": 0,
        "due_at": again_at,
        "error_code": code,
        "error_detail": detail,
        "updated_at": now,
    }


def failing(
    task: Task, code: str, detail: str, now: float, rules: Rules, *, billed: str, retryable: bool = True
) -> dict[str, Any]:
    """The end that nobody wanted. A caller who was told an end before keeps the time of it."""
    return {
        "state": State.FAILED,
        "entered_at": now,
        "error_code": code,
        "error_detail": detail,
        "error_retryable": retryable,
        "billed": billed,
        "ended_at": task.ended_at or now,
        "due_at": now + rules.retention,
        "updated_at": now,
    }


# -- submitting


def intent(task: Task, *, hooked: bool, now: float, rules: Rules) -> Changes:
    """Written before the one request that can cost money: a crash from here on must not order twice.

    If nobody ever says what became of it, the row is due when the provider has had its time – or at once where no
    callback can come.
    """
    deadline_at = now + rules.deadline if task.attempt == 0 else task.deadline_at
    return Changes(
        task={
            "state": State.SUBMITTING,
            "entered_at": now,
            "attempt": task.attempt + 1,
            "sent_at": now,
            "hooked": hooked,
            "job_id": None,
            "tries": 0,
            "deadline_at": deadline_at,
            "due_at": max(deadline_at, now) if hooked else now,
            "updated_at": now,
        }
    )


def unprepared(task: Task, report: Failed, now: float, rules: Rules) -> Changes:
    """The references could not be handed over; nothing was ordered, so it is tried again until the deadline."""
    if task.state != State.QUEUED:
        return NOTHING
    deadline_at = min(task.deadline_at, now + rules.deadline)
    again_at = now + max(report.retry_in or 0.0, backoff(task.tries, rules, most=rules.check_most))
    if not report.retryable or again_at > deadline_at:
        return Changes(task=_told(task, report, now, rules))
    again = {"due_at": again_at, "tries": task.tries + 1, "deadline_at": deadline_at}
    return Changes(task={**again, "error_code": report.code, "error_detail": report.message})


def unknown(task: Task, now: float, rules: Rules, attempt: int | None = None) -> Changes:
    """Nobody knows whether the provider took the order: wait for its callback, then end without ordering again.

    attempt: the one whose outcome is unknown; by now another one may be under way.
    """
    if task.state != State.SUBMITTING or (attempt or task.attempt) != task.attempt:
        return NOTHING
    if task.hooked and now < task.deadline_at:
        return Changes(task={"due_at": task.deadline_at}, attempt={"outcome": "unknown"})
    detail = "the connection broke while ordering; whether the provider made and billed an image is unknown"
    ledger = {"outcome": "unknown", "code": "unknown_outcome", "ended_at": now}
    if rules.resubmit_unknown and task.attempt < rules.max_attempts:
        return Changes(
            # where it stood in the queue: behind all that came meanwhile its patience would end before its turn
            task={
                **requeued(task, "unknown_outcome", detail, min(task.created_at, now), now),
                "deadline_at": now + rules.deadline,
            },
            attempt=ledger,
        )
    return Changes(task=failing(task, "unknown_outcome", detail, now, rules, billed="unknown"), attempt=ledger)


def overdue(task: Task, now: float, rules: Rules) -> Changes:
    """An order whose patience ended in the queue."""
    if task.state != State.QUEUED or now < task.deadline_at:
        return NOTHING
    code = task.error_code or "deadline_exceeded"
    detail = task.error_detail or "the order waited too long for its turn"
    return Changes(task=failing(task, code, detail, now, rules, billed="no"))


# -- fetching


def fetched(task: Task, stored: int, troubles: Sequence[Trouble], now: float, rules: Rules) -> Changes:
    """After a try to bring the results home: `stored` are here, each of `troubles` is one that is not."""
    if task.state != State.FETCHING:
        return NOTHING
    if not troubles:
        return Changes(task=_succeeding(now, rules))
    worst = next((t for t in troubles if not t.final), troubles[0])
    late, over = now >= task.deadline_at, now >= task.deadline_at + rules.keep
    believed = worst.final and (late or task.tries + 1 >= rules.dead_links)
    if stored and (believed or over):
        return Changes(task=_succeeding(now, rules))  # what is here is enough, the rest is not to be had
    if over:
        return Changes(task=_lost_result(task, worst, now, rules))
    told = _told_early(task, worst, now) if believed or late else {}
    return Changes(task={**told, **_fetch_again(task, now, rules)})


def _succeeding(now: float, rules: Rules) -> dict[str, Any]:
    return {
        "state": State.SUCCEEDED,
        "entered_at": now,
        "error_code": None,
        "error_detail": None,
        "error_retryable": False,
        "ended_at": now,
        "due_at": now + rules.retention,
        "updated_at": now,
    }


def _lost_result(task: Task, trouble: Trouble, now: float, rules: Rules) -> dict[str, Any]:
    return failing(task, trouble.code, trouble.message, now, rules, billed="yes")


def _fetch_again(task: Task, now: float, rules: Rules) -> dict[str, Any]:
    return {"due_at": now + backoff(task.tries, rules, most=rules.retry_most), "tries": task.tries + 1}


def _told_early(task: Task, trouble: Trouble, now: float) -> dict[str, Any]:
    """The caller hears of the failure now; the image is paid, so we keep trying while the provider keeps it."""
    if task.ended_at is not None:
        return {}
    return {
        "ended_at": now,
        "updated_at": now,
        "error_code": trouble.code,
        "error_detail": trouble.message,
        "error_retryable": True,
    }


# -- ends


def canceled(task: Task, now: float, rules: Rules) -> Changes:
    """NOTHING when it is too late: the image is on its way or the task has ended."""
    if task.state not in UNSENT or task.ended:
        return NOTHING
    billed = "no" if task.state == State.QUEUED else "unknown"
    changes = failing(task, "canceled", "canceled by the caller", now, rules, billed=billed)
    return Changes(task={**changes, "state": State.CANCELED})


def expired(task: Task, now: float, rules: Rules) -> Changes:
    """Retention: what the caller gave and got is forgotten; that there was a task is remembered for a while."""
    expires_at = (task.ended_at or now) + rules.retention
    if now < expires_at:
        return Changes(task={"due_at": expires_at})
    return Changes(
        task={
            "state": State.EXPIRED,
            "entered_at": now,
            "prompt": "",
            "refs": (),
            "outputs": (),
            "callback_url": None,
            "error_detail": None,
            "tries": 0,
            "due_at": now,
            "updated_at": now,
        }
    )


def emptied(now: float, rules: Rules) -> Changes:
    """An expired task whose files are gone, too."""
    return Changes(task={"tries": 1, "due_at": now + rules.tombstone})


def backoff(tries: int, rules: Rules, *, most: float) -> float:
    """Seconds before try number `tries` + 1 is repeated."""
    return float(min(rules.retry * 2.0 ** min(max(tries, 0), 20), most))
