"""The deliverer: tells callers of the ends of their tasks, again and again until they have heard or the ladder ends.

It has a small number of places of its own, so that slow receivers hold up no task. Nor do they hold up each other: one
that is slow gets one webhook at a time from here, one domain only some of the places, and what was tried before no more
than half of them, behind what was never tried. What has no place is left out of the claim; its row stays as it is.
"""

from __future__ import annotations

import math
import secrets
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from random import SystemRandom
from typing import Any, Final

from broker.clock import Clock
from broker.errors import DownloadError, EgressBlocked
from broker.logs import log
from broker.metrics import Metrics
from broker.net.fetcher import Fetcher
from storage.database import Stale
from storage.deliveries import Deliveries, Delivery, Fate, Try
from storage.tasks import Lease
from webhooks import retry_policy
from webhooks.retry_policy import NextStep, ReceiverResponse
from webhooks.signatures.standard import StandardSignature

PLACES: Final = 16
PLACES_AGAIN: Final = 8
"""For what was tried before."""
PLACES_OF_DOMAIN: Final = 4
SLOW_FOR: Final = 120.0
"""For so long it is remembered as such, unless it was quicker since."""
REST: Final = 1.0
"""For so long nothing is claimed after all that is due had no place, unless a place becomes free."""
LONG_LOOK: Final = 0.1
PATIENCE: Final = 3.0
"""After a long look nothing is claimed for so many times as long: to pass over many rows must not become all we do."""


