"""Answers kept for repeated orders: who used which idempotency key, for what, and which tasks came of it."""

from __future__ import annotations

from dataclasses import dataclass

from storage.sql.database import Database, Statement
from storage.sql.rows import record


@dataclass(frozen=True, kw_only=True)
class KeyUse:
    """fingerprint: hash of the request; the same key with another one is a mistake of the caller."""

    caller: str
    key: str
    fingerprint: str
    batch: str
    created_at: float


@dataclass(frozen=True)
class Keys:
    """Idempotency keys at rest."""

    database: Database

    async def get(self, caller: str, key: str) -> KeyUse | None:
        row = await self.database.point(
            "SELECT * FROM idempotency WHERE caller = :caller AND key = :key", caller=caller, key=key
        )
        return record(KeyUse, row) if row else None

    def using(self, use: KeyUse) -> Statement:
        """`Stale` if the key is in use: of two equal orders at once, one wins and the other reads its answer."""
        return Statement(
            sql="""INSERT INTO idempotency (caller, key, fingerprint, batch, created_at)
                VALUES (:caller, :key, :fingerprint, :batch, :created_at) ON CONFLICT (caller, key) DO NOTHING""",
            params=vars(use),
            must_change=True,
        )

    async def forget(self, before: float, limit: int) -> int:
        """Those from before `before`, as far as no task of theirs is kept: its repetition would be a second order."""
        return await self.database.execute(
            f"""DELETE FROM idempotency WHERE (caller, key) IN (SELECT caller, key FROM idempotency
                WHERE created_at < :before AND NOT EXISTS
                (SELECT 1 FROM tasks t WHERE t.batch = idempotency.batch AND t.state <> 'expired')
                ORDER BY created_at LIMIT :limit{self.database.skip_locked})""",
            before=before,
            limit=limit,
        )
