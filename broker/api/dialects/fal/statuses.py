"""The state of a request, as fal tells it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from broker.api.dialects.fal.schemas import FalLog, FalMetrics, FalStatus
from broker.api.shared.task_errors import task_error
from broker.clock import iso
from broker.i18n import Messages
from broker.notifications.formats.fal import failure_type
from broker.tasks.eta import EtaEstimator
from storage.ids import provider_of
from storage.tasks import Task

IN_QUEUE: Final = "IN_QUEUE"
IN_PROGRESS: Final = "IN_PROGRESS"
COMPLETED: Final = "COMPLETED"


def request_addresses(base: str, app: str, request_id: str) -> dict[str, Any]:
    """Return the fields that identify a request. base: where the client reaches us."""
    address = f"{base}/fal/{app}/requests/{request_id}"
    return {
        "request_id": request_id,
        "gateway_request_id": request_id,
        "response_url": address,
        "status_url": f"{address}/status",
        "cancel_url": f"{address}/cancel",
    }


@dataclass(frozen=True, kw_only=True)
class FalStatuses:
    eta: EtaEstimator
    messages: Messages

    async def describe(self, tasks: Sequence[Task], addresses: dict[str, Any], *, with_logs: bool) -> FalStatus:
        """Return the state of a request. tasks: its images, in order."""
        logs = self._logs(tasks) if with_logs else None
        if all(task.has_ended for task in tasks):
            return self._ended(tasks, addresses, logs)
        if all(task.status == "pending" for task in tasks):
            position = await self.queue_position(tasks[0])
            return FalStatus(status=IN_QUEUE, queue_position=position, logs=logs, **addresses)
        return FalStatus(status=IN_PROGRESS, logs=logs, **addresses)

    async def queue_position(self, task: Task) -> int:
        """Return how many orders are before a task in the queue."""
        progress = await self.eta.estimate(task)
        return max(0, (progress.position or 1) - 1)

    def _ended(self, tasks: Sequence[Task], addresses: dict[str, Any], logs: list[FalLog] | None) -> FalStatus:
        seconds = [
            task.finished_at - task.sent_at
            for task in tasks
            if task.finished_at is not None and task.sent_at is not None
        ]
        metrics = FalMetrics(inference_time=round(max(seconds), 3) if seconds else None)
        if any(task.status == "completed" for task in tasks):
            return FalStatus(status=COMPLETED, logs=logs, metrics=metrics, **addresses)
        error = task_error(tasks[0], self.messages)
        return FalStatus(
            status=COMPLETED,
            logs=logs,
            metrics=metrics,
            error=error.message,
            error_type=failure_type(error.code),
            **addresses,
        )

    def _logs(self, tasks: Sequence[Task]) -> list[FalLog]:
        """Return a line per step of the tasks, in order of time."""
        steps = sorted(step for task in tasks for step in self._steps(task))
        return [
            FalLog(message=text, level="ERROR" if is_error else "INFO", source="BROKER", timestamp=iso(at))
            for at, text, is_error in steps
        ]

    def _steps(self, task: Task) -> list[tuple[float, str, bool]]:
        provider = provider_of(task.provider)
        dated = [
            (task.created_at, f"{task.id}: in the queue of {provider}"),
            (task.sent_at, f"{task.id}: sent to {provider}, attempt {task.attempt}"),
            (task.finished_at, f"{task.id}: {provider} has finished"),
        ]
        steps = [(at, text, False) for at, text in dated if at is not None]
        if task.has_ended and task.ended_at is not None:
            is_error = task.status != "completed"
            text = task_error(task, self.messages).message if is_error else "completed"
            steps.append((task.ended_at, f"{task.id}: {text}", is_error))
        return steps
