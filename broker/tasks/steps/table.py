"""The table of steps: which step runs in which state."""

from __future__ import annotations

from collections.abc import Awaitable
from dataclasses import dataclass
from functools import partial

from broker.tasks import lifecycle
from broker.tasks.lifecycle import DownloadFailure
from broker.tasks.steps.check import CheckStep
from broker.tasks.steps.download import DownloadStep
from broker.tasks.steps.submit import SubmitStep
from broker.tasks.transitions import Transitions
from storage.states import TaskState
from storage.tasks import Task


@dataclass(frozen=True, kw_only=True)
class StepTable:
    """The step of each state of an unfinished task."""

    submit: SubmitStep
    check: CheckStep
    download: DownloadStep
    transitions: Transitions

    def run(self, task: Task) -> Awaitable[None]:
        """Run the step of the state of an unfinished task. The caller holds the task's lease."""
        if task.state == TaskState.QUEUED:
            return self.submit.run(task)
        if task.state == TaskState.FETCHING:
            return self.download.run(task)
        if task.state == TaskState.WAITING:
            return self.check.run(task)
        return self._recover_submission(task)

    async def _recover_submission(self, task: Task) -> None:
        """End a submission whose outcome is unknown: its process died, or no callback came."""
        await self.transitions.record_unknown(task)

    async def record_crash(self, task: Task) -> None:
        """Count a step that ended in an unexpected error as a retry, so that its task ends at the deadline."""
        failure = DownloadFailure(code="download_failed", message="an unexpected error; the log has it")
        if task.state == TaskState.WAITING:
            await self.transitions.apply_own(task, lifecycle.check_failed)
        elif task.state == TaskState.FETCHING:
            await self.transitions.apply_own(task, partial(lifecycle.downloaded, stored=0, failures=[failure]))
