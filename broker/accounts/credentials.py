"""Credentials: the principal that a session cookie, an access token or an API key stands for."""

from __future__ import annotations

import math
from collections.abc import Coroutine
from dataclasses import dataclass, field
from typing import Any, Final

from broker.accounts.secret_texts import digest_of, has_use
from broker.clock import Clock
from broker.errors import ApiError
from broker.logs import log
from broker.principal import Principal
from storage.accounts.api_keys import ApiKeys
from storage.accounts.sessions import FoundSecret, SecretKind, Sessions
from storage.accounts.users import User, Users
from storage.errors import StorageError

IDLE_SECONDS: Final = 86_400.0
"""A session with a cookie ends when it was not used for so long."""
TOUCH_SECONDS: Final = 60.0
"""Pause between two writes of the time of the last use."""


@dataclass(kw_only=True)
class Credentials:
    """Looks secrets up."""

    clock: Clock
    users: Users
    sessions: Sessions
    api_keys: ApiKeys
    admin_sees_content: bool
    _untouched_until: float = field(init=False, default=-math.inf)
    """After a failed write of a last use; a full disk gets one try a minute, not one per request."""

    async def find_by_bearer(self, secret: str) -> Principal | None:
        """Return the principal of an API key or of an access token; None for any other text.

        Raises `ApiError("unauthorized")` if the account is disabled.
        """
        if has_use(secret, "api_key"):
            return await self._find_api_key(secret)
        return await self._find_session(secret, "access") if has_use(secret, "access") else None

    async def find_by_cookie(self, secret: str) -> Principal | None:
        """Return the principal of a session cookie; raises like `find_by_bearer`."""
        return await self._find_session(secret, "cookie") if has_use(secret, "cookie") else None

    async def has_users(self) -> bool:
        """Return whether a user exists: then nothing is open to everyone."""
        return await self.users.has_any()

    def has_accounts(self) -> Coroutine[Any, Any, bool]:
        """Return whether a user or an API key exists: then no call is trusted without a secret."""
        return self.users.has_any_account()

    async def _find_session(self, secret: str, kind: SecretKind) -> Principal | None:
        found = await self.sessions.find_secret(digest_of(secret))
        if found is None or found.secret.kind != kind or self._is_over(found):
            return None
        principal = self._principal_of(found.user, session_id=found.session.id)
        session, now = found.session, self.clock.now()
        if now - session.last_seen_at >= TOUCH_SECONDS:
            await self._touch("sessions", "last_seen_at", session.id, now)
        return principal

    def _is_over(self, found: FoundSecret) -> bool:
        now = self.clock.now()
        is_idle = found.secret.kind == "cookie" and now >= found.session.last_seen_at + IDLE_SECONDS
        return is_idle or now >= min(found.secret.expires_at, found.session.expires_at)

    async def _find_api_key(self, secret: str) -> Principal | None:
        found = await self.api_keys.find_by_digest(digest_of(secret))
        if found is None:
            return None
        key, user = found
        now = self.clock.now()
        if key.expires_at is not None and now >= key.expires_at:
            return None
        if user is None and key.owner != key.id:
            return None  # its user was deleted
        principal = self._principal_of(user) if user else Principal(owner=key.id, is_admin=False, name=key.name)
        if now - (key.last_used_at or 0.0) >= TOUCH_SECONDS:
            await self._touch("api_keys", "last_used_at", key.id, now)
        return principal

    def _principal_of(self, user: User, *, session_id: str | None = None) -> Principal:
        if user.is_disabled:
            raise ApiError("unauthorized", "This account is disabled. Ask the operator of this broker.")
        return Principal(
            owner=user.id,
            is_admin=user.is_admin,
            name=user.name,
            session_id=session_id,
            must_change_password=user.must_change_password,
            sees_content=user.is_admin and self.admin_sees_content,
        )

    async def _touch(self, table: str, column: str, row_id: str, now: float) -> None:
        """Write the time of the last use, unless it was just written. A failure keeps nobody out."""
        if now < self._untouched_until:
            return
        try:
            await self.users.database.execute(
                f"""UPDATE {table} SET {column} = :now
                    WHERE id = :id AND ({column} IS NULL OR {column} <= :before)""",
                now=now,
                id=row_id,
                before=now - TOUCH_SECONDS,
            )
        except StorageError as error:
            self._untouched_until = now + TOUCH_SECONDS
            log.warning("the time of the last use was not written", action="last_use_not_written", why=str(error))
