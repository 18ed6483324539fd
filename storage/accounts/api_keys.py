"""API keys: named, stored as digests."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Final

from storage.accounts.owner_locks import lock_owner_account
from storage.accounts.users import User
from storage.sql.database import Database, Row, Statement
from storage.sql.rows import from_row, insert_row
from storage.sql.scope import Scope


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


_USER_FIELDS: Final = tuple(field.name for field in fields(User))
_USER_COLUMNS: Final = ", ".join(f"u.{name} AS user_{name}" for name in _USER_FIELDS)


@dataclass(frozen=True, kw_only=True)
class ListedKey:
    """A key and the name of its user, None without one."""

    key: ApiKey
    owner_name: str | None


@dataclass(frozen=True)
class ApiKeys:
    """API keys in the database."""

    database: Database

    async def find_by_digest(self, digest: str) -> tuple[ApiKey, User | None] | None:
        """Return the key and the user it belongs to, expired and disabled ones too."""
        row = await self.database.fetch_one(
            f"""SELECT k.*, {_USER_COLUMNS} FROM api_keys k LEFT JOIN users u ON u.id = k.owner
                WHERE k.digest = :digest""",
            digest=digest,
        )
        if row is None:
            return None
        user = None if row["user_id"] is None else from_row(User, {name: row[f"user_{name}"] for name in _USER_FIELDS})
        return from_row(ApiKey, row), user

    async def list_newest(self, scope: Scope, *, limit: int, before: tuple[float, str] | None) -> list[ListedKey]:
        """Return one page, newest first; before: (created_at, id) of the last key of the previous page."""
        at, last = before or (9e18, "")
        return await self._list(
            "(k.created_at, k.id) < (:at, :last) ORDER BY k.created_at DESC, k.id DESC LIMIT :limit",
            scope,
            at=at,
            last=last,
            limit=limit,
        )

    async def find(self, name: str, scope: Scope) -> list[ListedKey]:
        """Return the keys of an id or a name; keys of different owners may have the same name."""
        return await self._list("(k.id = :name OR k.name = :name) ORDER BY k.created_at, k.id", scope, name=name)

    async def _list(self, which: str, scope: Scope, **params: object) -> list[ListedKey]:
        rows = await self.database.fetch(
            f"""SELECT k.*, u.name AS owner_name FROM api_keys k LEFT JOIN users u ON u.id = k.owner
                WHERE {scope.condition("k.owner")} AND {which}""",
            **params,
            **scope.params,
        )
        return [_listed_key(row) for row in rows]

    def insert_key(self, key: ApiKey) -> Statement:
        """Insert a key; `Stale` if its user, or no user, has one of this name."""
        statement = insert_row("api_keys", key, "ON CONFLICT DO NOTHING")
        return statement._replace(must_change=True)

    def check_user(self, user_id: str, *, limit: int) -> list[Statement]:
        """Raise `Stale` if a user does not exist, or has `limit` keys. For the transaction that inserts one more."""
        count = "(SELECT count(*) FROM api_keys WHERE owner = :id)"
        return [
            lock_owner_account(user_id),
            Statement(
                sql=f"UPDATE users SET name = name WHERE id = :id AND {count} < :limit",
                params={"id": user_id, "limit": limit},
                must_change=True,
            ),
        ]

    async def delete(self, key_id: str, scope: Scope) -> bool:
        """Delete a key; return False if there is none."""
        sql = f"DELETE FROM api_keys WHERE id = :id AND {scope.condition('owner')}"
        return await self.database.execute(sql, id=key_id, **scope.params) == 1

    def delete_of_owner(self, owner: str) -> Statement:
        return Statement(sql="DELETE FROM api_keys WHERE owner = :owner", params={"owner": owner})


def _listed_key(row: Row) -> ListedKey:
    return ListedKey(key=from_row(ApiKey, row), owner_name=row["owner_name"])
