"""Users: the people who log in."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from storage.sql.database import Database, Statement
from storage.sql.pages import fetch_page
from storage.sql.rows import fetch_one_as, insert_row, set_clause, to_columns


@dataclass(frozen=True, kw_only=True)
class User:
    """One account. Moments (`_at`) are seconds since the epoch."""

    id: str
    """Also the owner of the user's tasks."""
    name: str
    """As it is shown."""
    name_key: str
    """The name normalised: unique, and what a login is looked up by."""
    email: str | None = None
    password_hash: str
    is_admin: bool = False
    is_disabled: bool = False
    must_change_password: bool = False
    quota: Mapping[str, Any] = field(default_factory=dict)
    """Limits that an admin set instead of the defaults; opaque to storage."""
    created_at: float
    updated_at: float
    last_login_at: float | None = None


@dataclass(frozen=True)
class Users:
    """Users in the database."""

    database: Database

    async def get(self, user_id: str) -> User | None:
        return await fetch_one_as(self.database, User, "SELECT * FROM users WHERE id = :id", id=user_id)

    async def get_by_name(self, name_key: str) -> User | None:
        return await fetch_one_as(self.database, User, "SELECT * FROM users WHERE name_key = :key", key=name_key)

    async def get_oldest_by_email(self, email: str) -> User | None:
        """Return the user who has had an address for longest; addresses are not proved, and not unique."""
        sql = "SELECT * FROM users WHERE lower(email) = :email ORDER BY created_at, id LIMIT 1"
        return await fetch_one_as(self.database, User, sql, email=email.lower())

    async def list_page(self, *, before: tuple[float, str] | None, limit: int) -> list[User]:
        """Return one page, the newest first."""
        return await fetch_page(self.database, User, "users", moment="created_at", before=before, limit=limit)

    async def has_any(self) -> bool:
        return await self.database.fetch_one("SELECT 1 AS found FROM users LIMIT 1") is not None

    async def has_any_account(self) -> bool:
        """Return whether there is a user or an API key."""
        sql = "SELECT 1 AS found FROM users UNION ALL SELECT 1 FROM api_keys LIMIT 1"
        if (rows := self.database.fetch_at_once(sql)) is not None:  # every direct call without a key asks
            return bool(rows)
        return await self.database.fetch_one(sql) is not None

    def insert_user(self, user: User) -> Statement:
        """Insert a user unless the name is taken; then `Stale`."""
        statement = insert_row("users", user, "ON CONFLICT (name_key) DO NOTHING")
        return statement._replace(must_change=True)

    async def count_admins(self) -> int:
        """Return the number of admins who can log in."""
        row = await self.database.fetch_one("SELECT count(*) AS n FROM users WHERE is_admin = 1 AND is_disabled = 0")
        return int(row["n"]) if row else 0

    def record_login(self, user: User, now: float, *, password_hash: str) -> Statement:
        """Record a login; `Stale` if the user was disabled or deleted, or the password changed since it was verified.

        password_hash: the one to store from now on; it may be a new one of the same password.
        """
        return Statement(
            sql="""UPDATE users SET last_login_at = :now, password_hash = :fresh
                WHERE id = :id AND is_disabled = 0 AND password_hash = :verified""",
            params={"id": user.id, "now": now, "verified": user.password_hash, "fresh": password_hash},
            must_change=True,
        )

    def change_password(self, user: User, now: float, *, password_hash: str) -> Statement:
        """Change a password by its user; `Stale` if it was changed since the old one was verified."""
        return Statement(
            sql="""UPDATE users SET password_hash = :fresh, must_change_password = 0, updated_at = :now
                WHERE id = :id AND is_disabled = 0 AND password_hash = :verified""",
            params={"id": user.id, "now": now, "verified": user.password_hash, "fresh": password_hash},
            must_change=True,
        )

    def update_user(self, user_id: str, now: float, **changes: Any) -> Statement:
        """Change a user; `Stale` if there is none of this id."""
        return Statement(
            sql=f"UPDATE users SET {set_clause(changes)}updated_at = :now WHERE id = :id",
            params={**to_columns(changes), "id": user_id, "now": now},
            must_change=True,
        )

    def delete_user(self, user_id: str) -> Statement:
        return Statement(sql="DELETE FROM users WHERE id = :id", params={"id": user_id})
