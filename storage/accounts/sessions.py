"""Sessions: one per login, with the secrets by which its requests are known, stored as digests."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from storage.accounts.users import User
from storage.sql.database import Database, Row, Statement
from storage.sql.rows import fetch_as, fetch_one_as, from_row, insert_row

SecretKind = Literal["cookie", "access", "refresh"]
SessionKind = Literal["cookie", "tokens"]


@dataclass(frozen=True, kw_only=True)
class Session:
    """One login. Moments (`_at`) are seconds since the epoch."""

    id: str
    """Its public name; it opens nothing."""
    user_id: str
    kind: SessionKind = "cookie"
    client: str
    """User-Agent at the login, shortened."""
    address: str
    """Of the client at the login."""
    created_at: float
    last_seen_at: float
    expires_at: float
    """The end of the session, however much it is used."""


@dataclass(frozen=True, kw_only=True)
class SessionSecret:
    """One secret of a session: a cookie, an access token, or a refresh token."""

    digest: str
    """SHA-256 of the secret, in hex."""
    session_id: str
    kind: SecretKind
    expires_at: float
    used_at: float | None = None
    """When a refresh token was exchanged for the next one; using it again revokes the session."""


@dataclass(frozen=True, kw_only=True)
class FoundSecret:
    """A secret with its session and user."""

    secret: SessionSecret
    session: Session
    user: User


@dataclass(frozen=True)
class Sessions:
    """Sessions in the database."""

    database: Database

    async def find_secret(self, digest: str) -> FoundSecret | None:
        """Return a secret with its session and user, expired or not."""
        row = await self.database.fetch_one(
            """SELECT u.*, s.user_id, s.kind AS session_kind, s.client, s.address, s.last_seen_at,
                x.digest, x.session_id, x.kind, x.used_at,
                s.created_at AS session_created_at, s.expires_at AS session_expires_at,
                x.expires_at AS secret_expires_at
                FROM session_secrets x JOIN sessions s ON s.id = x.session_id JOIN users u ON u.id = s.user_id
                WHERE x.digest = :digest""",
            digest=digest,
        )
        return None if row is None else _found_secret(row)

    async def list_alive(self, user_id: str, now: float, *, idle_since: float, limit: int) -> list[Session]:
        """Return sessions that have a secret which still opens something, `limit` at most, the one used last first.

        idle_since: one with a cookie that was not used since then is over.
        """
        return await fetch_as(
            self.database,
            Session,
            """SELECT * FROM sessions s WHERE user_id = :user AND expires_at > :now
                AND (kind <> 'cookie' OR last_seen_at > :idle_since)
                AND EXISTS (SELECT 1 FROM session_secrets x
                    WHERE x.session_id = s.id AND x.expires_at > :now AND x.used_at IS NULL)
                ORDER BY last_seen_at DESC, id LIMIT :limit""",
            user=user_id,
            limit=limit,
            now=now,
            idle_since=idle_since,
        )

    async def get(self, session_id: str) -> Session | None:
        return await fetch_one_as(self.database, Session, "SELECT * FROM sessions WHERE id = :id", id=session_id)

    def insert_session(self, session: Session) -> Statement:
        return insert_row("sessions", session)

    def insert_secret(self, secret: SessionSecret) -> Statement:
        return insert_row("session_secrets", secret)

    def use_refresh_token(self, digest: str, now: float) -> Statement:
        """Mark a refresh token as used; `Stale` if it was used before or its session is revoked."""
        return Statement(
            sql="""UPDATE session_secrets SET used_at = :now WHERE digest = :digest AND used_at IS NULL
                AND EXISTS (SELECT 1 FROM sessions s WHERE s.id = session_secrets.session_id)""",
            params={"digest": digest, "now": now},
            must_change=True,
        )

    def delete_access_tokens(self, session_id: str, *, but: str) -> Statement:
        """Delete the access tokens of a session but one, given as its digest."""
        return Statement(
            sql="DELETE FROM session_secrets WHERE session_id = :id AND kind = 'access' AND digest <> :but",
            params={"id": session_id, "but": but},
        )

    def delete_session(self, session_id: str, user_id: str) -> list[Statement]:
        """Delete one session of a user with its secrets."""
        return self._delete("id = :id AND user_id = :user", {"id": session_id, "user": user_id})

    def delete_of_user(self, user_id: str, *, but: str = "") -> list[Statement]:
        """Delete all sessions of a user but one."""
        return self._delete("user_id = :user AND id <> :but", {"user": user_id, "but": but})

    async def delete_expired(self, now: float, limit: int) -> int:
        """Delete sessions and secrets that are over, `limit` of each at most; return the larger number."""
        outcomes = await self.database.transact(
            Statement(
                sql="""DELETE FROM session_secrets WHERE digest IN (SELECT digest FROM session_secrets
                    WHERE expires_at <= :now ORDER BY expires_at LIMIT :limit)""",
                params={"now": now, "limit": limit},
            ),
            Statement(
                sql="""DELETE FROM sessions WHERE id IN (SELECT id FROM sessions
                    WHERE expires_at <= :now ORDER BY expires_at LIMIT :limit)""",
                params={"now": now, "limit": limit},
            ),
        )
        return max(outcome.count for outcome in outcomes)

    def _delete(self, which: str, params: Mapping[str, str]) -> list[Statement]:
        """Delete sessions. Secrets without a session, left by a refresh at the same moment, open nothing."""
        return [
            Statement(
                sql=f"DELETE FROM session_secrets WHERE session_id IN (SELECT id FROM sessions WHERE {which})",
                params=params,
            ),
            Statement(sql=f"DELETE FROM sessions WHERE {which}", params=params),
        ]


def _found_secret(row: Row) -> FoundSecret:
    session = {**row, "id": row["session_id"], "kind": row["session_kind"], "created_at": row["session_created_at"]}
    return FoundSecret(
        secret=from_row(SessionSecret, {**row, "expires_at": row["secret_expires_at"]}),
        session=from_row(Session, {**session, "expires_at": row["session_expires_at"]}),
        user=from_row(User, row),
    )
