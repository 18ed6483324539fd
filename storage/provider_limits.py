"""Limits of providers: window of submissions, concurrency, and cooldown.

Kept in the database, because all processes of one account share one window.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from storage.attempts import Attempt
from storage.sql.database import Database, Statement

WINDOW_SECONDS = 10.0
PROBE_SECONDS = 150.0
"""Longer than a submission can take; an attempt still `sent` after that belongs to a process that died."""
MAX_COOLDOWN_SECONDS = 3600.0
"""Longest cooldown; one that seems longer was written before the clock was set back."""


@dataclass(frozen=True, kw_only=True)
class AccountLimits:
    """Limits of one provider. creates_per_window: submissions per 10 seconds. concurrency: running jobs."""

    creates_per_window: int
    concurrency: int


@dataclass(frozen=True, kw_only=True)
class Capacity:
    """Number of jobs that may be submitted now; if 0, when to check again (`inf`: when a job ends)."""

    free: int
    recheck_at: float = math.inf


@dataclass(frozen=True, kw_only=True)
class ProviderLoad:
    """Load of a provider. paused_until: since the epoch. running: jobs that occupy a slot.

    errors: failed submissions in a row.
    """

    paused_until: float
    running: int
    errors: int


_COOLDOWN = """(SELECT paused_until FROM provider_limits WHERE provider = :provider) AS paused_until,
    (SELECT errors FROM provider_limits WHERE provider = :provider) AS errors"""
_SUBMITTED = """SELECT count(*) AS n FROM attempts
    WHERE provider = :provider AND sent_at > :since AND sent_at <= :horizon"""
_RUNNING = """SELECT count(*) AS n FROM tasks WHERE provider = :provider AND state IN ('submitting', 'waiting')"""
# after a failure one job is submitted first, as a probe
_PROBE = """SELECT count(*) AS n FROM provider_limits l JOIN attempts a ON a.provider = l.provider
    WHERE l.provider = :provider AND l.errors > 0 AND a.outcome = 'sent'
    AND a.sent_at >= l.paused_until AND a.sent_at > :probing AND a.sent_at <= :horizon"""


@dataclass(frozen=True)
class ProviderLimits:
    """Limits of the providers; one row each."""

    database: Database

    async def get_capacity(self, provider: str, limits: AccountLimits, now: float) -> Capacity:
        """Return how much may be submitted now. A hint only: `reserve_submission` decides."""
        sql = f"SELECT {_COOLDOWN}, ({_SUBMITTED}) AS submitted, ({_RUNNING}) AS running, ({_PROBE}) AS probes"
        row: Any = await self.database.fetch_one(sql, **_count_params(provider, now))
        if now < (row["paused_until"] or 0.0) < now + MAX_COOLDOWN_SECONDS:
            return Capacity(free=0, recheck_at=row["paused_until"])
        if row["probes"]:
            return Capacity(free=0)
        window = limits.creates_per_window - row["submitted"]
        if window <= 0:
            return Capacity(free=0, recheck_at=await self._window_opens_at(provider, limits, now))
        slots = limits.concurrency - row["running"]
        return Capacity(free=max(0, min(window, slots, 1 if row["errors"] else window)))

    async def get_load(self, provider: str, now: float) -> ProviderLoad:
        """Return the load of a provider."""
        row: Any = await self.database.fetch_one(f"SELECT {_COOLDOWN}, ({_RUNNING}) AS running", provider=provider)
        until = row["paused_until"] or 0.0
        paused_until = until if until < now + MAX_COOLDOWN_SECONDS else 0.0
        return ProviderLoad(paused_until=paused_until, running=row["running"], errors=row["errors"] or 0)

    def reserve_submission(self, attempt: Attempt, limits: AccountLimits) -> list[Statement]:
        """Write the attempt if the provider has capacity; otherwise `Stale`.

        1. Lock the provider's row, so that transactions count one after the other. 2. Count, and write. It follows the
        statement that makes the task `submitting`, so the task itself counts as one running job.
        """
        lock = Statement(
            sql="""INSERT INTO provider_limits (provider, paused_until, errors) VALUES (:provider, 0, 0)
                ON CONFLICT (provider) DO UPDATE SET errors = provider_limits.errors""",
            params={"provider": attempt.provider},
        )
        insert = Statement(
            sql=f"""INSERT INTO attempts (task_id, number, provider, key_id, sent_at, outcome, billed)
                SELECT :task_id, :number, :provider, :key_id, :sent_at, 'sent', 'unknown'
                WHERE ({_SUBMITTED}) < :creates_per_window AND ({_RUNNING}) <= :concurrency AND ({_PROBE}) = 0""",
            params={**vars(attempt), **vars(limits), **_count_params(attempt.provider, attempt.sent_at)},
            must_change=True,
        )
        return [lock, insert]

    def start_cooldown(self, provider: str, until: float) -> Statement:
        """Start a cooldown until `until`, and count one more failure."""
        return Statement(
            sql="""INSERT INTO provider_limits (provider, paused_until, errors) VALUES (:provider, :until, 1)
                ON CONFLICT (provider) DO UPDATE SET errors = provider_limits.errors + 1, paused_until =
                CASE WHEN provider_limits.paused_until > :until THEN provider_limits.paused_until ELSE :until END""",
            params={"provider": provider, "until": until},
        )

    def end_cooldown(self, provider: str) -> Statement:
        """End the cooldown and reset the failures."""
        return Statement(
            sql="UPDATE provider_limits SET errors = 0, paused_until = 0 WHERE provider = :provider AND errors > 0",
            params={"provider": provider},
        )

    async def _window_opens_at(self, provider: str, limits: AccountLimits, now: float) -> float:
        sql = """SELECT sent_at FROM attempts WHERE provider = :provider AND sent_at <= :horizon
            ORDER BY sent_at DESC LIMIT 1 OFFSET :skip"""
        skip = limits.creates_per_window - 1
        row = await self.database.fetch_one(sql, provider=provider, horizon=now + WINDOW_SECONDS, skip=skip)
        return row["sent_at"] + WINDOW_SECONDS if row else 0.0


def _count_params(provider: str, now: float) -> dict[str, Any]:
    """Return the moments of the counts. Other clocks may be slightly ahead; rows far ahead predate a clock set back."""
    return {
        "provider": provider,
        "since": now - WINDOW_SECONDS,
        "probing": now - PROBE_SECONDS,
        "horizon": now + WINDOW_SECONDS,
    }
