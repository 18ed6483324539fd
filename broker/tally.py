"""What a change of a task moves in the metrics."""

from __future__ import annotations

from broker.lifecycle import Changes
from broker.metrics import Metrics
from broker.reports import Failed, Report
from storage.tasks import State, Task


def count(metrics: Metrics, task: Task, changes: Changes, now: float, report: Report | None = None) -> None:
    """After the change is durable, once. task: as it was before. report: what made it change, if a provider's word."""
    state = changes.task.get("state", task.state)
    if state != task.state:
        _moved(metrics, task, state, now)
    if changes.task.get("ended_at") is not None:
        _told_an_end(metrics, task, changes, state, now)
    if changes.attempt:
        _ledger(metrics, task, changes, report)


def _moved(metrics: Metrics, task: Task, state: State, now: float) -> None:
    metrics.transitions.labels(task.state.value, state.value).inc()
    metrics.state_seconds.labels(task.state.value).observe(max(0.0, now - task.entered_at))
    if state == State.SUBMITTING and task.attempt == 0:
        metrics.queue_seconds.labels(task.provider).observe(max(0.0, now - task.created_at))


def _told_an_end(metrics: Metrics, task: Task, changes: Changes, state: State, now: float) -> None:
    """An end is told once; the image of a task that was shown as failed may still come."""
    if task.ended_at is None:
        outcome = "completed" if state == State.SUCCEEDED else changes.task["error_code"]
        metrics.task_seconds.labels(task.model, outcome).observe(max(0.0, now - task.created_at))
        metrics.task_attempts.observe(task.attempt)
    elif state == State.SUCCEEDED:
        metrics.late_results.labels(task.model).inc()


def _ledger(metrics: Metrics, task: Task, changes: Changes, report: Report | None) -> None:
    outcome = changes.attempt.get("outcome")
    if changes.attempt.get("spare"):
        metrics.spares.labels(task.provider).inc()
    if outcome == "unknown" and changes.attempt.get("ended_at") is not None:
        metrics.unknown_outcomes.labels(task.provider).inc()
    if outcome in {"failed", "refused"} and isinstance(report, Failed) and not report.known:
        metrics.unmapped_failures.labels(task.provider).inc()
