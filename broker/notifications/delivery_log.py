"""Delivery log: which webhooks were sent to callers, and sending one again."""

from __future__ import annotations

from dataclasses import dataclass

from broker.clock import Clock
from broker.errors import ApiError
from storage.deliveries import Deliveries, Delivery, DeliveryAttempt, DeliveryStatus
from storage.ids import EVENT_ID


@dataclass(frozen=True, kw_only=True)
class DeliveryLog:
    """Reads and replays deliveries."""

    clock: Clock
    deliveries: Deliveries

    async def get(self, delivery_id: str) -> Delivery:
        """Return the delivery. Raises `ApiError`."""
        delivery = await self.deliveries.get(delivery_id) if EVENT_ID.fullmatch(delivery_id) else None
        if delivery is None:
            raise ApiError(
                "not_found", "There is no delivery with this id. Finished ones are deleted with their tasks."
            )
        return delivery

    async def list_newest(
        self, *, task_id: str | None, outcome: DeliveryStatus | None, limit: int, before: tuple[float, str] | None
    ) -> list[Delivery]:
        return await self.deliveries.list_newest(task_id=task_id, outcome=outcome, limit=limit, before=before)

    async def list_attempts(self, delivery_id: str) -> list[DeliveryAttempt]:
        return await self.deliveries.list_attempts(delivery_id)

    async def replay(self, delivery_id: str) -> Delivery:
        """Send the webhook again, whatever its outcome was."""
        await self.get(delivery_id)
        await self.deliveries.replay(delivery_id, self.clock.now())
        return await self.get(delivery_id)
