"""Release of turns: the tasks of a turn get what they continue, and go, once the turn before it has ended.

Any process may do it, and several at the same time: what a task gets follows from rows that do not change any more, and
a task that was released is left alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from broker.clock import Clock
from broker.conversations.history import ContinuedTurn, History
from broker.errors import ApiError
from broker.logs import log, safe_exc_info
from broker.ordering.drafts import account_columns
from broker.ordering.plan import Planner
from broker.ordering.routing import BUDGET, QUOTA
from broker.orders import PRIORITIES, ImageParams, OrderRequest, StoredReference
from broker.reports import Failed
from broker.tasks.lifecycle import NOTHING, Changes
from broker.tasks.transitions import Transitions
from storage.conversations.turns import StoredTurn, Turns
from storage.errors import StorageError
from storage.images import Images
from storage.tasks import Task, Tasks

BATCH_SIZE: Final = 100
"""Turns released in one go."""


@dataclass(frozen=True, kw_only=True)
class TurnRelease:
    """Releases turns."""

    clock: Clock
    tasks: Tasks
    turns: Turns
    images: Images
    history: History
    planner: Planner
    transitions: Transitions

    async def release_if_free(self, turn_id: str) -> bool:
        """Release a turn, unless it has to wait; return whether it was released."""
        turn = await self.turns.get_free(turn_id)
        if turn is not None:
            await self._release(turn)
        return turn is not None

    async def release_all(self) -> None:
        """Release every turn that need not wait any longer. A turn that fails does not stop the others."""
        for turn in await self.turns.list_free(BATCH_SIZE):
            try:
                await self._release(turn)
            except StorageError:
                raise
            except Exception as error:
                log.error(
                    "a turn could not be released",
                    action="turn_not_released",
                    turn=turn.id,
                    exc_info=safe_exc_info(error),
                )

    async def _release(self, turn: StoredTurn) -> None:
        """1. Read what it continues. 2. Plan again if that is not what was expected. 3. Let each task go."""
        held = [task for task in await self.tasks.list_of_batch(turn.batch) if task.is_held]
        if held:
            continued = await self.history.read(turn, held[0])
            columns = continued.columns(held[0].references)
            try:
                if columns["mode"] != held[0].mode:
                    columns |= await self._plan(held[0], turn.inputs + continued.has_last_image)
            except ApiError as error:
                await self._refuse(held, error)
            else:
                for task in held:
                    await self._let_go(task, continued, columns)
            log.info("turn released", action="turn_released", task=held[0].id, count=len(held))
        await self.turns.end_wait(turn.id)

    async def _plan(self, task: Task, references: int) -> dict[str, Any]:
        """Return where a task goes that continues something else than was expected when it was ordered.

        Not where it would cost more than it has reserved.
        """
        reserved = {BUDGET: task.reserved, QUOTA: task.owner_micros}
        plan = await self.planner.make_plan(
            task.caller,
            OrderRequest(
                params=ImageParams.from_columns(vars(task)),
                sources=(StoredReference(blob="", sha256=""),) * references,
                priority=PRIORITIES[task.priority],
                provider=task.requested_provider,
            ),
            reserved={name: micros for name, micros in reserved.items() if micros is not None},
        )
        return {**account_columns(plan.candidates, plan.routes)}

    async def _let_go(self, task: Task, continued: ContinuedTurn, columns: dict[str, Any]) -> None:
        now = self.clock.now()
        released = Changes(task={**columns, "due_at": now, "updated_at": now})
        linking = [self.images.insert_link(image) for image in continued.earlier]
        await self.transitions.apply(
            task, lambda row, _: released if row.is_held else NOTHING, also=linking, is_leased=False
        )

    async def _refuse(self, held: Sequence[Task], error: ApiError) -> None:
        """End tasks that no provider can serve as they are now."""
        refusal = Failed(code="provider_rejected", message=error.message, retryable=False, billed="no", sent=False)
        for task in held:
            await self.transitions.apply_report(task, refusal, None, is_leased=False)
