"""API keys: named, stored as digests."""

from __future__ import annotations

from dataclasses import dataclass

from storage.accounts.users import User
from storage.sql.database import Database, Statement
from storage.sql.rows import fetch_as, fetch_one_as, from_row, insert_row


@dataclass(frozen=True, kw_only=True)
class ApiKey:
    """One key. Moments (`_at`) are seconds since the epoch."""

    id: str
    """Its public name; it opens nothing."""
    digest: str
    """SHA-256 of the key, in hex."""
    prefix: str
    """The first characters of the key, by which its user recognises it."""
    name: str
    owner: str
    """The user, or the key's own id if it belongs to no user."""
    created_at: float
    expires_at: float | None = None
    last_used_at: float | None = None


@dataclass(frozen=True)
class ApiKeys:
    """API keys in the database."""

    database: Database

    async def find_by_digest(self, digest: str) -> tuple[ApiKey, User | None] | None:
        """Return the key and the user it belongs to, expired and disabled ones too."""
        key = await fetch_one_as(self.database, ApiKey, "SELECT * FROM api_keys WHERE digest = :digest", digest=digest)
        if key is None:
            return None
        row = await self.database.fetch_one("SELECT * FROM users WHERE id = :id", id=key.owner)
        return key, from_row(User, row) if row else None

    async def list_of_owner(self, owner: str) -> list[ApiKey]:
        sql = "SELECT * FROM api_keys WHERE owner = :owner ORDER BY created_at, id"
        return await fetch_as(self.database, ApiKey, sql, owner=owner)

    def delete_of_owner(self, owner: str) -> Statement:
        return Statement(sql="DELETE FROM api_keys WHERE owner = :owner", params={"owner": owner})

    def insert_key(self, key: ApiKey) -> Statement:
        return insert_row("api_keys", key)
