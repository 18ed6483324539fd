"""Attempts to log in, counted before the password is looked at; and the clients from which users have logged in.

What is counted, and where a client is known, is stored as a digest: names and addresses cannot be read here.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from storage.sql.database import Database, Statement
from storage.sql.rows import from_row, in_clause

CLIENT_KEPT_SECONDS: Final = 180 * 86_400.0
"""A client that did not log in for so long is a stranger again."""
_TOLERANCE_SECONDS: Final = 1e-3
"""Moments are floats of seconds since the epoch."""


@dataclass(frozen=True, kw_only=True)
class LoginAttempts:
    """The count of one key. Moments (`_at`) are seconds since the epoch."""

    key: str
    failures: int
    free_at: float
    """Of a series: when the next attempt is allowed. Of an allowance: when all of it is free again."""
    forget_at: float


@dataclass(frozen=True, kw_only=True)
class SeriesRule:
    """Attempts at once, and then a pause that doubles with each of them. Durations in seconds."""

    free_attempts: int
    first_pause: float
    max_pause: float
    kept_seconds: float
    """A series without an attempt for so long begins again."""


@dataclass(frozen=True, kw_only=True)
class Allowance:
    """A number of attempts at once, and a pause after which each of them comes back."""

    burst: int
    interval: float
    """Seconds."""

    @property
    def full_seconds(self) -> float:
        return self.burst * self.interval


@dataclass(frozen=True, kw_only=True)
class CountedAttempts:
    """The rows that a decision about an attempt reads."""

    by_key: Mapping[str, LoginAttempts]
    known_clients: frozenset[str]
    """Digests of clients that are known for the user."""


@dataclass(frozen=True)
class LoginAttemptCounts:
    """Counted attempts in the database."""

    database: Database

    async def read(self, keys: Sequence[str], *, user_id: str = "", clients: Sequence[str] = ("",)) -> CountedAttempts:
        """Return what was counted for keys, and which digests of clients are known for a user."""
        listed, params = in_clause(keys)
        digests, more = in_clause(clients)
        rows = await self.database.fetch(
            f"""SELECT key, failures, free_at, forget_at FROM login_attempts WHERE key IN ({listed})
                UNION ALL SELECT digest, -1, used_at, used_at FROM login_clients
                WHERE user_id = :user AND digest IN ({digests.replace(":v", ":c")})""",
            **params,
            **{name.replace("v", "c", 1): value for name, value in more.items()},
            user=user_id,
        )
        counted = [from_row(LoginAttempts, row) for row in rows if row["failures"] >= 0]
        return CountedAttempts(
            by_key={row.key: row for row in counted},
            known_clients=frozenset(row["key"] for row in rows if row["failures"] < 0),
        )

    def count_in_series(self, key: str, rule: SeriesRule, now: float) -> Statement:
        """Count an attempt of a series; `Stale` if the pause after the one before is not over.

        A pause that is longer than the longest was written before the clock was set back, and counts as over.
        """
        failures = "CASE WHEN a.forget_at <= :now THEN 1 ELSE a.failures + 1 END"
        beyond = f"{failures} - :free"
        return Statement(
            sql=f"""INSERT INTO login_attempts AS a (key, failures, free_at, forget_at)
                VALUES (:key, 1, :now, :forget_at) ON CONFLICT (key) DO UPDATE SET failures = {failures},
                free_at = :now + CASE WHEN {beyond} < 0 THEN 0.0 WHEN {beyond} >= :doublings THEN :max_pause
                    ELSE :first_pause * (1 << CAST({beyond} AS INTEGER)) END,
                forget_at = :forget_at
                WHERE a.free_at <= :latest OR a.free_at > :now + :max_pause OR a.forget_at <= :now""",
            params={
                "key": key,
                "now": now,
                "latest": now + _TOLERANCE_SECONDS,
                "forget_at": now + rule.kept_seconds,
                "free": rule.free_attempts,
                "first_pause": rule.first_pause,
                "max_pause": rule.max_pause,
                "doublings": math.ceil(math.log2(rule.max_pause / rule.first_pause)),
            },
            must_change=True,
        )

    def take_one(self, key: str, allowance: Allowance, now: float) -> Statement:
        """Take one attempt of an allowance; `Stale` if none is free.

        A row further ahead than the allowance reaches was written before the clock was set back, and counts as free.
        """
        return Statement(
            sql="""INSERT INTO login_attempts AS a (key, failures, free_at, forget_at)
                VALUES (:key, 1, :first, :first) ON CONFLICT (key) DO UPDATE SET failures = a.failures + 1,
                free_at = CASE WHEN a.free_at > :now AND a.free_at <= :full THEN a.free_at ELSE :now END + :interval,
                forget_at = CASE WHEN a.free_at > :now AND a.free_at <= :full THEN a.free_at ELSE :now END + :interval
                WHERE a.free_at <= :latest OR a.free_at > :full""",
            params={
                "key": key,
                "now": now,
                "interval": allowance.interval,
                "first": now + allowance.interval,
                "latest": now + allowance.full_seconds - allowance.interval + _TOLERANCE_SECONDS,
                "full": now + allowance.full_seconds + _TOLERANCE_SECONDS,
            },
            must_change=True,
        )

    def give_back(self, key: str, allowance: Allowance) -> Statement:
        """Give one attempt back, because it succeeded."""
        return Statement(
            sql="UPDATE login_attempts SET free_at = free_at - :interval WHERE key = :key",
            params={"key": key, "interval": allowance.interval},
        )

    def delete_key(self, key: str) -> Statement:
        return Statement(sql="DELETE FROM login_attempts WHERE key = :key", params={"key": key})

    async def delete_forgotten(self, now: float, limit: int) -> int:
        """Delete rows that have no effect any more, `limit` at most; return the number."""
        return await self.database.execute(
            """DELETE FROM login_attempts WHERE key IN
                (SELECT key FROM login_attempts WHERE forget_at <= :now ORDER BY forget_at LIMIT :limit)""",
            now=now,
            limit=limit,
        )


@dataclass(frozen=True)
class LoginClients:
    """Devices and addresses from which users have logged in, in the database."""

    database: Database

    def set_known(self, user_id: str, digest: str, now: float) -> Statement:
        return Statement(
            sql="""INSERT INTO login_clients (user_id, digest, used_at) VALUES (:user, :digest, :now)
                ON CONFLICT (user_id, digest) DO UPDATE SET used_at = :now""",
            params={"user": user_id, "digest": digest, "now": now},
        )

    def delete_of_user(self, user_id: str) -> Statement:
        return Statement(sql="DELETE FROM login_clients WHERE user_id = :user", params={"user": user_id})

    async def delete_older(self, now: float, limit: int) -> int:
        """Delete clients that were not used for long, `limit` at most; return the number."""
        return await self.database.execute(
            """DELETE FROM login_clients WHERE (user_id, digest) IN
                (SELECT user_id, digest FROM login_clients WHERE used_at < :before ORDER BY used_at LIMIT :limit)""",
            before=now - CLIENT_KEPT_SECONDS,
            limit=limit,
        )
