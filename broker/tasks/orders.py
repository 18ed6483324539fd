"""Orders of tasks: the row in the form that provider adapters accept."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, cast

from broker.errors import NotSent
from broker.orders import PRIORITIES, ImageParams, Mode, Order, Reference, Turn
from storage.blobs.store import BlobMissing, BlobStore
from storage.conversations.turns import Turns
from storage.errors import StorageError
from storage.ids import provider_of
from storage.tasks import Task


@dataclass(frozen=True, kw_only=True)
class OrderBuilder:
    """Builds orders from tasks."""

    turns: Turns
    blobs: BlobStore
    image_base: Callable[[], str | None]
    """Returns the URL at which providers reach our images; None without one."""

    async def build_order(self, task: Task, *, keeps_history: bool) -> Order:
        """Return the order for the provider of the task. keeps_history: whether that one gets earlier turns."""
        order = Order(
            params=ImageParams.from_columns(vars(task)),
            mode=cast("Mode", task.mode),
            references=tuple(self._build_reference(ref) for ref in task.references),
            turns=tuple(Turn.from_column(turn) for turn in task.turns),
            priority=PRIORITIES[task.priority],
        )
        if not keeps_history:
            return order.without_history()
        return replace(order, turns=await self._restore_turns(task.provider, order.turns))

    async def _restore_turns(self, provider: str, turns: tuple[Turn, ...]) -> tuple[Turn, ...]:
        """Return the turns, those that this provider wrote with its own words: no other one gets a signature.

        provider: an account; another one at the same provider reads its signatures, too.
        """
        earlier = [turn.task for turn in turns if turn.task is not None]
        written = await self.turns.get_model_turns(earlier) if earlier else {}
        own = {
            task_id: one.turn for task_id, one in written.items() if provider_of(one.provider) == provider_of(provider)
        }
        return tuple(replace(turn, content=own.get(turn.task or "")) for turn in turns)

    def _build_reference(self, ref: Mapping[str, Any]) -> Reference:
        base = self.image_base()
        return Reference(
            name=ref["name"],
            media_type=ref["media_type"],
            size=ref["size"],
            sha256=ref["sha256"],
            url=f"{base}/uploads/references/{ref['name']}" if base else None,
            read=lambda: self._read(ref["blob"]),
        )

    async def _read(self, blob: str) -> AsyncIterator[bytes]:
        """Yield the bytes of a reference. Raises `NotSent` if they cannot be read: nothing is submitted then."""
        try:
            async with contextlib.aclosing(await self.blobs.open(blob)) as chunks:
                async for chunk in chunks:
                    yield chunk
        except (BlobMissing, StorageError) as error:
            raise NotSent("a reference image cannot be read", permanent=True) from error
