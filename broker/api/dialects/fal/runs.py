"""Runs: an order whose answer waits for the images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from starlette.requests import Request
from starlette.responses import Response

from broker.api.dialects.fal.apps import split_stream
from broker.api.dialects.fal.errors import StartTimeout
from broker.api.dialects.fal.orders import FalOrders, start_timeout
from broker.api.dialects.fal.results import FalResults
from broker.api.dialects.fal.targets import FalTarget
from broker.api.shared.held_answers import HeldAnswers, PlacedOrder
from broker.errors import ApiError
from broker.tasks.cancellation import TaskCanceler
from storage.sql.scope import EVERYTHING
from storage.tasks import Task


@dataclass(frozen=True, kw_only=True)
class FalRuns:
    held: HeldAnswers
    orders: FalOrders
    results: FalResults
    canceler: TaskCanceler

    async def run(self, request: Request, target: FalTarget) -> Response:
        """Order, and wait for the images. With `/stream` behind the app, the answer is an event."""
        app, is_stream = split_stream(target.app)
        order = await self.orders.place(request, replace(target, app=app), is_held=True)
        base = self.orders.base_for(request)
        await self._await_start(request, order.placed)

        async def render(tasks: Sequence[Task]) -> Response:
            if is_stream:
                return await self.results.render_event(tasks, base)
            return await self.results.render_output(tasks, base, is_inline=order.is_inline)

        return await self.held.answer(request, order.placed, render)

    async def _await_start(self, request: Request, placed: PlacedOrder) -> None:
        """Wait as long as the client lets the order wait for its start. Raises `StartTimeout` if it has not begun."""
        seconds = start_timeout(request)
        if seconds is None or seconds >= self.held.hold_seconds or await self.held.wait(request, placed, seconds):
            return
        if any(task.status != "pending" for task in await self.held.ended_tasks(placed)):
            return
        try:
            await self.canceler.cancel_batch(placed.batch, EVERYTHING)
        except ApiError as error:
            if error.code != "conflict":
                raise
        else:
            raise StartTimeout(seconds)
