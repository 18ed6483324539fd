"""The decisions about tasks, without I/O."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker.reports import Failed, Finished, Pending, Report
from broker.tasks.lifecycle import (
    NOTHING,
    Changes,
    DownloadFailure,
    apply_report,
    begin_submission,
    cancel,
    check_failed,
    delete,
    downloaded,
    expire,
    files_deleted,
    move_to,
    outcome_unknown,
    queue_timeout,
    switch_to_polling,
    upload_failed,
)
from broker.tasks.policy import TaskPolicy
from storage.attempts import Attempt
from storage.states import TaskState
from storage.tasks import Task

NOW = 10_000.0
POLICY = TaskPolicy()
SHORT_KEPT = TaskPolicy(short_kept_seconds={"kie": 3600.0})
URLS = ("https://cdn.example/a.png",)
RANK = {"pending": 0, "processing": 1, "failed": 2, "canceled": 3, "completed": 3, "expired": 4}


def a_task(state: TaskState = TaskState.QUEUED, **changes: Any) -> Task:
    values: dict[str, Any] = {
        "id": "task_1",
        "batch": "task_1",
        "caller": "house:local",
        "state": state,
        "due_at": NOW,
        "provider": "kie",
        "model": "nano-banana",
        "mode": "text-to-image",
        "prompt": "a red bicycle",
        "attempt": 0 if state == TaskState.QUEUED else 1,
        "expects_callback": True,
        "job_id": "job" if state in {TaskState.WAITING, TaskState.FETCHING, TaskState.SUCCEEDED} else None,
        "outputs": URLS if state in {TaskState.FETCHING, TaskState.SUCCEEDED} else (),
        "deadline_at": NOW + 900,
        "created_at": NOW,
        "updated_at": NOW,
        "entered_at": NOW,
    }
    return Task(**{**values, **changes})


def an_attempt(**changes: Any) -> Attempt:
    return Attempt(
        **{"task_id": "task_1", "number": 1, "provider": "kie", "key_id": "default", "sent_at": NOW, **changes}
    )


def accepted() -> Attempt:
    return an_attempt(job_id="job", outcome="accepted")


def applied(task: Task, changes: Changes) -> Task:
    return replace(task, **changes.task)


REFUSED = Failed(code="provider_rate_limited", message="slow down", retryable=True, billed="no", retry_in=5)
REJECTED = Failed(code="safety_input", message="flagged", retryable=False, billed="unknown", job_id="job")
FREE_FAILURE = Failed(code="provider_error", message="internal error", retryable=True, billed="no", job_id="job")
DONE = Finished(outputs=URLS, job_id="job", cost=4)


# -- switch to polling


def test_switch_to_polling_makes_a_waiting_task_due_soon() -> None:
    waiting = a_task(TaskState.WAITING, due_at=NOW + 60)
    assert switch_to_polling(waiting, NOW, POLICY).task == {"expects_callback": False, "due_at": NOW + 3}
    assert switch_to_polling(replace(waiting, due_at=NOW + 1), NOW, POLICY).task["due_at"] == NOW + 1
    assert switch_to_polling(replace(waiting, expects_callback=False), NOW, POLICY) == NOTHING


@pytest.mark.parametrize("state", [state for state in TaskState if state != TaskState.WAITING])
def test_switch_to_polling_changes_no_other_state(state: TaskState) -> None:
    """A submission with unknown outcome in particular: given up early, it could be submitted and paid again."""
    assert switch_to_polling(a_task(state), NOW, POLICY) == NOTHING


# -- submitting


def test_begin_submission_is_due_at_the_deadline_of_the_provider() -> None:
    changes = begin_submission(a_task(), key_id="key", expects_callback=True, now=NOW, policy=POLICY).task
    assert (changes["state"], changes["attempt"], changes["due_at"]) == (TaskState.SUBMITTING, 1, NOW + 900)


def test_job_id_leads_to_waiting_with_a_later_check() -> None:
    changes = apply_report(a_task(TaskState.SUBMITTING), an_attempt(), Pending(job_id="job"), NOW, POLICY)
    assert changes.task["state"] == TaskState.WAITING
    assert changes.task["due_at"] == NOW + POLICY.check_after_seconds
    assert changes.attempt == {"job_id": "job", "outcome": "accepted"}


def test_job_without_callback_is_checked_every_three_seconds() -> None:
    task = a_task(TaskState.SUBMITTING, expects_callback=False)
    assert apply_report(task, an_attempt(), Pending(job_id="job"), NOW, POLICY).task["due_at"] == NOW + 3


def test_free_refusal_returns_the_task_to_the_queue() -> None:
    changes = apply_report(a_task(TaskState.SUBMITTING), an_attempt(), REFUSED, NOW, POLICY)
    assert (changes.task["state"], changes.task["due_at"]) == (TaskState.QUEUED, NOW + 5)
    assert changes.attempt["outcome"] == "refused"


def test_repeated_refusal_changes_nothing() -> None:
    task = a_task(TaskState.QUEUED, attempt=1, due_at=NOW + 5)
    assert apply_report(task, an_attempt(outcome="refused"), REFUSED, NOW + 1, POLICY) == NOTHING


def test_failed_upload_of_references_is_retried_until_the_deadline() -> None:
    task = a_task(TaskState.QUEUED, deadline_at=NOW + POLICY.queue_seconds)
    again = applied(task, upload_failed(task, NOW, POLICY, REFUSED))
    assert (again.state, again.due_at, again.deadline_at, again.attempt) == (TaskState.QUEUED, NOW + 5, NOW + 900, 0)
    assert upload_failed(again, again.deadline_at, POLICY, REFUSED).task["state"] == TaskState.FAILED
    assert upload_failed(task, NOW, POLICY, replace(REFUSED, retryable=False)).task["state"] == TaskState.FAILED
    assert upload_failed(a_task(TaskState.CANCELED), NOW, POLICY, REFUSED) == NOTHING


def test_unknown_outcome_of_an_earlier_attempt_changes_nothing() -> None:
    assert outcome_unknown(a_task(TaskState.SUBMITTING, attempt=2, deadline_at=NOW), NOW, POLICY, attempt=1) == NOTHING


def test_refused_task_fails_at_the_deadline() -> None:
    task = a_task(TaskState.SUBMITTING, deadline_at=NOW + 3)
    assert apply_report(task, an_attempt(), REFUSED, NOW, POLICY).task["error_code"] == "provider_rate_limited"


@pytest.mark.parametrize("billed", ["yes", "unknown"])
def test_failure_that_may_have_cost_money_is_not_resubmitted(billed: Any) -> None:
    report = replace(FREE_FAILURE, billed=billed)
    assert apply_report(a_task(TaskState.WAITING), accepted(), report, NOW, POLICY).task["state"] == TaskState.FAILED


def test_free_failure_is_resubmitted_a_limited_number_of_times() -> None:
    first = apply_report(a_task(TaskState.WAITING), accepted(), FREE_FAILURE, NOW, POLICY)
    assert first.task["state"] == TaskState.QUEUED
    third = a_task(TaskState.WAITING, attempt=3)
    assert (
        apply_report(third, replace(accepted(), number=3), FREE_FAILURE, NOW, POLICY).task["state"] == TaskState.FAILED
    )


def test_unknown_outcome_waits_for_the_callback_and_is_not_resubmitted() -> None:
    task = a_task(TaskState.SUBMITTING)
    waiting = outcome_unknown(task, NOW, POLICY, 1)
    assert waiting.task == {"due_at": task.deadline_at}
    ended = outcome_unknown(task, task.deadline_at, POLICY, 1)
    assert (ended.task["state"], ended.task["error_code"], ended.task["billed"]) == (
        TaskState.FAILED,
        "unknown_outcome",
        "unknown",
    )


def test_unknown_outcome_without_callback_fails_at_once() -> None:
    assert (
        outcome_unknown(a_task(TaskState.SUBMITTING, expects_callback=False), NOW, POLICY, 1).task["error_code"]
        == "unknown_outcome"
    )


def test_unknown_outcome_is_resubmitted_if_the_setting_allows() -> None:
    policy = replace(POLICY, resubmit_unknown=True)
    task = a_task(TaskState.SUBMITTING, deadline_at=NOW)
    assert outcome_unknown(task, NOW, policy, 1).task["state"] == TaskState.QUEUED
    assert outcome_unknown(replace(task, attempt=3), NOW, policy, 3).task["state"] == TaskState.FAILED


def test_requeued_task_is_still_shown_as_processing() -> None:
    changes = apply_report(a_task(TaskState.SUBMITTING), an_attempt(), REFUSED, NOW, POLICY)
    assert applied(a_task(TaskState.SUBMITTING), changes).status == "processing"


# -- reports


def test_callback_before_the_submit_response_loses_nothing() -> None:
    task, attempt = a_task(TaskState.SUBMITTING), an_attempt()
    early = apply_report(task, attempt, DONE, NOW, POLICY)
    task, attempt = applied(task, early), replace(attempt, **early.attempt)
    assert (task.state, task.job_id, attempt.outcome) == (TaskState.FETCHING, "job", "succeeded")
    late = apply_report(task, attempt, Pending(job_id="job"), NOW, POLICY)
    assert late == NOTHING


def test_late_submit_response_adds_the_job_id_that_a_callback_left_out() -> None:
    attempt = an_attempt(outcome="succeeded")
    changes = apply_report(a_task(TaskState.FETCHING), attempt, Pending(job_id="job"), NOW, POLICY)
    assert changes == Changes(attempt={"job_id": "job", "outcome": "succeeded"})


def test_result_without_a_job_id_is_of_the_job_of_its_attempt() -> None:
    """Links are refreshed by that job; the callbacks of some providers do not name it."""
    queued = a_task(TaskState.SUBMITTING, attempt=2)
    found = applied(queued, apply_report(queued, accepted(), replace(DONE, job_id=None), NOW, POLICY))
    assert (found.state, found.job_id) == (TaskState.FETCHING, "job")


def test_job_of_a_later_attempt_is_not_that_of_the_result() -> None:
    """The result is of an earlier attempt, whose callback named no job."""
    fetching = a_task(TaskState.FETCHING, attempt=2, job_id=None)
    changes = apply_report(fetching, an_attempt(number=2), Pending(job_id="job"), NOW, POLICY)
    assert changes == Changes(attempt={"job_id": "job", "outcome": "accepted"})


@pytest.mark.parametrize("state", [TaskState.FETCHING, TaskState.SUCCEEDED, TaskState.CANCELED, TaskState.EXPIRED])
@pytest.mark.parametrize("report", [Pending(job_id="job"), Pending(check_in=0), REJECTED, FREE_FAILURE])
def test_late_report_does_not_change_an_end(state: TaskState, report: Report) -> None:
    assert apply_report(a_task(state), accepted(), report, NOW, POLICY).task == {}


def test_repeated_success_changes_nothing() -> None:
    attempt = replace(accepted(), outcome="succeeded")
    for state in (TaskState.FETCHING, TaskState.SUCCEEDED):
        assert apply_report(a_task(state), attempt, DONE, NOW, POLICY) == NOTHING


def test_task_is_not_free_after_an_attempt_that_may_have_been_billed() -> None:
    """A client that repeats what was not billed would pay once more."""
    policy = replace(POLICY, resubmit_unknown=True)
    again = outcome_unknown(a_task(TaskState.SUBMITTING, expects_callback=False), NOW, policy, 1)
    task = replace(a_task(), **{**again.task, "attempt": 1})
    assert (task.state, task.billed) == (TaskState.QUEUED, "unknown")
    assert cancel(task, NOW, policy).task["billed"] == "unknown"
    assert queue_timeout(task, NOW + 9e6, policy).task["billed"] == "unknown"
    refused = Failed(code="provider_rejected", message="no", retryable=False, billed="no")
    second = replace(task, state=TaskState.SUBMITTING, attempt=2)
    assert apply_report(second, an_attempt(number=2), refused, NOW, policy).task["billed"] == "unknown"
    known = an_attempt(outcome="unknown")
    assert apply_report(task, known, refused, NOW, policy).task["billed"] == "no", "a late report about that attempt"


@pytest.mark.parametrize("code", ["deadline_exceeded", "unknown_outcome", "provider_error"])
def test_success_after_failure_is_downloaded(code: str) -> None:
    task = a_task(TaskState.FAILED, error_code=code, ended_at=NOW - 5)
    landing = applied(task, apply_report(task, accepted(), DONE, NOW, POLICY))
    assert (landing.state, landing.status) == (TaskState.FETCHING, "failed")
    landed = applied(landing, downloaded(landing, NOW, POLICY, 1, []))
    assert (landed.status, landed.error_code) == ("completed", None)


def test_another_result_after_a_lost_one_is_downloaded() -> None:
    task = a_task(TaskState.FAILED, error_code="result_gone", ended_at=NOW, outputs=("https://cdn.example/dead.png",))
    assert apply_report(task, accepted(), DONE, NOW, POLICY).task["state"] == TaskState.FETCHING
    same = replace(DONE, outputs=task.outputs)
    assert apply_report(task, replace(accepted(), outcome="succeeded"), same, NOW, POLICY) == NOTHING


def test_job_id_after_unknown_outcome_is_checked_and_not_resubmitted() -> None:
    """The response came after the deadline; the job is paid."""
    task = a_task(TaskState.FAILED, error_code="unknown_outcome", ended_at=NOW - 5)
    found = applied(task, apply_report(task, an_attempt(outcome="unknown"), Pending(job_id="job"), NOW, POLICY))
    assert (found.state, found.job_id, found.status) == (TaskState.WAITING, "job", "failed")
    assert cancel(found, NOW, POLICY) == NOTHING
    assert apply_report(found, accepted(), FREE_FAILURE, NOW, POLICY).task["state"] == TaskState.FAILED
    landing = applied(found, apply_report(found, accepted(), DONE, NOW, POLICY))
    assert applied(landing, downloaded(landing, NOW, POLICY, 1, [])).status == "completed"


def test_job_id_after_unknown_outcome_ends_the_wait_for_another_submission() -> None:
    """The setting allows a second submission only as long as the first one is unknown."""
    policy = replace(POLICY, resubmit_unknown=True)
    sent, attempt = a_task(TaskState.SUBMITTING, deadline_at=NOW, key_id="default"), an_attempt()
    lost = outcome_unknown(sent, NOW, policy, 1)
    queued, attempt = applied(sent, lost), replace(attempt, **lost.attempt)
    assert queued.state == TaskState.QUEUED
    moved = applied(queued, move_to(queued, NOW, policy, ("fal", "kie")))
    assert moved.provider == "fal"
    found = applied(moved, apply_report(moved, attempt, Pending(job_id="job", check_in=0), NOW, policy))
    assert (found.state, found.provider, found.key_id, found.job_id) == (TaskState.WAITING, "kie", "default", "job")
    failed = applied(moved, apply_report(moved, attempt, REJECTED, NOW, policy))
    assert (failed.state, failed.error_code, failed.billed) == (TaskState.FAILED, "safety_input", "unknown")


def test_success_after_cancel_is_kept_as_duplicate_and_not_shown() -> None:
    changes = apply_report(a_task(TaskState.CANCELED), accepted(), DONE, NOW, POLICY)
    assert changes.task == {}
    assert json.loads(changes.attempt["duplicate_result"]) == {"job_id": "job", "outputs": list(URLS)}


@pytest.mark.parametrize(
    ("reported", "cost"), [(5.0, 5.0), (None, 4.0)], ids=["as reported", "by the price table if not reported"]
)
def test_success_costs_what_the_provider_reports(reported: float | None, cost: float) -> None:
    attempt = replace(accepted(), price=4.0, usd_per_unit=0.005)
    changes = apply_report(a_task(TaskState.WAITING), attempt, replace(DONE, cost=reported), NOW, POLICY)
    assert (changes.attempt["billed"], changes.attempt["cost"]) == ("yes", cost)
    assert (changes.task["cost"], changes.task["cost_usd"]) == (cost, cost * 0.005)


@pytest.mark.parametrize(("billed", "cost"), [("yes", 4.0), ("no", None), ("unknown", None)])
def test_failure_costs_the_price_only_if_it_was_billed(billed: Any, cost: float | None) -> None:
    attempt = replace(accepted(), price=4.0, usd_per_unit=0.005)
    changes = apply_report(a_task(TaskState.WAITING), attempt, replace(REJECTED, billed=billed), NOW, POLICY)
    assert (changes.attempt["billed"], changes.attempt["cost"]) == (billed, cost)


@pytest.mark.parametrize(
    ("report", "cost"),
    [(DONE, 4.0), (replace(DONE, cost=6.0), 6.0), (FREE_FAILURE, 0.0), (Pending(job_id="job"), 4.0)],
)
def test_second_job_of_one_attempt_adds_its_cost(report: Report, cost: float) -> None:
    attempt = replace(accepted(), price=4.0)
    changes = apply_report(a_task(TaskState.WAITING), attempt, replace(report, job_id="another"), NOW, POLICY)
    assert changes.attempt["duplicate_cost"] == cost
    assert "cost" not in changes.attempt


def test_second_job_of_one_attempt_is_kept_as_duplicate() -> None:
    foreign = replace(DONE, job_id="another", outputs=("https://evil.example/x.png",))
    changes = apply_report(a_task(TaskState.WAITING), accepted(), foreign, NOW, POLICY)
    assert changes.task == {}
    assert json.loads(changes.attempt["duplicate_result"])["job_id"] == "another"


def test_success_of_an_earlier_attempt_is_accepted() -> None:
    changes = apply_report(a_task(TaskState.QUEUED, attempt=1), an_attempt(outcome="failed"), DONE, NOW, POLICY)
    assert changes.task["state"] == TaskState.FETCHING


def test_failure_of_an_earlier_attempt_changes_only_the_ledger() -> None:
    changes = apply_report(a_task(TaskState.WAITING, attempt=2), an_attempt(), REJECTED, NOW, POLICY)
    assert changes.task == {}
    assert changes.attempt["code"] == "safety_input"


def test_unverified_callbacks_cause_rate_limited_checks() -> None:
    task = a_task(TaskState.WAITING, due_at=NOW + 30, checked_at=NOW - 2)
    assert apply_report(task, accepted(), Pending(check_in=0), NOW, POLICY).task == {"due_at": NOW + 8}
    under_way = replace(task, due_at=NOW - 1)
    assert apply_report(under_way, accepted(), Pending(check_in=0), NOW, POLICY).task == {"due_at": NOW + 8}
    quiet = replace(task, checked_at=NOW - 60)
    assert apply_report(quiet, accepted(), Pending(check_in=0), NOW, POLICY).task == {"due_at": NOW}


# -- waiting


def test_pauses_between_checks_grow_to_a_minute() -> None:
    task, pauses = a_task(TaskState.WAITING, deadline_at=NOW + 10_000), []
    for _ in range(6):
        changes = apply_report(task, accepted(), Pending(job_id="job"), NOW, POLICY)
        pauses.append(changes.task["due_at"] - NOW)
        task = applied(task, changes)
    assert pauses == sorted(pauses)
    assert pauses[-1] == 60


def test_last_check_is_at_the_deadline() -> None:
    task = a_task(TaskState.WAITING, deadline_at=NOW + 5)
    changes = apply_report(task, accepted(), Pending(job_id="job"), NOW, POLICY)
    assert changes.task["due_at"] == NOW + 5
    ended = apply_report(task, accepted(), Pending(job_id="job"), NOW + 5, POLICY)
    assert ended.task["error_code"] == "deadline_exceeded"


def test_failed_checks_are_retried_until_the_deadline() -> None:
    task = a_task(TaskState.WAITING)
    assert check_failed(task, NOW, POLICY).task["due_at"] == NOW + 2
    assert check_failed(task, task.deadline_at, POLICY).task["error_code"] == "deadline_exceeded"
    assert check_failed(a_task(TaskState.FETCHING), NOW, POLICY) == NOTHING


def test_success_without_a_result_is_checked_once_more() -> None:
    empty = Finished(outputs=(), job_id="job")
    first = apply_report(a_task(TaskState.WAITING), accepted(), empty, NOW, POLICY)
    again = applied(a_task(TaskState.WAITING), first)
    assert again.state == TaskState.WAITING
    assert apply_report(again, accepted(), DONE, NOW, POLICY).task["state"] == TaskState.FETCHING
    assert apply_report(again, accepted(), empty, NOW, POLICY).task["error_code"] == "no_image"


def test_early_success_without_a_result_keeps_the_job_id() -> None:
    changes = apply_report(a_task(TaskState.SUBMITTING), an_attempt(), Finished(outputs=(), job_id="job"), NOW, POLICY)
    assert (changes.task["state"], changes.task["job_id"]) == (TaskState.WAITING, "job")


# -- queue


def test_queued_task_fails_at_its_deadline() -> None:
    task = a_task(TaskState.QUEUED, deadline_at=NOW)
    assert queue_timeout(task, NOW, POLICY).task["error_code"] == "deadline_exceeded"
    refused = replace(task, error_code="provider_rate_limited", error_detail="slow down")
    assert queue_timeout(refused, NOW, POLICY).task["error_code"] == "provider_rate_limited"
    assert queue_timeout(task, NOW - 1, POLICY) == NOTHING


# -- fetching

GONE = DownloadFailure(code="result_gone", message="404")
SLOW = DownloadFailure(code="download_failed", message="reset")


def test_dead_link_is_retried_before_the_task_fails() -> None:
    task = a_task(TaskState.FETCHING)
    for _ in range(POLICY.max_dead_link_retries - 1):
        task = applied(task, downloaded(task, NOW, POLICY, 0, [GONE]))
        assert task.status == "processing"
    task = applied(task, downloaded(task, NOW, POLICY, 0, [GONE]))
    assert (task.status, task.error_code) == ("failed", "result_gone")


def test_blocked_address_fails_the_task_at_once_unless_another_result_may_recover() -> None:
    task, blocked = a_task(TaskState.FETCHING), replace(GONE, code="invalid_result", is_blocked=True)
    assert applied(task, downloaded(task, NOW, POLICY, 0, [blocked, blocked])).status == "failed"
    for other in (GONE, SLOW):
        assert applied(task, downloaded(task, NOW, POLICY, 0, [blocked, other])).status == "processing"


def test_download_is_retried_while_the_provider_keeps_the_result() -> None:
    shown = a_task(TaskState.FETCHING, step_retries=9, ended_at=NOW, error_code="result_gone")
    again = applied(shown, downloaded(shown, NOW, POLICY, 0, [GONE]))
    assert (again.state, again.due_at) == (TaskState.FETCHING, NOW + 2 * 2**9)
    assert applied(shown, downloaded(shown, NOW, POLICY, 1, [])).status == "completed"
    late = NOW + 900 + POLICY.result_kept_seconds
    assert downloaded(shown, late, POLICY, 0, [GONE]).task["state"] == TaskState.FAILED


def test_result_that_is_deleted_sooner_is_downloaded_first() -> None:
    """The most overdue task is claimed first, so a backlog of downloads cannot outlast a result of one hour."""
    report = Finished(outputs=URLS, job_id="job")
    usual, short = (
        apply_report(a_task(TaskState.WAITING), accepted(), report, NOW, policy).task["due_at"]
        for policy in (POLICY, SHORT_KEPT)
    )
    assert (usual, short) == (NOW, NOW - 23 * 3600)


def test_download_of_a_short_lived_result_is_retried_more_often_and_ends_with_it() -> None:
    """Replicate removes results after one hour: later retries are useless, and a long pause would miss it."""
    task, policy = a_task(TaskState.FETCHING, step_retries=12, finished_at=NOW), SHORT_KEPT
    changes = downloaded(task, NOW + 600, policy, 0, [SLOW])
    assert (changes.task["due_at"], changes.task["step_retries"]) == (NOW + 600 + 600, 13)
    assert downloaded(task, NOW + 3599, policy, 0, [SLOW]).task["due_at"] > NOW
    ended = downloaded(task, NOW + 3600, policy, 0, [SLOW]).task
    assert (ended["state"], ended["error_code"], ended["billed"]) == (TaskState.FAILED, "download_failed", "yes")


def test_some_of_several_results_are_a_success() -> None:
    task = a_task(TaskState.FETCHING, step_retries=POLICY.max_dead_link_retries - 1)
    assert downloaded(task, NOW, POLICY, 2, [GONE]).task["state"] == TaskState.SUCCEEDED
    early = a_task(TaskState.FETCHING)
    assert "state" not in downloaded(early, NOW, POLICY, 2, [GONE]).task
    assert downloaded(early, early.deadline_at, POLICY, 2, [GONE]).task["state"] == TaskState.SUCCEEDED
    assert "state" not in downloaded(early, early.deadline_at, POLICY, 2, [SLOW]).task
    assert (
        downloaded(early, early.deadline_at + POLICY.result_kept_seconds, POLICY, 2, [SLOW]).task["state"]
        == TaskState.SUCCEEDED
    )


def test_paid_image_is_downloaded_after_the_task_was_shown_as_failed() -> None:
    task = a_task(TaskState.FETCHING, deadline_at=NOW)
    shown = applied(task, downloaded(task, NOW, POLICY, 0, [SLOW]))
    assert (shown.state, shown.status, shown.error_code) == (TaskState.FETCHING, "failed", "download_failed")
    assert applied(shown, downloaded(shown, NOW + 60, POLICY, 1, [])).status == "completed"
    gone = downloaded(shown, NOW + POLICY.result_kept_seconds, POLICY, 0, [SLOW])
    assert (gone.task["state"], gone.task["billed"]) == (TaskState.FAILED, "yes")


def test_fresh_links_replace_old_ones() -> None:
    fresh = Finished(outputs=("https://cdn.example/fresh.png",), job_id="job")
    changes = apply_report(a_task(TaskState.FETCHING), replace(accepted(), outcome="succeeded"), fresh, NOW, POLICY)
    assert changes.task == {"outputs": fresh.outputs}, "and tried in their turn: a link is no reason to hurry"


def test_second_success_during_the_download_is_a_duplicate() -> None:
    task = a_task(TaskState.FETCHING, attempt=2, job_id="job")
    second = an_attempt(number=2, job_id="other", outcome="accepted")
    changes = apply_report(task, second, Finished(outputs=("https://cdn.example/b.png",), job_id="other"), NOW, POLICY)
    assert changes.task == {}
    assert (changes.attempt["outcome"], "duplicate_result" in changes.attempt) == ("succeeded", True)


# -- ends


@pytest.mark.parametrize("state", list(TaskState))
def test_only_a_task_without_a_result_can_be_canceled(state: TaskState) -> None:
    can = state in {TaskState.QUEUED, TaskState.SUBMITTING, TaskState.WAITING}
    assert bool(cancel(a_task(state), NOW, POLICY)) == can


def test_expired_task_keeps_no_content() -> None:
    task = a_task(TaskState.SUCCEEDED, ended_at=NOW, references=({"name": "r"},))
    assert expire(task, NOW + 60, POLICY).task == {"due_at": NOW + POLICY.retention_seconds}
    gone = applied(task, expire(task, NOW + POLICY.retention_seconds, POLICY))
    assert (gone.state, gone.prompt, gone.references, gone.outputs) == (TaskState.EXPIRED, "", (), ())
    assert files_deleted(NOW, POLICY).task["due_at"] == NOW + 7 * 86400


@pytest.mark.parametrize("state", list(TaskState))
def test_deletion_on_request_is_a_retention_that_is_over_now(state: TaskState) -> None:
    has_ended = state in {TaskState.SUCCEEDED, TaskState.FAILED, TaskState.CANCELED}
    task = a_task(state, ended_at=NOW if has_ended else None)
    assert bool(delete(task, NOW, POLICY)) == has_ended
    if has_ended:
        gone = applied(task, delete(task, NOW, POLICY))
        assert (gone.state, gone.prompt, gone.outputs, gone.due_at) == (TaskState.EXPIRED, "", (), NOW)


# -- in every order

EVENTS: dict[str, Report | str] = {
    "answer": Pending(job_id="job"),
    "success": DONE,
    "success again": DONE,
    "stale": Pending(job_id="job", check_in=0),
    "failure": REJECTED,
    "cancel": "cancel",
    "fetched": "fetched",
    "deadline": "deadline",
}


def happen(task: Task, attempt: Attempt, event: Report | str, now: float) -> tuple[Task, Attempt]:
    match event:
        case "cancel":
            changes = cancel(task, now, POLICY)
        case "fetched":
            changes = downloaded(task, now, POLICY, 1, [])
        case "deadline":
            changes = outcome_unknown(task, now, POLICY, task.attempt) or check_failed(task, now, POLICY)
        case Pending() | Finished() | Failed():
            changes = apply_report(task, attempt, event, now, POLICY)
        case _:
            raise AssertionError(event)
    return applied(task, changes), replace(attempt, **changes.attempt)


def test_every_order_of_events_ends_correctly() -> None:
    """40 320 orders: the status never goes back, no task is submitted twice, and no accepted success is lost.

    A common beginning is computed once.
    """

    def follow(order: tuple[str, ...], task: Task, attempt: Attempt) -> None:
        for event in [name for name in EVENTS if name not in order]:
            happened(order, event, task, attempt)
        if len(order) == len(EVENTS):
            end = happened(order, "fetched", task, attempt)
            assert end.attempt == 1, order
            assert end.state != TaskState.QUEUED, order
            if order.index("cancel") > order.index("success") and order.index("failure") > order.index("success"):
                assert end.status == "completed", order

    def happened(order: tuple[str, ...], event: str, task: Task, attempt: Attempt) -> Task:
        now = task.deadline_at if event == "deadline" else NOW
        changed_task, changed_attempt = happen(task, attempt, EVENTS[event], now)
        assert RANK[changed_task.status] >= RANK[task.status], (order, event)
        if len(order) < len(EVENTS):
            follow((*order, event), changed_task, changed_attempt)
        return changed_task

    follow((), a_task(TaskState.SUBMITTING), an_attempt())


@given(st.lists(st.sampled_from(list(EVENTS)), max_size=30), st.floats(0, 3000))
def test_status_never_goes_back(history: list[str], late: float) -> None:
    task, attempt = a_task(TaskState.SUBMITTING), an_attempt()
    for event in history:
        before = task
        task, attempt = happen(task, attempt, EVENTS[event], NOW + late)
        assert RANK[task.status] >= RANK[before.status]
        assert task.due_at >= 0


def test_resubmitted_task_keeps_its_place_in_the_queue() -> None:
    """Behind all later orders it could time out."""
    policy = replace(POLICY, resubmit_unknown=True)
    task = a_task(TaskState.SUBMITTING, attempt=1, expects_callback=False, deadline_at=NOW)
    changes = outcome_unknown(task, NOW + 50, policy, task.attempt)
    assert (changes.task["state"], changes.task["due_at"]) == (TaskState.QUEUED, task.created_at)
    assert changes.task["deadline_at"] == NOW + 50 + policy.deadline_seconds
