"""Keys that users have at providers, sealed; and the names of the accounts that they open.

An account is one more provider in tasks, attempts and limits: `<provider>@<number>`. Its name stays the same when its
key is replaced. A key that was replaced or removed is retired: nothing is submitted with it any more, and it is kept
for as long as a job that it started is not stored.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from storage.sql.database import Database, Statement
from storage.sql.rows import fetch_as, fetch_one_as, insert_row

# jobs that are asked for, canceled, or whose links are renewed with the key
_JOB: Final = "SELECT 1 FROM tasks WHERE provider = provider_keys.account AND key_id = provider_keys.id AND state"
_HAS_JOBS: Final = f"(EXISTS ({_JOB} IN ('submitting', 'waiting')) OR EXISTS ({_JOB} = 'fetching'))"


@dataclass(frozen=True, kw_only=True)
class ProviderKey:
    """One key. Moments (`_at`) are seconds since the epoch."""

    id: str
    """Also its key id in attempts and limits; it reveals nothing of the key."""
    owner: str
    provider: str
    account: str
    """Name of the account in tasks and attempts."""
    sealed: str
    sealing_key: str
    """Id of the key that sealed it."""
    last_four: str
    """Last characters of the key, by which its user recognises it."""
    is_verified: bool
    """The provider accepted it when it was set."""
    created_at: float
    retired_at: float | None = None


@dataclass(frozen=True, kw_only=True)
class SealingKeyUse:
    """Number of keys that one sealing key sealed."""

    sealing_key: str
    keys: int


@dataclass(frozen=True)
class ProviderKeys:
    """Provider keys in the database."""

    database: Database

    async def find_active(self, owner: str, provider: str) -> ProviderKey | None:
        """Return the key with which an owner's orders are submitted."""
        sql = "SELECT * FROM provider_keys WHERE owner = :owner AND provider = :provider AND retired_at IS NULL"
        return await fetch_one_as(self.database, ProviderKey, sql, owner=owner, provider=provider)

    async def has_active(self, owner: str) -> bool:
        """Return whether an owner has a key: most have none, and each order asks."""
        sql = "SELECT 1 AS found FROM provider_keys WHERE owner = :owner AND retired_at IS NULL LIMIT 1"
        return await self.database.fetch_one(sql, owner=owner) is not None

    async def list_active(self, owner: str) -> list[ProviderKey]:
        sql = "SELECT * FROM provider_keys WHERE owner = :owner AND retired_at IS NULL ORDER BY provider"
        return await fetch_as(self.database, ProviderKey, sql, owner=owner)

    async def list_of_owner(self, owner: str) -> list[ProviderKey]:
        """Return the keys of an owner, retired ones too."""
        return await fetch_as(
            self.database, ProviderKey, "SELECT * FROM provider_keys WHERE owner = :owner ORDER BY id", owner=owner
        )

    async def list_of_account(self, account: str) -> list[ProviderKey]:
        """Return the keys of an account, retired ones too: the active one first, if there is any."""
        sql = """SELECT * FROM provider_keys WHERE account = :account
            ORDER BY CASE WHEN retired_at IS NULL THEN 0 ELSE 1 END, created_at DESC, id"""
        return await fetch_as(self.database, ProviderKey, sql, account=account)

    async def list_ownerless(self, limit: int) -> list[ProviderKey]:
        """Return active keys whose user or API key is deleted, and for which no order is queued. Reads all keys."""
        sql = """SELECT * FROM provider_keys WHERE retired_at IS NULL
            AND NOT EXISTS (SELECT 1 FROM users WHERE id = provider_keys.owner)
            AND NOT EXISTS (SELECT 1 FROM api_keys WHERE id = provider_keys.owner)
            AND NOT EXISTS (SELECT 1 FROM tasks
                WHERE state = 'queued' AND provider LIKE '%@%' AND provider = provider_keys.account) LIMIT :limit"""
        return await fetch_as(self.database, ProviderKey, sql, limit=limit)

    async def count_by_sealing_key(self) -> list[SealingKeyUse]:
        sql = "SELECT sealing_key, count(*) AS keys FROM provider_keys GROUP BY sealing_key ORDER BY sealing_key"
        return await fetch_as(self.database, SealingKeyUse, sql)

    async def list_sealed_by_others(self, sealing_key: str, *, after: str, limit: int) -> list[ProviderKey]:
        """Return keys that another key sealed, by id. after: the last id of the page before."""
        sql = """SELECT * FROM provider_keys WHERE sealing_key <> :sealing_key AND id > :after
            ORDER BY id LIMIT :limit"""
        return await fetch_as(self.database, ProviderKey, sql, sealing_key=sealing_key, after=after, limit=limit)

    # -- changing: statements for a transaction

    def insert_key(self, key: ProviderKey) -> Statement:
        """Insert a key; `Stale` if its owner has another active one at this provider."""
        statement = insert_row(
            "provider_keys", key, "ON CONFLICT (owner, provider) WHERE retired_at IS NULL DO NOTHING"
        )
        return statement._replace(must_change=True)

    def retire_key(self, key: ProviderKey, now: float) -> list[Statement]:
        """Submit nothing more with a key, and delete it if no job needs it; `Stale` if it is not active.

        The first statement locks what `ProviderLimits.reserve_submission` locks: a submission either came before, and
        then the key is kept for its job, or finds it retired.
        """
        params = {"id": key.id, "account": key.account, "now": now}
        lock = """INSERT INTO provider_limits (provider, key_id, paused_until, errors, reason)
            VALUES (:account, :id, 0, 0, '')
            ON CONFLICT (provider, key_id) DO UPDATE SET errors = provider_limits.errors"""
        retire = "UPDATE provider_keys SET retired_at = :now WHERE id = :id AND retired_at IS NULL"
        return [
            Statement(sql=lock, params=params),
            Statement(sql=retire, params=params, must_change=True),
            *_delete_where(f"id = :id AND NOT {_HAS_JOBS}", {"id": key.id}),
        ]

    def reseal_key(self, key: ProviderKey, sealed: str, sealing_key: str) -> Statement:
        """Replace the sealed text; `Stale` if another process did so."""
        return Statement(
            sql="""UPDATE provider_keys SET sealed = :sealed, sealing_key = :sealing_key
                WHERE id = :id AND sealed = :before""",
            params={"id": key.id, "before": key.sealed, "sealed": sealed, "sealing_key": sealing_key},
            must_change=True,
        )

    def delete_key(self, key: ProviderKey) -> list[Statement]:
        """Delete a key at once, whatever needs it."""
        return _delete_where("id = :id", {"id": key.id})

    def delete_of_owner(self, owner: str) -> list[Statement]:
        """Delete all keys of an owner at once, whatever needs them."""
        return _delete_where("owner = :owner", {"owner": owner})

    async def delete_unused(self) -> None:
        """Delete the retired keys that no job needs any more."""
        await self.database.transact(*_delete_where(f"retired_at IS NOT NULL AND NOT {_HAS_JOBS}", {}))


def _delete_where(condition: str, params: Mapping[str, Any]) -> list[Statement]:
    """Return the statements that delete keys, and what their limits are counted in."""
    limits = f"SELECT account, id FROM provider_keys WHERE {condition}"
    return [
        Statement(sql=f"DELETE FROM provider_limits WHERE (provider, key_id) IN ({limits})", params=params),
        Statement(sql=f"DELETE FROM provider_keys WHERE {condition}", params=params),
    ]
