"""Outbox: webhooks to callers, and every attempt to deliver them.

A row is written in the transaction that makes its event true, and leased like a task. The result of an attempt names
its lease and the number of earlier attempts, and is dropped if the row has changed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from storage.errors import Stale
from storage.sql.database import Database, Statement
from storage.sql.pages import fetch_page
from storage.sql.rows import SqlList, fetch_as, fetch_one_as, from_row, in_clause, insert_row, set_clause
from storage.tasks import DUE_CHANNEL, Lease


class DeliveryStatus(StrEnum):
    """Status of a delivery. FAILED: given up after the last attempt. GONE: the receiver answered 410."""

    PENDING = "pending"
    DELIVERED = "delivered"
    FAILED = "failed"
    GONE = "gone"


@dataclass(frozen=True, kw_only=True)
class Delivery:
    """One webhook. Moments (`_at`) are seconds since the epoch.

    id: its `webhook-id`. caller: owner of the task. url: may hold a secret of the receiver. host: with port. body: as
    it is sent. format: the name of its body's shape and signature.
    due_at: of the next attempt; None if none follows. schedule_step: attempts of this schedule. attempts: all of
    them, with those of replays. last_status: of the last response, if any.
    reason: why it is not delivered yet, in a few words.
    """

    id: str
    caller: str
    task_id: str
    type: str
    url: str
    host: str
    body: str
    format: str = "native"
    outcome: DeliveryStatus = DeliveryStatus.PENDING
    due_at: float | None
    lease_until: float = 0.0
    leased_by: str = ""
    schedule_step: int = 0
    attempts: int = 0
    last_status: int | None = None
    reason: str | None = None
    created_at: float
    delivered_at: float | None = None
    ended_at: float | None = None


@dataclass(frozen=True, kw_only=True)
class DeliveryAttempt:
    """One request to a receiver. status: of its response; None without one: `error` has the reason."""

    delivery_id: str
    number: int
    at: float
    status: int | None = None
    error: str | None = None
    milliseconds: int


@dataclass(frozen=True)
class Deliveries:
    """The outbox."""

    database: Database

    # -- reading

    async def get(self, delivery_id: str) -> Delivery | None:
        return await fetch_one_as(self.database, Delivery, "SELECT * FROM deliveries WHERE id = :id", id=delivery_id)

    async def list_attempts(self, delivery_id: str) -> list[DeliveryAttempt]:
        """Return the attempts of a webhook, in order."""
        sql = "SELECT * FROM delivery_attempts WHERE delivery_id = :id ORDER BY number"
        return await fetch_as(self.database, DeliveryAttempt, sql, id=delivery_id)

    async def list_newest(
        self,
        *,
        limit: int,
        caller: str | None = None,
        task_id: str | None = None,
        outcome: DeliveryStatus | None = None,
        before: tuple[float, str] | None = None,
    ) -> list[Delivery]:
        """Return one page, newest first; before: (created_at, id) of the last row of the previous page."""
        return await fetch_page(
            self.database,
            Delivery,
            "deliveries",
            moment="created_at",
            before=before,
            limit=limit,
            caller=caller,
            task_id=task_id,
            outcome=outcome,
        )

    async def count_pending(self) -> int:
        """Count the webhooks that have a next attempt."""
        row = await self.database.fetch_one("SELECT count(*) AS n FROM deliveries WHERE due_at IS NOT NULL")
        return int(row["n"]) if row else 0

    # -- leasing

    async def claim(self, *, now: float, lease: Lease, limit: int, busy_hosts: Sequence[str] = ()) -> list[Delivery]:
        """Lease up to `limit` due webhooks, the most overdue first, without those to some hosts."""
        if limit <= 0:
            return []
        listed, params = in_clause(busy_hosts)
        allowed = f"AND host NOT IN ({listed})" if busy_hosts else ""
        # "leased_by = :holder": a claim may run twice when its outcome was unknown
        sql = f"""WITH due AS MATERIALIZED (SELECT id FROM deliveries
            WHERE due_at <= :now {allowed} AND (lease_until <= :now OR leased_by = :holder)
            ORDER BY due_at LIMIT :limit{self.database.skip_locked})
            UPDATE deliveries SET leased_by = :holder, lease_until = :until
            WHERE id IN (SELECT id FROM due) RETURNING *"""
        all_params = {"now": now, "holder": lease.holder, "until": lease.until, "limit": limit, **params}
        (outcome,) = await self.database.transact(Statement(sql=sql, params=all_params))
        return [from_row(Delivery, row) for row in outcome.rows]

    async def renew(self, held: Sequence[Delivery], until: float) -> None:
        """Extend the leases of webhooks that are being attempted; lost and released leases stay so."""
        sql = "UPDATE deliveries SET lease_until = :until WHERE id = :id AND leased_by = :holder"
        params = [{"id": one.id, "holder": one.leased_by, "until": until} for one in held]
        await self.database.transact(*(Statement(sql=sql, params=one) for one in params))

    async def release(self, held: Sequence[Delivery], *, wake: bool = True) -> None:
        """Release webhooks that were not attempted. wake: let a worker claim them at once."""
        sql = "UPDATE deliveries SET lease_until = 0, leased_by = '' WHERE id = :id AND leased_by = :holder"
        releases = [Statement(sql=sql, params={"id": one.id, "holder": one.leased_by}) for one in held]
        await self.database.transact(*releases, wake=(DUE_CHANNEL,) if wake else ())

    # -- changing

    def insert_delivery(self, delivery: Delivery) -> Statement:
        """Insert a webhook, in the transaction that makes its event true."""
        return insert_row("deliveries", delivery, "ON CONFLICT (id) DO NOTHING")

    async def record_attempt(self, delivery: Delivery, attempt: DeliveryAttempt, **changes: Any) -> None:
        """Store an attempt and its result, and end the lease; `Stale` if the lease was lost."""
        update = Statement(
            sql=f"""UPDATE deliveries SET {set_clause(changes)}attempts = :number, lease_until = 0, leased_by = ''
                WHERE id = :id AND leased_by = :holder AND attempts = :seen""",
            params={
                **changes,
                "id": delivery.id,
                "holder": delivery.leased_by,
                "seen": delivery.attempts,
                "number": attempt.number,
            },
            must_change=True,
        )
        insert = insert_row("delivery_attempts", attempt, "ON CONFLICT (delivery_id, number) DO NOTHING")
        try:
            await self.database.transact(update, insert)
        except Stale:
            if attempt not in await self.list_attempts(delivery.id):  # else the first run was committed
                raise

    async def replay(self, delivery_id: str, now: float) -> bool:
        """Restart the schedule of a webhook, whatever its status; False if it does not exist.

        A running attempt does not count: its lease ends here.
        """
        sql = """UPDATE deliveries SET outcome = 'pending', due_at = :now, schedule_step = 0, lease_until = 0,
            leased_by = '', delivered_at = NULL, ended_at = NULL, reason = NULL WHERE id = :id"""
        restart = Statement(sql=sql, params={"id": delivery_id, "now": now})
        (outcome,) = await self.database.transact(restart, wake=(DUE_CHANNEL,))
        return outcome.count == 1

    def delete_of_expired(self, tasks: SqlList) -> list[Statement]:
        """Delete the webhooks of those tasks that are expired, because their bodies contain the prompt.

        Those about a batch of different orders have nothing of its tasks, and stay: it may go on without one of them.
        It follows the statement that expires the tasks. The lease ends first, so a running attempt stores nothing.
        """
        listed, params = tasks
        state = "(SELECT t.state FROM tasks t WHERE t.id = deliveries.task_id)"
        which = f"task_id IN ({listed}) AND type NOT LIKE 'batch.%' AND {state} = 'expired'"
        end_lease = f"UPDATE deliveries SET lease_until = 0, leased_by = '' WHERE {which}"
        return [Statement(sql=end_lease, params=params), *_delete_where(which, params)]

    async def delete_before(self, before: float, limit: int) -> int:
        """Delete at most `limit` webhooks that ended before `before`, with their attempts; return how many."""
        sql = "SELECT id FROM deliveries WHERE ended_at < :before ORDER BY ended_at LIMIT :limit"
        rows = await self.database.fetch(sql, before=before, limit=limit)
        if not rows:
            return 0
        listed, params = in_clause([row["id"] for row in rows])
        which = f"id IN ({listed}) AND ended_at < :before"  # keeps one that is replayed at the same time
        _, deleted = await self.database.transact(*_delete_where(which, {**params, "before": before}))
        return deleted.count


def _delete_where(which: str, params: Mapping[str, Any]) -> list[Statement]:
    """Delete webhooks with their attempts."""
    attempts = f"DELETE FROM delivery_attempts WHERE delivery_id IN (SELECT id FROM deliveries WHERE {which})"
    return [
        Statement(sql=attempts, params=params),
        Statement(sql=f"DELETE FROM deliveries WHERE {which}", params=params),
    ]
