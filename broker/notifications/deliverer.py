"""The deliverer: sends due webhooks to callers and records every attempt.

It has slots of its own and gives no host more than two of them, so that slow receivers delay neither tasks nor each
other. A webhook without a free slot keeps its row as it is.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from random import SystemRandom
from typing import Final

from broker.clock import Clock
from broker.errors import DownloadError, EgressBlocked
from broker.logs import log
from broker.metrics import Metrics
from broker.net.fetcher import Fetcher
from broker.notifications.formats.base import WebhookFormat
from storage.deliveries import Deliveries, Delivery, DeliveryAttempt, DeliveryStatus
from storage.errors import Stale
from storage.tasks import Lease
from webhooks import retry_policy
from webhooks.retry_policy import NextStep, ReceiverResponse

CONCURRENCY: Final = 16
HOST_CONCURRENCY: Final = 2
BUSY_PAUSE_SECONDS: Final = 1.0
"""Pause between two claims while every due webhook waits for a host without a free slot."""


@dataclass(kw_only=True)
class Deliverer:
    """Sender of webhooks with a limited number of slots."""

    clock: Clock
    deliveries: Deliveries
    fetcher: Fetcher
    formats: Mapping[str, WebhookFormat]
    metrics: Metrics
    retention_seconds: float
    """No attempt is scheduled later than this after the event."""
    timeout_seconds: float = 15.0
    """Of one attempt, from the name lookup on."""
    random: Callable[[], float] = SystemRandom().random
    _in_flight: dict[str, Delivery] = field(default_factory=dict)
    _paused_until: float = -math.inf

    @property
    def free_slots(self) -> int:
        return CONCURRENCY - len(self._in_flight)

    @property
    def pause_seconds(self) -> float:
        """Return the seconds until a claim can succeed; 0 when it can now."""
        return max(0.0, self._paused_until - self.clock.monotonic())

    # -- claiming

    async def claim(self, lease: Lease) -> list[Delivery]:
        """Claim due webhooks that have a slot; pass each of them to `deliver`.

        lease: renewed while the attempts run. One host may have more due webhooks than slots: the surplus is
        released, and the next claim skips the host.
        """
        in_flight = Counter(delivery.host for delivery in self._in_flight.values())
        claimed = await self.deliveries.claim(
            now=self.clock.now(),
            lease=lease,
            limit=self.free_slots,
            busy_hosts=[host for host, count in in_flight.items() if count >= HOST_CONCURRENCY],
        )
        started, surplus = list[Delivery](), list[Delivery]()
        for delivery in claimed:
            in_flight[delivery.host] += 1
            (started if in_flight[delivery.host] <= HOST_CONCURRENCY else surplus).append(delivery)
        if surplus:
            await self.deliveries.release(surplus, wake=False)
        if not started and self._in_flight:
            self._paused_until = self.clock.monotonic() + BUSY_PAUSE_SECONDS
        self._in_flight |= {delivery.id: delivery for delivery in started}
        return started

    async def renew_leases(self, until: float) -> None:
        """Extend the leases of all attempts in progress."""
        await self.deliveries.renew(list(self._in_flight.values()), until)

    async def release(self) -> None:
        """Make interrupted webhooks due for other processes at once."""
        held = list(self._in_flight.values())
        self._in_flight.clear()
        await self.deliveries.release(held)

    # -- delivering

    async def deliver(self, delivery: Delivery) -> None:
        """Make one attempt: sign, send, record the result. An attempt without a record is repeated after its lease."""
        try:
            await self._attempt_delivery(delivery)
        except Exception:
            self._free_slot(delivery)
            raise
        self._free_slot(delivery)  # a canceled attempt keeps its slot until `release`

    def _free_slot(self, delivery: Delivery) -> None:
        self._in_flight.pop(delivery.id, None)
        self._paused_until = -math.inf

    async def _attempt_delivery(self, delivery: Delivery) -> None:
        at, begun = self.clock.now(), self.clock.monotonic()
        result, kind = await self._send(delivery, at)
        attempt = DeliveryAttempt(
            delivery_id=delivery.id,
            number=delivery.attempts + 1,
            at=at,
            status=result.status,
            error=result.error,
            milliseconds=round((self.clock.monotonic() - begun) * 1000),
        )
        await self._record(delivery, attempt, result, kind)

    async def _send(self, delivery: Delivery, at: float) -> tuple[ReceiverResponse, str]:
        """Send the webhook; return the result and its label for the metric."""
        body = delivery.body.encode()
        headers = {"Content-Type": "application/json", **self.formats[delivery.format].sign(delivery, at, body)}
        try:
            response = await self.fetcher.post(
                delivery.url, content=body, headers=headers, timeout=self.timeout_seconds
            )
        except DownloadError as error:
            return ReceiverResponse(error=error.reason), "forbidden" if isinstance(
                error, EgressBlocked
            ) else "unreached"
        return ReceiverResponse(status=response.status, retry_after=response.headers.get("retry-after")), "refused"

    async def _record(self, delivery: Delivery, attempt: DeliveryAttempt, result: ReceiverResponse, kind: str) -> None:
        now, schedule_step = self.clock.now(), delivery.schedule_step + 1
        expires_at = delivery.created_at + self.retention_seconds
        following = retry_policy.next_step(schedule_step, result, now, self.random, expires_at)
        try:
            await self.deliveries.record_attempt(
                delivery,
                attempt,
                schedule_step=schedule_step,
                outcome=following.outcome,
                due_at=following.due_at,
                reason=following.reason,
                last_status=result.status,
                delivered_at=now if following.outcome == DeliveryStatus.DELIVERED else None,
                ended_at=None if following.outcome == DeliveryStatus.PENDING else now,
            )
        except Stale:
            log.info("another worker has this webhook now", action="delivery_lost", delivery=delivery.id)
            return
        outcome = following.outcome if following.outcome in {DeliveryStatus.DELIVERED, DeliveryStatus.GONE} else kind
        self.metrics.deliveries.labels(delivery.type, str(outcome)).inc()
        if following.outcome == DeliveryStatus.DELIVERED:
            self.metrics.delivery_seconds.observe(max(0.0, now - delivery.created_at))
        _log_attempt(delivery, attempt, following)


def _log_attempt(delivery: Delivery, attempt: DeliveryAttempt, following: NextStep) -> None:
    fields = {"delivery": delivery.id, "task": delivery.task_id, "type": delivery.type, "number": attempt.number}
    match following.outcome:
        case DeliveryStatus.DELIVERED:
            log.info("webhook delivered", action="delivery_delivered", **fields)
        case DeliveryStatus.PENDING:
            log.info("webhook not delivered yet", action="delivery_failed", why=following.reason, **fields)
        case DeliveryStatus.GONE | DeliveryStatus.FAILED:
            log.warning("webhook given up", action="delivery_ended", why=following.reason, **fields)
