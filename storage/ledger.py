"""The ledger: what attempts cost, summed by day; it outlives their tasks by far, and holds no prompt and no task id."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal

from storage.attempts import ANY_ACCOUNT, IS_OWN_ACCOUNT
from storage.ids import DELETED_OWNER, is_own_account, provider_of
from storage.sql.database import Database, Row, Statement

SECONDS_PER_DAY: Final = 86_400
KEPT_DAYS: Final = 400

Group = Literal["day", "model", "provider", "user"]

# a cast truncates in SQLite and rounds in Postgres
_DAY: Final = f"""(CAST(a.sent_at AS BIGINT) - CASE WHEN CAST(a.sent_at AS BIGINT) > a.sent_at THEN 1 ELSE 0 END)
    / {SECONDS_PER_DAY}"""
_ENTRY: Final = f"""{_DAY} AS day, t.caller AS owner, a.provider, a.key_id, t.model, a.billed,
    1 AS attempts, CASE WHEN a.duplicate_result IS NULL THEN 0 ELSE 1 END AS duplicates,
    CASE WHEN a.billed <> 'no' AND a.usd_per_unit * CASE a.billed WHEN 'yes' THEN a.cost ELSE a.price END IS NULL
        THEN 1 ELSE 0 END AS unpriced,
    coalesce(a.cost, 0.0) + coalesce(a.duplicate_cost, 0.0) AS cost,
    coalesce(a.price * a.usd_per_unit, 0.0) AS usd_estimated,
    coalesce((coalesce(a.cost, 0.0) + coalesce(a.duplicate_cost, 0.0)) * a.usd_per_unit, 0.0) AS usd"""
"""An attempt `a` of a task `t` as a row of the ledger: first the columns of `_KEY`, then those of `_AMOUNTS`."""
_KEY: Final = "day, owner, provider, key_id, model, billed"
_COUNTS: Final = ("attempts", "duplicates", "unpriced")
_AMOUNTS: Final = (*_COUNTS, "cost", "usd_estimated", "usd")
_COLUMN_OF_GROUP: Final[Mapping[Group, str]] = {"day": "day", "model": "model", "provider": "provider", "user": "owner"}


@dataclass(frozen=True, kw_only=True)
class CostSum:
    """Attempts of one day, model, provider or caller, at one account of a provider and with one billing.

    name: of the group; a day is in days since the epoch (UTC). is_own: with keys of users, who pay them. duplicates:
    second results. cost: in the provider's unit. usd_estimated: by the price tables at the submissions. usd: certainly
    billed. unpriced: attempts that were or may have been billed, at a price in USD that is not known; the sums count
    them with 0.
    """

    name: str | int
    provider: str
    is_own: bool = False
    billed: str
    attempts: int
    duplicates: int
    unpriced: int
    cost: float
    usd_estimated: float
    usd: float


@dataclass(frozen=True, kw_only=True)
class OwnerCost:
    """Attempts of one owner on one day; the names are those of `CostSum`."""

    day: int
    """Since the epoch (UTC)."""
    model: str
    provider: str
    is_own: bool
    billed: str
    attempts: int
    cost: float
    usd_estimated: float
    usd: float


@dataclass(frozen=True)
class Ledger:
    """Sums per day, owner, provider, key, model and billing; what attempts cost after their tasks are gone."""

    database: Database

    def append_attempts(self, which: str, params: Mapping[str, Any]) -> Statement:
        """Add the attempts of the tasks that `which` selects, `t` being the task.

        For the transaction that deletes these attempts, with their tasks locked: so each is counted once.
        """
        sums = ", ".join(f"sum({name})" for name in _AMOUNTS)
        added = ", ".join(f"{name} = ledger.{name} + excluded.{name}" for name in _AMOUNTS)
        return Statement(
            sql=f"""INSERT INTO ledger ({_KEY}, {", ".join(_AMOUNTS)})
                SELECT {_KEY}, {sums}
                FROM (SELECT {_ENTRY} FROM tasks t JOIN attempts a ON a.task_id = t.id WHERE {which}) AS entries
                GROUP BY {_KEY} ORDER BY {_KEY}
                ON CONFLICT ({_KEY}) DO UPDATE SET {added}""",
            params=params,
        )

    async def sum_costs(self, by: Group, days: range) -> list[CostSum]:
        """Return the costs of these days, of live attempts and of purged ones.

        One statement, so that an attempt which a purge moves is counted once: it stays on its day. It reads every live
        attempt of these days.
        """
        sums = ", ".join(f"CAST(sum({name}) AS BIGINT) AS {name}" for name in _COUNTS)
        sums += "".join(f", sum({name}) AS {name}" for name in _AMOUNTS if name not in _COUNTS)
        sql = f"""SELECT {_COLUMN_OF_GROUP[by]} AS name, provider, billed, {sums} FROM (
                SELECT {_ENTRY} FROM attempts a JOIN tasks t ON t.id = a.task_id
                WHERE a.sent_at >= :since_at AND a.sent_at < :until_at
                UNION ALL SELECT {_KEY}, {", ".join(_AMOUNTS)} FROM ledger WHERE day >= :since_day AND day < :until_day
            ) AS entries GROUP BY {_COLUMN_OF_GROUP[by]}, provider, billed ORDER BY 1, 2, 3"""
        rows = await self.database.fetch_report(
            sql,
            since_day=days.start,
            until_day=days.stop,
            since_at=days.start * float(SECONDS_PER_DAY),
            until_at=days.stop * float(SECONDS_PER_DAY),
        )
        return [_make_sum(row, by) for row in rows]

    async def first_live_day(self) -> int | None:
        """Return the day of the oldest attempt that is not purged; None without any."""
        row = await self.database.fetch_one("SELECT sent_at FROM attempts ORDER BY sent_at LIMIT 1")
        return int(row["sent_at"] // SECONDS_PER_DAY) if row else None

    async def sum_of_owner(self, owner: str) -> list[OwnerCost]:
        """Return what an owner's attempts cost, purged ones too, newest day first."""
        names = ("attempts", "cost", "usd_estimated", "usd")
        sums = ", ".join(f"sum({name}) AS {name}" for name in names)
        rows = await self.database.fetch(
            f"""SELECT day, model, provider, billed, {sums} FROM (
                SELECT {_ENTRY} FROM attempts a JOIN tasks t ON t.id = a.task_id WHERE t.caller = :owner
                UNION ALL SELECT {_KEY}, {", ".join(_AMOUNTS)} FROM ledger WHERE owner = :owner
            ) AS entries GROUP BY day, model, provider, billed ORDER BY day DESC, model, provider, billed""",
            owner=owner,
        )
        return [
            OwnerCost(
                **{
                    **row,
                    "attempts": int(row["attempts"]),
                    "provider": provider_of(row["provider"]),
                    "is_own": is_own_account(row["provider"]),
                }
            )
            for row in rows
        ]

    def anonymize(self, owner: str) -> list[Statement]:
        """Add what the tasks of an owner cost to the amounts of all deleted accounts.

        Accounts of users at providers have one name together then. No purge adds to the owner's rows at the same time,
        because no task has the owner any more.
        """
        own = f"CASE WHEN {IS_OWN_ACCOUNT} THEN"
        sums = ", ".join(f"sum({name})" for name in _AMOUNTS)
        added = ", ".join(f"{name} = ledger.{name} + excluded.{name}" for name in _AMOUNTS)
        return [
            Statement(
                sql=f"""INSERT INTO ledger ({_KEY}, {", ".join(_AMOUNTS)})
                    SELECT {_KEY}, {sums} FROM (
                        SELECT day, '{DELETED_OWNER}' AS owner, {own} {ANY_ACCOUNT} ELSE provider END AS provider,
                            {own} '' ELSE key_id END AS key_id, model, billed, {", ".join(_AMOUNTS)}
                        FROM ledger WHERE owner = :owner) AS entries
                    GROUP BY {_KEY} ORDER BY {_KEY}
                    ON CONFLICT ({_KEY}) DO UPDATE SET {added}""",
                params={"owner": owner},
            ),
            Statement(sql="DELETE FROM ledger WHERE owner = :owner", params={"owner": owner}),
        ]

    async def delete_older(self, now: float, limit: int) -> int:
        """Delete at most `limit` rows of days that are more than `KEPT_DAYS` ago; return how many."""
        sql = f"""DELETE FROM ledger WHERE ({_KEY}) IN (SELECT {_KEY} FROM ledger
            WHERE day < :day ORDER BY {_KEY} LIMIT :limit{self.database.skip_locked})"""
        return await self.database.execute(sql, day=int(now) // SECONDS_PER_DAY - KEPT_DAYS, limit=limit)


def _make_sum(row: Row, by: Group) -> CostSum:
    """Return a row under the name of its provider, which the account of a user has a part of."""
    account = row["provider"]
    name = provider_of(account) if by == "provider" else row["name"]
    return CostSum(**{**row, "name": name, "provider": provider_of(account), "is_own": is_own_account(account)})
