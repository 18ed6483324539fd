"""Limits of each key of a provider: window of submissions, concurrency, and cooldown; and pauses of whole providers.

Kept in the database, because all processes share the limits of one key.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from storage.attempts import Attempt
from storage.ids import is_own_account, provider_of
from storage.sql.database import Database, Statement
from storage.sql.rows import fetch_as, in_clause

WINDOW_SECONDS = 10.0
AMPLE_CAPACITY = 100
"""Submissions that a key can take beyond those that any caller has at hand."""
PROBE_SECONDS = 150.0
"""Longer than a submission can take that is answered with a job id."""
MAX_COOLDOWN_SECONDS = 3600.0
"""Longest cooldown; one that seems longer was written before the clock was set back."""


SET_ASIDE_REASONS = ("provider_auth", "provider_credits")
"""Reasons of a cooldown that only the operator can end."""


Circuit = Literal["closed", "half_open", "open", "set_aside"]
"""Of one key. closed: orders are submitted. open: none is, until the cooldown ends. half_open: one is, as a probe.
set_aside: open or half open, and only the operator can change the reason."""


class AccountLimits(NamedTuple):
    """Limits of one key of a provider. creates_per_window: submissions per 10 seconds. concurrency: running jobs.

    submit_seconds: longest time that a submission can take; an attempt that is still `sent` after it belongs to a
    process that died.
    """

    creates_per_window: int
    concurrency: int
    submit_seconds: float = PROBE_SECONDS


@dataclass(frozen=True, kw_only=True)
class Capacity:
    """Number of jobs that may be submitted now; if 0, when to check again (`inf`: when a job ends).

    is_paused: nothing is submitted because of earlier errors, not because of the limits. is_set_aside: and only the
    operator can change that.
    """

    free: int
    recheck_at: float = math.inf
    is_paused: bool = False
    is_set_aside: bool = False


@dataclass(frozen=True, kw_only=True)
class AccountLoad:
    """Load of one key. paused_until: since the epoch. running: jobs that occupy a slot.

    submitted: submissions in the window. errors: failed submissions in a row. reason: task error code of the last one;
    empty without a cooldown.
    """

    paused_until: float
    running: int
    errors: int
    reason: str = ""
    submitted: int = 0

    def circuit(self, now: float) -> Circuit:
        """Return the state of the circuit breaker."""
        if self.is_set_aside:
            return "set_aside"
        if self.paused_until > now:
            return "open"
        return "half_open" if self.errors else "closed"

    @property
    def is_set_aside(self) -> bool:
        """Return whether the operator must act before the key works again."""
        return self.errors > 0 and self.reason in SET_ASIDE_REASONS


@dataclass(frozen=True, kw_only=True)
class Cooldown:
    """Cooldown of one key. reason: task error code of the last failure."""

    provider: str
    key_id: str
    paused_until: float
    errors: int
    reason: str


_ACCOUNT = "provider = :provider AND key_id = :key_id"
_COOLDOWN = f"""(SELECT paused_until FROM provider_limits WHERE {_ACCOUNT}) AS paused_until,
    (SELECT errors FROM provider_limits WHERE {_ACCOUNT}) AS errors,
    (SELECT reason FROM provider_limits WHERE {_ACCOUNT}) AS reason"""
_SUBMITTED = f"SELECT count(*) AS n FROM attempts WHERE {_ACCOUNT} AND sent_at > :since AND sent_at <= :horizon"
_RUNNING = f"SELECT count(*) AS n FROM tasks WHERE {_ACCOUNT} AND state IN ('submitting', 'waiting')"
# the same counts where only the limits matter, and so no more rows than these
_SUBMITTED_WITHIN = (
    f"SELECT count(*) AS n FROM ({_SUBMITTED.replace('count(*) AS n', '1')} LIMIT :creates_per_window) w"
)
_RUNNING_ROWS = _RUNNING.replace("count(*) AS n", "1")
_RUNNING_WITHIN = f"SELECT count(*) AS n FROM ({_RUNNING_ROWS} LIMIT :concurrency + 1) r"
# after a failure one job is submitted first, as a probe
_PROBE = """SELECT count(*) AS n FROM provider_limits l JOIN attempts a
    ON a.provider = l.provider AND a.key_id = l.key_id
    WHERE l.provider = :provider AND l.key_id = :key_id AND l.errors > 0 AND a.outcome = 'sent'
    AND a.sent_at >= l.paused_until AND a.sent_at > :probing AND a.sent_at <= :horizon"""
# Two counters in the row of a key save most counts: submissions since the first one of a window, and in the window
# before. Those of the last `WINDOW_SECONDS` are among them, so there are no more; unless a clock is behind that of the
# process that began the window.
_IN_WINDOW = f":sent_at < limits.window_from + {WINDOW_SECONDS}"
_IN_NEXT_WINDOW = f":sent_at < limits.window_from + {2 * WINDOW_SECONDS}"
_COUNT_SUBMISSION = f"""UPDATE SET
    earlier_submissions = CASE WHEN {_IN_WINDOW} THEN limits.earlier_submissions
        WHEN {_IN_NEXT_WINDOW} THEN limits.submissions ELSE 0 END,
    submissions = CASE WHEN {_IN_WINDOW} THEN limits.submissions + 1 ELSE 1 END,
    window_from = CASE WHEN {_IN_WINDOW} THEN limits.window_from ELSE :sent_at END"""
_IS_WITHIN_WINDOW = f"""((l.submissions + l.earlier_submissions <= :creates_per_window AND l.window_from <= :sent_at)
    OR ({_SUBMITTED_WITHIN}) < :creates_per_window)"""
# that bound, where so much of the window is left that no caller can use it at once; else NULL
_SUBMITTED_AT_MOST = f"""SELECT submissions + earlier_submissions FROM provider_limits WHERE {_ACCOUNT}
    AND window_from <= :now AND submissions + earlier_submissions + {AMPLE_CAPACITY} <= :creates_per_window"""
# one that only the operator can end lets an order through, which is refused with the reason
_IS_COOLING = f"""(l.paused_until > :sent_at AND l.paused_until < :latest
    AND l.reason NOT IN ({", ".join(f"'{reason}'" for reason in SET_ASIDE_REASONS)}))"""
_COUNT_IN_ROW = f"""INSERT INTO provider_limits AS limits
        (provider, key_id, paused_until, errors, reason, window_from, submissions)
    VALUES (:provider, :key_id, 0, 0, '', :sent_at, 1)
    ON CONFLICT (provider, key_id) DO {_COUNT_SUBMISSION} RETURNING errors"""
_INSERT_WITHIN_LIMITS = f"""INSERT INTO attempts
        (task_id, number, provider, key_id, sent_at, outcome, billed, price, usd_per_unit)
    SELECT :task_id, :number, :provider, :key_id, :sent_at, 'sent', 'unknown', :price, :usd_per_unit
    FROM provider_limits l WHERE l.provider = :provider AND l.key_id = :key_id
    AND {_IS_WITHIN_WINDOW} AND NOT EXISTS ({_RUNNING_ROWS} LIMIT 1 OFFSET :concurrency)
    AND NOT {_IS_COOLING} AND (l.errors = 0 OR ({_PROBE}) = 0)
    AND NOT EXISTS (SELECT 1 FROM provider_pauses WHERE provider = :paused)"""
_INSERT_FOR_OWN_KEY = f"""{_INSERT_WITHIN_LIMITS}
    AND EXISTS (SELECT 1 FROM provider_keys WHERE id = :key_id AND retired_at IS NULL)"""


@dataclass(frozen=True)
class ProviderLimits:
    """Limits of the providers, one row per key, and the pauses of operators."""

    database: Database

    async def get_capacity(self, provider: str, key_id: str, limits: AccountLimits, now: float) -> Capacity:
        """Return how much may be submitted now. A hint only: `reserve_submission` decides.

        It can be too low, but not below `AMPLE_CAPACITY`: the submissions in a wide window are not counted.
        """
        submitted = f"coalesce(({_SUBMITTED_AT_MOST}), ({_SUBMITTED_WITHIN})) AS submitted"
        counts = f"{submitted}, ({_RUNNING_WITHIN}) AS running, ({_PROBE}) AS probes"
        row: Any = await self.database.fetch_one(
            f"SELECT {_COOLDOWN}, {counts}",
            **_count_params(provider, key_id, limits, now),
            creates_per_window=limits.creates_per_window,
            concurrency=limits.concurrency,
            now=now,
        )
        if now < (row["paused_until"] or 0.0) < now + MAX_COOLDOWN_SECONDS:
            is_set_aside = row["reason"] in SET_ASIDE_REASONS
            return Capacity(free=0, recheck_at=row["paused_until"], is_paused=True, is_set_aside=is_set_aside)
        if row["probes"]:
            return Capacity(free=0, is_paused=True)
        window = limits.creates_per_window - row["submitted"]
        if window <= 0:
            return Capacity(free=0, recheck_at=await self._window_opens_at(provider, key_id, limits, now))
        slots = limits.concurrency - row["running"]
        return Capacity(free=max(0, min(window, slots, 1 if row["errors"] else window)))

    async def get_load(self, provider: str, key_id: str, now: float) -> AccountLoad:
        """Return the load of a key."""
        sql = f"SELECT {_COOLDOWN}, ({_RUNNING}) AS running, ({_SUBMITTED}) AS submitted"
        moments = {"since": now - WINDOW_SECONDS, "horizon": now + WINDOW_SECONDS}
        row: Any = await self.database.fetch_one(sql, provider=provider, key_id=key_id, **moments)
        until = row["paused_until"] or 0.0
        return AccountLoad(
            paused_until=until if until < now + MAX_COOLDOWN_SECONDS else 0.0,
            running=row["running"],
            errors=row["errors"] or 0,
            reason=row["reason"] or "",
            submitted=row["submitted"],
        )

    async def count_errors(self, provider: str, key_id: str) -> int:
        """Return the number of failed submissions in a row of a key."""
        sql = f"SELECT errors FROM provider_limits WHERE {_ACCOUNT}"
        row = await self.database.fetch_one(sql, provider=provider, key_id=key_id)
        return int(row["errors"]) if row else 0

    def reserve_submission(self, attempt: Attempt, limits: AccountLimits) -> list[Statement]:
        """Write the attempt if its key has capacity and no cooldown, and its provider is not paused; otherwise `Stale`.

        1. Count in the key's row, which locks it, so that transactions count one after the other, and return its
        `errors`. 2. Compare, and write. Both follow the statement that makes the task `submitting`, so the task itself
        counts as one running job.
        The key of a user must be active; see `ProviderKeys.retire_key`.
        """
        provider, key_id, sent_at = attempt.provider, attempt.key_id, attempt.sent_at
        lock = Statement(sql=_COUNT_IN_ROW, params={"provider": provider, "key_id": key_id, "sent_at": sent_at})
        params = _count_params(provider, key_id, limits, sent_at)
        params |= vars(attempt)
        params |= {
            "paused": provider_of(provider),
            "latest": sent_at + MAX_COOLDOWN_SECONDS,
            "creates_per_window": limits.creates_per_window,
            "concurrency": limits.concurrency,
        }
        sql = _INSERT_FOR_OWN_KEY if is_own_account(provider) else _INSERT_WITHIN_LIMITS
        insert = Statement(sql=sql, params=params, must_change=True)
        return [lock, insert]

    def start_cooldown(self, provider: str, key_id: str, until: float, reason: str) -> Statement:
        """Start a cooldown until `until`, and count one more failure. reason: task error code."""
        return Statement(
            sql="""INSERT INTO provider_limits (provider, key_id, paused_until, errors, reason)
                VALUES (:provider, :key_id, :until, 1, :reason)
                ON CONFLICT (provider, key_id) DO UPDATE SET errors = provider_limits.errors + 1, reason = :reason,
                paused_until =
                CASE WHEN provider_limits.paused_until > :until THEN provider_limits.paused_until ELSE :until END""",
            params={"provider": provider, "key_id": key_id, "until": until, "reason": reason},
        )

    def end_cooldown(self, provider: str, key_id: str) -> Statement:
        """End the cooldown and reset the failures."""
        return Statement(
            sql=f"UPDATE provider_limits SET errors = 0, paused_until = 0, reason = '' WHERE {_ACCOUNT} AND errors > 0",
            params={"provider": provider, "key_id": key_id},
        )

    async def list_cooldowns(self, accounts: Sequence[str], now: float) -> list[Cooldown]:
        """Return the keys of these accounts that are in cooldown now; for some hundred accounts."""
        listed, params = in_clause(accounts)
        sql = f"""SELECT * FROM provider_limits WHERE provider IN ({listed})
            AND paused_until > :now AND paused_until < :horizon"""
        return await fetch_as(self.database, Cooldown, sql, now=now, horizon=now + MAX_COOLDOWN_SECONDS, **params)

    async def paused_providers(self) -> frozenset[str]:
        """Return the providers that an operator paused."""
        rows = await self.database.fetch("SELECT provider FROM provider_pauses ORDER BY provider")
        return frozenset(row["provider"] for row in rows)

    def pause_provider(self, provider: str, now: float) -> Statement:
        """Submit nothing to a provider until it is resumed; running jobs go on."""
        return Statement(
            sql="""INSERT INTO provider_pauses (provider, paused_at) VALUES (:provider, :now)
                ON CONFLICT (provider) DO NOTHING""",
            params={"provider": provider, "now": now},
        )

    def resume_provider(self, provider: str) -> list[Statement]:
        """End the pause and the cooldowns of a provider."""
        params = {"provider": provider}
        ended = "UPDATE provider_limits SET errors = 0, paused_until = 0, reason = '' WHERE provider = :provider"
        return [
            Statement(sql="DELETE FROM provider_pauses WHERE provider = :provider", params=params),
            Statement(sql=ended, params=params),
        ]

    async def _window_opens_at(self, provider: str, key_id: str, limits: AccountLimits, now: float) -> float:
        sql = f"""SELECT sent_at FROM attempts WHERE {_ACCOUNT} AND sent_at <= :horizon
            ORDER BY sent_at DESC LIMIT 1 OFFSET :skip"""
        skip = limits.creates_per_window - 1
        row = await self.database.fetch_one(
            sql, provider=provider, key_id=key_id, horizon=now + WINDOW_SECONDS, skip=skip
        )
        return row["sent_at"] + WINDOW_SECONDS if row else 0.0


def _count_params(provider: str, key_id: str, limits: AccountLimits, now: float) -> dict[str, Any]:
    """Return the moments of the counts. Other clocks may be slightly ahead; rows far ahead predate a clock set back."""
    return {
        "provider": provider,
        "key_id": key_id,
        "since": now - WINDOW_SECONDS,
        "probing": now - limits.submit_seconds,
        "horizon": now + WINDOW_SECONDS,
    }