@dataclass(kw_only=True)
class Deliverer:
    """timeout: seconds for one try, from the look-up of the name on. slow: seconds that make a receiver a slow one.

    lease: seconds until others may take a webhook over; more than the time-out.
    """

    clock: Clock
    deliveries: Deliveries
    fetcher: Fetcher
    signature: StandardSignature
    metrics: Metrics
    timeout: float = 15.0
    slow: float = 5.0
    lease: float = 45.0
    random: Callable[[], float] = SystemRandom().random
    _under_way: dict[str, Delivery] = field(default_factory=dict)
    _slow_until: dict[str, float] = field(default_factory=dict)
    _rests_until: float = -math.inf
    _spares_until: float = -math.inf

    @property
    def free(self) -> int:
        return PLACES - len(self._under_way)

    @property
    def rests_for(self) -> float:
        """Seconds in which it makes no sense to claim."""
        return max(0.0, max(self._rests_until, self._spares_until) - self.clock.monotonic())

    # -- claiming

    async def claim(self) -> list[Delivery]:
        """What is due and has a place here; each is to be given to `deliver`."""
        going: list[Delivery] = []
        begun = self.clock.monotonic()
        await self._claim(going, again=False)
        await self._claim(going, again=True)
        now = self.clock.monotonic()
        if now - begun > LONG_LOOK:
            self._spares_until = now + PATIENCE * (now - begun)
        if not going and self._under_way:
            self._rests_until = now + REST
        self._under_way |= {delivery.id: delivery for delivery in going}
        return going

    async def _claim(self, going: list[Delivery], *, again: bool) -> None:
        """Round by round: a receiver of whom there were too many is left out of the next one."""
        while (room := self._room(going, again)) > 0:
            now = self.clock.now()
            claimed = await self.deliveries.claim(
                now=now,
                lease=Lease(holder=secrets.token_hex(8), until=now + self.lease),
                limit=room,
                again=again,
                hosts=self._closed_hosts(going),
                domains=self._full_domains(going),
            )
            left: list[Delivery] = []
            for delivery in claimed:
                has_place = self._has_place(delivery, going)
                (going if has_place else left).append(delivery)
            if not left:
                return
            await self.deliveries.give_back(left, wake=False)

    def _room(self, going: Sequence[Delivery], again: bool) -> int:
        busy = self._busy(going)
        tried = sum(delivery.rung > 0 for delivery in busy)
        return min(PLACES - len(busy), PLACES_AGAIN - tried if again else PLACES)

    def _has_place(self, delivery: Delivery, going: Sequence[Delivery]) -> bool:
        closed, full = self._closed_hosts(going), self._full_domains(going)
        return delivery.host not in closed and _domain(delivery.host) not in full

    def _closed_hosts(self, going: Sequence[Delivery]) -> list[str]:
        """Those that are slow and have one just now."""
        return sorted({delivery.host for delivery in self._busy(going) if self._is_slow(delivery.host)})

    def _full_domains(self, going: Sequence[Delivery]) -> list[str]:
        counts = Counter(_domain(delivery.host) for delivery in self._busy(going))
        return sorted(domain for domain, count in counts.items() if count >= PLACES_OF_DOMAIN)

    def _is_slow(self, host: str) -> bool:
        return self._slow_until.get(host, 0.0) > self.clock.monotonic()

    def _busy(self, going: Sequence[Delivery]) -> list[Delivery]:
        return [*self._under_way.values(), *going]

    # -- telling

    async def deliver(self, delivery: Delivery) -> None:
        """One try: sign, send, note what came of it. What is not noted is tried again when the lease ends."""
        try:
            await self._try(delivery)
        except Exception:
            self._leave(delivery)
            raise
        self._leave(delivery)  # one that was cut off keeps its place until it is given back

    def _leave(self, delivery: Delivery) -> None:
        self._under_way.pop(delivery.id, None)
        self._rests_until = -math.inf

    async def _try(self, delivery: Delivery) -> None:
        at, begun = self.clock.now(), self.clock.monotonic()
        heard, kind = await self._tell(delivery, at)
        seconds = self.clock.monotonic() - begun
        self._remember(delivery.host, seconds)
        one = Try(
            delivery_id=delivery.id,
            number=delivery.tries + 1,
            at=at,
            status=heard.status,
            error=heard.error,
            milliseconds=round(seconds * 1000),
        )
        await self._note(delivery, one, heard, kind)

    async def _tell(self, delivery: Delivery, at: float) -> tuple[ReceiverResponse, str]:
        """What the receiver said, and in one word how it went."""
        body = delivery.body.encode()
        headers = {"Content-Type": "application/json", **self.signature.sign(delivery.id, at, body)}
        try:
            answer = await self.fetcher.post(delivery.url, content=body, headers=headers, timeout=self.timeout)
        except EgressBlocked as error:
            return ReceiverResponse(error=_why(error)), "forbidden"
        except DownloadError as error:
            return ReceiverResponse(error=_why(error)), "unreached"
        return ReceiverResponse(status=answer.status, retry_after=answer.headers.get("retry-after")), "refused"

    def _remember(self, host: str, seconds: float) -> None:
        now = self.clock.monotonic()
        self._slow_until = {name: until for name, until in self._slow_until.items() if until > now and name != host}
        if seconds >= self.slow:
            self._slow_until[host] = now + SLOW_FOR

    async def _note(self, delivery: Delivery, one: Try, heard: ReceiverResponse, kind: str) -> None:
        now = self.clock.now()
        rung = delivery.rung + 1
        then = retry_policy.next_step(rung, heard, now, self.random)
        try:
            await self.deliveries.tried(delivery, one, rung=rung, **_changes(then, heard, now))
        except Stale:
            log.info("a webhook is somebody else's by now", action="delivery_lost", delivery=delivery.id)
            return
        ended = then.fate if then.fate in {Fate.DELIVERED, Fate.GONE} else kind
        self.metrics.deliveries.labels(delivery.type, str(ended)).inc()
        if then.fate == Fate.DELIVERED:
            self.metrics.delivery_seconds.observe(max(0.0, now - delivery.created_at))
        self._say(delivery, one, then)

    @staticmethod
    def _say(delivery: Delivery, one: Try, then: NextStep) -> None:
        facts = {"delivery": delivery.id, "task": delivery.task_id, "type": delivery.type, "number": one.number}
        match then.fate:
            case Fate.DELIVERED:
                log.info("a caller was told", action="delivery_delivered", **facts)
            case Fate.PENDING:
                log.info("a caller could not be told yet", action="delivery_failed", why=then.reason, **facts)
            case Fate.GONE | Fate.FAILED:
                log.warning("a caller is not told any more", action="delivery_ended", why=then.reason, **facts)

    # -- stopping

    async def give_back(self) -> None:
        """What was cut off becomes due for others at once."""
        held = list(self._under_way.values())
        self._under_way.clear()
        await self.deliveries.give_back(held)


def _domain(host: str) -> str:
    """The last two labels of a name, which mostly belong to one owner; an address as it is."""
    labels = host.split(".")
    is_address = host.startswith("[") or labels[-1].partition(":")[0].isdigit()
    return host if is_address else ".".join(labels[-2:])


def _changes(then: NextStep, heard: ReceiverResponse, now: float) -> dict[str, Any]:
    return {
        "outcome": then.fate,
        "due_at": then.due_at,
        "reason": then.reason,
        "last_status": heard.status,
        "delivered_at": now if then.fate == Fate.DELIVERED else None,
        "ended_at": None if then.fate == Fate.PENDING else now,
    }


def _why(error: DownloadError) -> str:
    """Without the address, which stands beside it."""
    return str(error).rpartition(": ")[2][:200]
