"""The step of SUBMITTING: the process died during the submission, or its outcome is unknown and no callback came."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

from broker.tasks import lifecycle
from broker.tasks.transitions import Transitions
from storage.tasks import Task


@dataclass(frozen=True, kw_only=True)
class RecoverStep:
    """Ends a submission whose outcome is unknown."""

    transitions: Transitions

    async def run(self, task: Task) -> None:
        await self.transitions.apply_own(task, partial(lifecycle.outcome_unknown, attempt=task.attempt))
