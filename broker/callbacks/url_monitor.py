"""Monitors the public URL: discovers tunnels, verifies them with a round-trip probe, and switches waiting tasks to
polling when callbacks cannot arrive.

A configured URL is never replaced: a failed probe may only mean that this machine cannot reach its own public name, so
it is logged and nothing else. Tunnels come and go:

* ngrok reports which of its tunnels leads to our port, and is trusted until another server answers there;
* a quick tunnel of cloudflared may lead anywhere, and is used once a probe through it was verified;
* the URL in use stays in use while it works, whatever else is available;
* it is lost when no agent reports it and it does not answer, or after two consecutive failures.

Free tunnels have a monthly quota of requests, so a recent result is not probed again at every refresh.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Final

from broker.callbacks.probe import ProbeResult, ProbeVerdict, ReachabilityProbe
from broker.callbacks.public_url import PublicAddress, PublicUrl
from broker.callbacks.tunnels import TunnelAgents
from broker.clock import Clock
from broker.logs import log, safe_exc_info
from broker.metrics import Metrics
from broker.tasks.policy import doubled_seconds
from storage.errors import StorageError

REFRESH_SECONDS: Final = 15.0
REVERIFY_SECONDS: Final = 300.0
FIRST_REFRESH_SECONDS: Final = 3.0
MAX_FAILURES: Final = 2


@dataclass(kw_only=True)
class _ProbeHistory:
    """Earlier probes of one URL."""

    was_verified: bool = False
    failures: int = 0
    """Consecutive ones."""
    next_probe_at: float = 0.0
    """On the monotonic clock."""


@dataclass(kw_only=True)
class UrlMonitor:
    """Keeps `address` up to date while `run` is open."""

    address: PublicAddress
    agents: TunnelAgents
    probe: ReachabilityProbe
    switch_to_polling: Callable[[float], Awaitable[int]]
    """Make tasks submitted before the given time poll instead of waiting for a callback; return their number."""
    clock: Clock
    metrics: Metrics
    is_only_machine: bool = True
    """False where other machines work on the same tasks: one of them may have a URL although this one never had."""
    refresh_seconds: float = REFRESH_SECONDS
    _had_url: bool = False
    _histories: dict[str, _ProbeHistory] = field(default_factory=dict)
    _refreshed: asyncio.Event = field(default_factory=asyncio.Event)

    async def seed(self) -> None:
        """Use the URL that ngrok reports before it can be verified: the server does not listen yet."""
        for url in await self.agents.list_candidates():
            if url.source == "ngrok":
                self._use_url(url)
                return

    @asynccontextmanager
    async def run(self) -> AsyncIterator[None]:
        """Refresh periodically while the block runs. Enter it once the server answers requests.

        The block starts after the first discovery of tunnels, or when that takes too long.
        """
        loop = asyncio.create_task(self._refresh_loop(), name="url_monitor")
        try:
            if self._current_source() not in {"configured", "local"}:
                with suppress(TimeoutError):
                    await asyncio.wait_for(self._refreshed.wait(), FIRST_REFRESH_SECONDS)
            yield
        finally:
            loop.cancel()
            await asyncio.gather(loop, return_exceptions=True)

    async def refresh(self) -> None:
        """Check the current URL, replace it if needed, and switch tasks whose callbacks cannot arrive to polling."""
        current = self.address.current
        if current is not None and current.source == "configured":
            if self.clock.monotonic() >= self._history_of(current).next_probe_at:
                await self._probe_url(current)
            return
        reported = await self.agents.list_candidates()
        relevant = {url.url for url in (current, *reported) if url}
        self._histories = {url: history for url, history in self._histories.items() if url in relevant}
        if current is None or not await self._is_still_valid(current, reported):
            self._use_url(await self._find_replacement(current, reported))
        await self._switch_tasks()

    async def _is_still_valid(self, current: PublicUrl, reported: Sequence[PublicUrl]) -> bool:
        history = self._history_of(current)
        if current in reported and self.clock.monotonic() < history.next_probe_at:
            return True
        result = await self._probe_url(current)
        if result.is_verified:
            return True
        if current not in reported:
            return False
        return _is_trusted_unverified(current, history, result) or history.failures < MAX_FAILURES

    async def _find_replacement(self, current: PublicUrl | None, reported: Sequence[PublicUrl]) -> PublicUrl | None:
        for url in reported:
            history = self._history_of(url)
            if url == current or self.clock.monotonic() < history.next_probe_at:
                continue
            result = await self._probe_url(url)
            if result.is_verified or _is_trusted_unverified(url, history, result):
                return url
        return None

    async def _probe_url(self, url: PublicUrl) -> ProbeResult:
        history, result = self._history_of(url), await self.probe.probe_url(url.url)
        self._log_change(url, history, result)
        history.was_verified = history.was_verified or result.is_verified
        history.failures = 0 if result.is_verified else history.failures + 1
        backoff = doubled_seconds(self.refresh_seconds, history.failures - 1, REVERIFY_SECONDS)
        pause = REVERIFY_SECONDS if result.is_verified else backoff
        history.next_probe_at = self.clock.monotonic() + pause
        if url == self.address.current:
            self.metrics.public_address.labels(url.source).set(result.is_verified)
        return result

    def _history_of(self, url: PublicUrl) -> _ProbeHistory:
        return self._histories.setdefault(url.url, _ProbeHistory())

    def _log_change(self, url: PublicUrl, history: _ProbeHistory, result: ProbeResult) -> None:
        """Log the first of equal results only: an unused tunnel may keep failing."""
        if result.is_verified:
            if history.failures or not history.was_verified:
                log.info("public URL verified", action="public_url_verified", url=url.url, source=url.source)
        elif history.failures == 0:
            log.warning(
                "public URL does not answer",
                action="public_url_unreachable",
                url=url.url,
                source=url.source,
                why=result.reason,
            )

    def _use_url(self, new: PublicUrl | None) -> None:
        old = self.address.current
        if new == old:
            return
        self.address.current = new
        self.address.since = self.clock.now() if old or self.is_only_machine else 0.0
        self._had_url = True
        change = "changed" if old and new else "found" if new else "lost"
        self.metrics.address_changes.labels(change).inc()
        for url in filter(None, (old, new)):
            is_verified = url == new and self._history_of(url).was_verified
            self.metrics.public_address.labels(url.source).set(is_verified)
        if new is not None:
            log.info(f"public URL {change}", action=f"public_url_{change}", url=new.url, source=new.source)
        elif old is not None:
            log.warning("public URL lost, providers are polled", action="public_url_lost", url=old.url)

    async def _switch_tasks(self) -> None:
        """Switch tasks that carry another URL than the current one, also those sent just before it was lost."""
        if self.address.current is None and not (self.is_only_machine or self._had_url):
            return
        before = self.address.since if self.address.current else self.clock.now()
        if count := await self.switch_to_polling(before):
            log.info("switched waiting tasks to polling", action="switched_to_polling", count=count)

    async def _refresh_loop(self) -> None:
        if self._current_source() == "local":
            return
        if self._current_source() == "configured":
            await asyncio.sleep(self.refresh_seconds)  # the tunnel or proxy may be started just after the broker
        while True:
            try:
                await self.refresh()
            except StorageError as error:
                log.error("database unavailable", action="store_unavailable", why=str(error))
            except Exception as error:  # without a refresh results are polled, which only costs time
                log.error(
                    "refreshing the public URL failed",
                    action="public_url_refresh_failed",
                    exc_info=safe_exc_info(error),
                )
            self._refreshed.set()
            await asyncio.sleep(self.refresh_seconds)

    def _current_source(self) -> str | None:
        return self.address.current.source if self.address.current else None


def _is_trusted_unverified(url: PublicUrl, history: _ProbeHistory, result: ProbeResult) -> bool:
    """Return True for an ngrok URL that this machine cannot reach: behind a proxy or firewall that proves nothing."""
    return url.source == "ngrok" and result.verdict == ProbeVerdict.UNREACHABLE and not history.was_verified
