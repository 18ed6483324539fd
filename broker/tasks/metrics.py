"""The metrics of a change of a task."""

from __future__ import annotations

from broker.metrics import Metrics
from broker.reports import Failed, Report
from broker.tasks.lifecycle import LEARNED_BY_CHECK, Changes
from storage.states import TaskState
from storage.tasks import Task


def record_transition(metrics: Metrics, task: Task, changes: Changes, now: float, report: Report | None = None) -> None:
    """Count a change once, after its commit. task: the row before it. report: the report that caused it."""
    state = changes.task.get("state", task.state)
    if state != task.state:
        metrics.transitions.labels(task.state.value, state.value).inc()
        metrics.state_seconds.labels(task.state.value).observe(max(0.0, now - task.entered_at))
        if state == TaskState.SUBMITTING and task.attempt == 0:
            metrics.queue_seconds.labels(task.provider).observe(max(0.0, now - task.created_at))
    if changes.task.get("ended_at") is not None:
        # the first end that callers see; the image of a task shown as failed may still arrive
        if task.ended_at is None:
            outcome = "completed" if state == TaskState.SUCCEEDED else changes.task["error_code"]
            metrics.task_seconds.labels(task.model, outcome).observe(max(0.0, now - task.created_at))
            metrics.task_attempts.observe(task.attempt)
        elif state == TaskState.SUCCEEDED:
            metrics.late_results.labels(task.model).inc()
    if changes.attempt.get("duplicate_result"):
        metrics.duplicate_results.labels(task.provider).inc()
    if changes.attempt.get("outcome") == "unknown" and changes.attempt.get("ended_at") is not None:
        metrics.unknown_outcomes.labels(task.provider).inc()
    if changes.attempt.get("learned_by") == LEARNED_BY_CHECK:
        metrics.callbacks_missing.labels(task.provider).inc()
    if is_unclassified(changes, report):
        metrics.unclassified_errors.labels(task.provider).inc()


def is_unclassified(changes: Changes, report: Report | None) -> bool:
    """Return whether an attempt failed with an error that the provider's table does not contain."""
    failed = changes.attempt.get("outcome") in {"failed", "refused"}
    return failed and isinstance(report, Failed) and not report.known
