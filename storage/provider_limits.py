"""How much a provider takes from us at once: its window, its places, and the pauses it asks for.

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
"""Longer than a submission can take; an attempt that is still `sent` after that belongs to a process that died."""
LONGEST_PAUSE = 3600.0
"""No pause is longer: one that seems so was written before the clock was set back."""


@dataclass(frozen=True, kw_only=True)
class Limits:
    """creates: new jobs per 10 seconds. places: jobs submitted and not yet finished."""

    creates: int
    places: int


@dataclass(frozen=True, kw_only=True)
class Room:
    """How many jobs may be submitted now; if none, when to look again (`inf`: when a job ends)."""

    free: int
    again_at: float = math.inf


@dataclass(frozen=True, kw_only=True)
class Load:
    """What stands before the next order. paused_until: since the epoch. running: jobs that have a place."""

    paused_until: float
    running: int


_TAKEN = """SELECT count(*) AS n FROM attempts
    WHERE provider = :provider AND sent_at > :since AND sent_at <= :horizon"""
_RUNNING = """SELECT count(*) AS n FROM tasks WHERE provider = :provider AND state IN ('submitting', 'waiting')"""
# after a trouble one job goes first and shows whether the way is free
_PROBE = """SELECT count(*) AS n FROM provider_limits l JOIN attempts a ON a.provider = l.provider
    WHERE l.provider = :provider AND l.troubles > 0 AND a.outcome = 'sent'
    AND a.sent_at >= l.paused_until AND a.sent_at > :probing AND a.sent_at <= :horizon"""


@dataclass(frozen=True)
class Lanes:
    """The lanes at rest; one per provider."""

    database: Database

    async def room(self, provider: str, limits: Limits, now: float) -> Room:
        """What may be submitted now. Only a hint: `intending` decides."""
        row: Any = await self.database.point(
            f"""SELECT (SELECT paused_until FROM provider_limits WHERE provider = :provider) AS paused_until,
                (SELECT troubles FROM provider_limits WHERE provider = :provider) AS troubles,
                ({_TAKEN}) AS taken, ({_RUNNING}) AS running, ({_PROBE}) AS probes""",
            **_moments(provider, now),
        )
        if now < (row["paused_until"] or 0.0) < now + LONGEST_PAUSE:
            return Room(free=0, again_at=row["paused_until"])
        if row["probes"]:
            return Room(free=0)
        window = limits.creates - row["taken"]
        if window <= 0:
            return Room(free=0, again_at=await self._window_opens(provider, limits, now))
        places = limits.places - row["running"]
        return Room(free=max(0, min(window, places, 1 if row["troubles"] else window)))

    async def load(self, provider: str, now: float) -> Load:
        """How busy the lane is. A pause that is longer than any was written before the clock was set back."""
        row: Any = await self.database.point(
            f"""SELECT (SELECT paused_until FROM provider_limits WHERE provider = :provider) AS paused_until,
                ({_RUNNING}) AS running""",
            provider=provider,
        )
        until = row["paused_until"] or 0.0
        return Load(paused_until=until if until < now + LONGEST_PAUSE else 0.0, running=row["running"])

    def intending(self, attempt: Attempt, limits: Limits) -> list[Statement]:
        """Write the attempt into the ledger if the lane still has room; otherwise `Stale`.

        1. Take the lane: who counts what others take must not do so at the same time as they. 2. Count, and write.
        It comes after the task's own row became `submitting`, which therefore counts as one of the places.
        """
        taking = Statement(
            sql="""INSERT INTO provider_limits (provider, paused_until, troubles) VALUES (:provider, 0, 0)
                ON CONFLICT (provider) DO UPDATE SET troubles = provider_limits.troubles""",
            params={"provider": attempt.provider},
        )
        return [taking, self._counting(attempt, limits)]

    @staticmethod
    def _counting(attempt: Attempt, limits: Limits) -> Statement:
        return Statement(
            sql=f"""INSERT INTO attempts (task_id, number, provider, key_id, sent_at, outcome, billed)
                SELECT :task_id, :number, :provider, :key_id, :sent_at, 'sent', 'unknown'
                WHERE ({_TAKEN}) < :creates AND ({_RUNNING}) <= :places AND ({_PROBE}) = 0""",
            params={
                **_moments(attempt.provider, attempt.sent_at),
                "task_id": attempt.task_id,
                "number": attempt.number,
                "key_id": attempt.key_id,
                "sent_at": attempt.sent_at,
                "creates": limits.creates,
                "places": limits.places,
            },
            must_change=True,
        )

    def pausing(self, provider: str, until: float) -> Statement:
        """Submit nothing before `until`, and count one more trouble."""
        return Statement(
            sql="""INSERT INTO provider_limits (provider, paused_until, troubles) VALUES (:provider, :until, 1)
                ON CONFLICT (provider) DO UPDATE SET troubles = provider_limits.troubles + 1, paused_until =
                CASE WHEN provider_limits.paused_until > :until THEN provider_limits.paused_until ELSE :until END""",
            params={"provider": provider, "until": until},
        )

    def clearing(self, provider: str) -> Statement:
        """The way is free again."""
        return Statement(
            sql="UPDATE provider_limits SET troubles = 0, paused_until = 0 WHERE provider = :provider AND troubles > 0",
            params={"provider": provider},
        )

    async def troubles(self, provider: str) -> int:
        """How many submissions in a row met trouble."""
        row = await self.database.point(
            "SELECT troubles FROM provider_limits WHERE provider = :provider", provider=provider
        )
        return int(row["troubles"]) if row else 0

    async def _window_opens(self, provider: str, limits: Limits, now: float) -> float:
        row = await self.database.point(
            """SELECT sent_at FROM attempts WHERE provider = :provider AND sent_at <= :horizon
                ORDER BY sent_at DESC LIMIT 1 OFFSET :skip""",
            provider=provider,
            horizon=now + WINDOW_SECONDS,
            skip=limits.creates - 1,
        )
        return row["sent_at"] + WINDOW_SECONDS if row else 0.0


def _moments(provider: str, now: float) -> dict[str, Any]:
    """What the counts are about. Others may be a little ahead of us; who is far ahead had a clock that was set back."""
    return {
        "provider": provider,
        "since": now - WINDOW_SECONDS,
        "probing": now - PROBE_SECONDS,
        "horizon": now + WINDOW_SECONDS,
    }
