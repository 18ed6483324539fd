"""Keeps our public address true: looks for tunnels, calls us from outside, and tells who waits for calls in vain.

A configured address is never changed: that it does not answer us may only mean that this machine cannot reach its own
public name, so it is said and no more. A tunnel comes and goes:

* ngrok says which of its tunnels leads to our port, and is believed until somebody else answers there;
* a quick tunnel of cloudflared may lead anywhere, and counts when our proof has come back through it;
* whichever is in use stays in use while it works, whatever else there is;
* it is lost when no agent names it and it does not answer, or when it has failed twice in a row.

Free tunnels have a monthly number of requests, so what is known is not asked for again at every look.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Final

from broker.clock import Clock
from broker.logs import log
from broker.metrics import Metrics
from broker.probing import Prober, RoundTrip, Verdict
from broker.public_url import Agents, PublicAddress, PublicUrl
from broker.steps import Steps
from storage.errors import StorageError

LOOK_SECONDS: Final = 15.0
PROVE_SECONDS: Final = 300.0
FIRST_SECONDS: Final = 3.0
MOST_FAILURES: Final = 2


@dataclass(kw_only=True)
class _Record:
    """What is known of one address. failures: in a row. again_at: when asking once more is worth it."""

    proven: bool = False
    failures: int = 0
    again_at: float = 0.0


@dataclass(kw_only=True)
class Lookout:
    """Watches while `keeping` is open. every: seconds between two looks.

    alone: no other machine works on our tasks, so callbacks can only come to us; otherwise another one may have an
    address although we never had.
    """

    address: PublicAddress
    agents: Agents
    prober: Prober
    steps: Steps
    clock: Clock
    metrics: Metrics
    alone: bool = True
    every: float = LOOK_SECONDS
    _had_one: bool = False
    _records: dict[str, _Record] = field(default_factory=dict)
    _looked: asyncio.Event = field(default_factory=asyncio.Event)

    async def begin(self) -> None:
        """Believe what ngrok says before anybody can prove it: we do not listen yet."""
        for url in await self.agents.ours():
            if url.source == "ngrok":
                self._use(url)
                return

    @asynccontextmanager
    async def keeping(self) -> AsyncIterator[None]:
        """While the block runs, look now and then. Open it when requests are answered.

        The block begins after the first look at tunnels, or when that takes too long.
        """
        watching = asyncio.create_task(self._watch(), name="lookout")
        try:
            if self._source() not in {"configured", "local"}:
                with suppress(TimeoutError):
                    await asyncio.wait_for(self._looked.wait(), FIRST_SECONDS)
            yield
        finally:
            watching.cancel()
            await asyncio.gather(watching, return_exceptions=True)

    async def look(self) -> None:
        """One look: is our address still ours, is there a better one, does somebody wait for nothing?"""
        current = self.address.current
        if current is not None and current.source == "configured":
            if self.clock.monotonic() >= self._known(current).again_at:
                await self._prove(current)
            return
        named = await self.agents.ours()
        interesting = {url.url for url in (current, *named) if url}
        self._records = {url: known for url, known in self._records.items() if url in interesting}
        if current is None or not await self._holds(current, named):
            self._use(await self._another(current, named))
        await self._cut_off()

    # -- one look

    async def _holds(self, current: PublicUrl, named: Sequence[PublicUrl]) -> bool:
        known = self._known(current)
        if current in named and self.clock.monotonic() < known.again_at:
            return True
        trip = await self._prove(current)
        if trip.verdict == Verdict.US:
            return True
        if current not in named:
            return False
        return _is_believed(current, known, trip) or known.failures < MOST_FAILURES

    async def _another(self, current: PublicUrl | None, named: Sequence[PublicUrl]) -> PublicUrl | None:
        for url in named:
            known = self._known(url)
            if url == current or self.clock.monotonic() < known.again_at:
                continue
            trip = await self._prove(url)
            if trip.verdict == Verdict.US or _is_believed(url, known, trip):
                return url
        return None

    async def _prove(self, url: PublicUrl) -> RoundTrip:
        known, trip = self._known(url), await self.prober.probe(url.url)
        ours = trip.verdict == Verdict.US
        self._tell(url, known, trip)
        known.proven = known.proven or ours
        known.failures = 0 if ours else known.failures + 1
        pause = PROVE_SECONDS if ours else min(self.every * 2.0 ** min(known.failures - 1, 10), PROVE_SECONDS)
        known.again_at = self.clock.monotonic() + pause
        if url == self.address.current:
            self.metrics.public_address.labels(url.source).set(ours)
        return trip

    def _known(self, url: PublicUrl) -> _Record:
        return self._records.setdefault(url.url, _Record())

    def _tell(self, url: PublicUrl, known: _Record, trip: RoundTrip) -> None:
        """Only what is new; while a tunnel that nobody uses goes on failing, there is no news."""
        if trip.verdict == Verdict.US:
            if known.failures or not known.proven:
                log.info("our public address answers", action="address_proven", url=url.url, source=url.source)
        elif known.failures == 0:
            log.warning(
                "our public address does not answer us",
                action="address_silent",
                url=url.url,
                source=url.source,
                why=trip.why,
            )

    def _use(self, new: PublicUrl | None) -> None:
        old = self.address.current
        if new == old:
            return
        self.address.current = new
        self.address.since = self.clock.now() if old or self.alone else 0.0
        self._had_one = True
        what = "changed" if old and new else "found" if new else "lost"
        self.metrics.address_changes.labels(what).inc()
        for url in filter(None, (old, new)):
            proven = url == new and self._known(url).proven
            self.metrics.public_address.labels(url.source).set(proven)
        if new is not None:
            log.info(f"public address {what}", action=f"address_{what}", url=new.url, source=new.source)
        elif old is not None:
            log.warning("public address lost, providers are asked", action="address_lost", url=old.url)

    async def _cut_off(self) -> None:
        """Orders that have another address than ours of today, also those that were just on their way when it went."""
        if self.address.current is None and not (self.alone or self._had_one):
            return
        before = self.address.since if self.address.current else self.clock.now()
        if count := await self.steps.cut_off(before):
            log.info("callbacks are not waited for any more", action="callbacks_given_up", count=count)

    # -- again and again

    async def _watch(self) -> None:
        if self._source() == "local":
            return
        if self._source() == "configured":
            await asyncio.sleep(self.every)  # whoever starts us may start the way to us a moment later
        while True:
            await self._guarded()
            self._looked.set()
            await asyncio.sleep(self.every)

    async def _guarded(self) -> None:
        """Whatever goes wrong here only costs time: results are asked for."""
        try:
            await self.look()
        except StorageError as error:
            log.error("the store cannot be reached", action="store_trouble", why=str(error))
        except Exception:
            log.exception("a look at our public address failed unexpectedly", action="look_failed")

    def _source(self) -> str | None:
        return self.address.current.source if self.address.current else None


def _is_believed(url: PublicUrl, known: _Record, trip: RoundTrip) -> bool:
    """ngrok knows our port, and that this machine cannot reach the address (a proxy, a wall) says nothing about it."""
    return url.source == "ngrok" and trip.verdict == Verdict.SILENCE and not known.proven
