"""Logins: a password becomes a session with a cookie or with tokens; and what ends sessions.

Secrets are random, stored as digests, and belong to a session. A login never takes a secret over that the client
already had. A change of the password or of the rights ends all sessions of the user.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

from broker.accounts.credentials import IDLE_SECONDS
from broker.accounts.names import MAX_EMAIL_CHARS, lookup_key
from broker.accounts.passwords import PasswordHasher, check_changed_password, check_new_password, is_too_long
from broker.accounts.secret_texts import digest_of, has_use, new_secret
from broker.accounts.throttle import LoginAdmission, LoginClient, LoginThrottle
from broker.clock import Clock
from broker.errors import ApiError
from broker.logs import log
from broker.metrics import Metrics
from storage.accounts.sessions import FoundSecret, SecretKind, Session, SessionKind, Sessions, SessionSecret
from storage.accounts.users import User, Users
from storage.errors import Stale
from storage.ids import new_session_id
from storage.sql.database import Database, Statement

SESSION_SECONDS: Final = 30 * 86_400.0
"""A session ends after so long, however much it is used."""
MAX_AGENT_CHARS: Final = 200
MAX_LISTED_SESSIONS: Final = 200
"""A program may log in thousands of times a day."""


@dataclass(frozen=True, kw_only=True)
class TokenTimes:
    """Validity of tokens, in seconds."""

    access: float
    """ACCESS_TOKEN_EXPIRE_MINUTES."""
    refresh: float
    """REFRESH_TOKEN_EXPIRE_DAYS."""


@dataclass(frozen=True, kw_only=True)
class TokenPair:
    """The secrets of a session of a program. They are printed nowhere."""

    access: str
    refresh: str
    expires_in: float
    """Seconds that the access token is valid."""

    def __repr__(self) -> str:
        return f"TokenPair(expires_in={self.expires_in})"


@dataclass(frozen=True, kw_only=True)
class Login:
    """A session that has begun. Either `cookie` or `tokens` is given."""

    user: User
    session: Session
    cookie: str = ""
    tokens: TokenPair | None = None
    device: str = ""
    """Secret for the device cookie; empty if the device has one."""

    def __repr__(self) -> str:
        return f"Login(user={self.user.id}, session={self.session.id})"


@dataclass(frozen=True, kw_only=True)
class LoginService:
    """Begins and ends sessions."""

    clock: Clock
    database: Database
    users: Users
    sessions: Sessions
    hasher: PasswordHasher
    throttle: LoginThrottle
    times: TokenTimes
    metrics: Metrics
    max_listed: int = MAX_LISTED_SESSIONS

    # -- beginning

    async def log_in_with_cookie(self, name: str, password: str, client: LoginClient) -> Login:
        """Return a new session with a cookie. name: of a user, or the e-mail address.

        Raises `ApiError`: rate_limited before the password is looked at; unauthorized, in the same words and after the
        same work, for a wrong password and for a name that no user has.
        """
        return await self._log_in("cookie", name, password, client)

    async def log_in_with_tokens(self, name: str, password: str, client: LoginClient) -> Login:
        """Return a new session with an access and a refresh token; raises like `log_in_with_cookie`."""
        return await self._log_in("tokens", name, password, client)

    async def begin_session(self, kind: SessionKind, user: User, client: LoginClient) -> Login:
        """Return a session of a user who has just registered."""
        login, statements = self._new_session(kind, user, client, is_known_device=False)
        return await self._store_login(login, statements, client, password_hash=user.password_hash)

    async def refresh(self, refresh_token: str) -> Login:
        """Exchange a refresh token for new tokens; the old access token ends.

        Using one again, also at the same moment, revokes the session: the token may have been stolen. Raises
        `ApiError("unauthorized")`.
        """
        digest = digest_of(refresh_token)
        found = await self.sessions.find_secret(digest) if has_use(refresh_token, "refresh") else None
        if found is None or found.secret.kind != "refresh" or found.user.is_disabled:
            raise _token_refused()
        now = self.clock.now()
        if now >= min(found.secret.expires_at, found.session.expires_at):
            raise _token_refused()
        if found.secret.used_at is not None:
            await self._revoke_family(found)
            raise _token_refused()
        tokens, secrets = self._new_tokens(found.session)
        try:
            await self.database.transact(  # the new secrets first: a second run of a committed one must fail there
                *map(self.sessions.insert_secret, secrets),
                self.sessions.use_refresh_token(digest, now),
                self.sessions.delete_access_tokens(found.session.id, but=digest_of(tokens.access)),
            )
        except Stale:
            await self._revoke_family(found)
            raise _token_refused() from None
        return Login(user=found.user, session=found.session, tokens=tokens)

    # -- ending

    async def log_out(self, session_id: str) -> None:
        if (session := await self.sessions.get(session_id)) is not None:
            await self.database.transact(*self.sessions.delete_session(session.id, session.user_id))

    async def list_sessions(self, user_id: str) -> list[Session]:
        """Return sessions that are not over, `max_listed` at most, the one used last first."""
        now = self.clock.now()
        return await self.sessions.list_alive(user_id, now, idle_since=now - IDLE_SECONDS, limit=self.max_listed)

    async def revoke(self, user_id: str, session_id: str) -> None:
        """End one session of a user. Raises `ApiError("not_found")` if it is none of the user's."""
        *_, deleted = await self.database.transact(*self.sessions.delete_session(session_id, user_id))
        if not deleted.count:
            raise ApiError("not_found", "There is no such session: GET /api/me/sessions lists yours.")

    async def revoke_all(self, user_id: str, *, but: str | None = None) -> int:
        """End all sessions of a user but one; return how many."""
        *_, deleted = await self.database.transact(*self.sessions.delete_of_user(user_id, but=but or ""))
        return deleted.count

    # -- passwords of logged-in users

    async def confirm_password(self, user_id: str, session_id: str | None, password: str) -> User:
        """Return the user if the password is right, before something that needs it again.

        Raises `ApiError`: rate_limited, or forbidden for a wrong password.
        """
        user = await self.users.get(user_id)
        if user is None:
            raise ApiError("not_found", "This account is gone.")
        admission = await self.throttle.acquire_confirmation(user_id, session_id or "key")
        if not await self._verify(user, password):
            raise ApiError("forbidden", "The password is wrong.", field="password", message_key="password_wrong")
        await self.database.transact(*self.throttle.end_series(admission))
        return user

    async def change_password(
        self, user_id: str, session_id: str | None, old: str, new: str, client: LoginClient
    ) -> Login | None:
        """Change a password and end all sessions of the user; return the one that replaces the caller's, if it has one.

        Raises `ApiError`: rate_limited, forbidden for a wrong old password, invalid_request for an unfit new one, or
        conflict if the password was changed at the same moment.
        """
        session = await self.sessions.get(session_id) if session_id else None
        user = await self.confirm_password(user_id, session_id, old)
        check_new_password(new, user.name)
        check_changed_password(new, old)
        now, password_hash = self.clock.now(), await self.hasher.hash(new)
        changed = replace(user, password_hash=password_hash, must_change_password=False)
        login, statements, remembered = None, list[Statement](), list[Statement]()
        if session is not None:
            login, statements = self._new_session(session.kind, changed, client, is_known_device=False)
            remembered = self.throttle.remember(user_id, client, login.device or None)
        try:
            await self.database.transact(  # the session first: a second run of a committed one must fail there
                *statements,
                self.users.change_password(user, now, password_hash=password_hash),
                *self.sessions.delete_of_user(user_id, but=login.session.id if login else ""),
                self.throttle.clients.delete_of_user(user_id),
                *remembered,
            )
        except Stale:
            raise ApiError("conflict", "The password was changed by another request: log in again.") from None
        log.info("a user changed the password", action="password_changed", user=user_id)
        return login

    # -- steps

    async def _log_in(self, kind: SessionKind, name: str, password: str, client: LoginClient) -> Login:
        user = await self._find_user(name)
        admission = await self._admit(lookup_key(name), client, user)  # as it was typed: no address tells its account
        is_right = await self._verify(user, password)
        if user is None or not is_right:
            self.metrics.logins.labels("wrong").inc()
            raise _login_refused()
        if user.is_disabled:
            self.metrics.logins.labels("disabled").inc()
            raise _account_disabled()
        fresh_hash = user.password_hash
        if self.hasher.needs_rehash(fresh_hash):
            fresh_hash = await self.hasher.hash(password)
        login, statements = self._new_session(kind, user, client, is_known_device=admission.is_known_device)
        device = client.device if admission.is_known_device else None
        more = [*self.throttle.end_series(admission), *self.throttle.remember(user.id, client, device)]
        return await self._store_login(login, statements, client, password_hash=fresh_hash, more=more)

    async def _find_user(self, name: str) -> User | None:
        """Return the user of a name or, if there is none, of an e-mail address.

        Anyone may register with an address of another. The name counts first, so that the own one always logs in; of
        accounts with the same address the oldest counts.
        """
        named = await self.users.get_by_name(lookup_key(name))
        if "@" not in name:
            return named
        addressed = await self.users.get_oldest_by_email(name.strip()[:MAX_EMAIL_CHARS])  # always: time must not tell
        return named or addressed

    async def _verify(self, user: User | None, password: str) -> bool:
        """Return whether a password is right; for an unknown user after the same work."""
        return not is_too_long(password) and await self.hasher.verify(user.password_hash if user else None, password)

    async def _admit(self, key: str, client: LoginClient, user: User | None) -> LoginAdmission:
        try:
            return await self.throttle.acquire(key, client, user.id if user else None)
        except ApiError:
            self.metrics.logins.labels("throttled").inc()
            raise

    async def _store_login(
        self,
        login: Login,
        statements: list[Statement],
        client: LoginClient,
        *,
        password_hash: str,
        more: Sequence[Statement] = (),
    ) -> Login:
        """Store a session, and end the one whose cookie the browser had. password_hash: the one to keep."""
        now, user = self.clock.now(), login.user
        replaced = await self._replaced_session(client)
        try:
            await self.database.transact(  # the session first: a second run of a committed one must fail there
                *statements,
                self.users.record_login(user, now, password_hash=password_hash),
                *replaced,
                *more,
                *self.throttle.remember(user.id, client, login.device or None),
            )
        except Stale:  # disabled, deleted, or another password since it was verified
            raise _login_refused() from None
        self.metrics.logins.labels("ok").inc()
        log.info("a user logged in", action="logged_in", user=user.id, session=login.session.id)
        return replace(login, user=replace(user, last_login_at=now))

    def _new_session(
        self, kind: SessionKind, user: User, client: LoginClient, *, is_known_device: bool
    ) -> tuple[Login, list[Statement]]:
        """Return a new session, and the statements that store it."""
        now = self.clock.now()
        session = Session(
            id=new_session_id(),
            user_id=user.id,
            kind=kind,
            client=client.agent[:MAX_AGENT_CHARS],
            address=client.address[:64],
            created_at=now,
            last_seen_at=now,
            expires_at=now + (SESSION_SECONDS if kind == "cookie" else max(SESSION_SECONDS, self.times.refresh)),
        )
        if kind == "tokens":
            tokens, secrets = self._new_tokens(session)
            login = Login(user=user, session=session, tokens=tokens)
        else:
            cookie, device = new_secret("cookie"), "" if is_known_device else new_secret("device")
            secrets = [_secret_row(cookie, "cookie", session, session.expires_at)]
            login = Login(user=user, session=session, cookie=cookie, device=device)
        return login, [self.sessions.insert_session(session), *map(self.sessions.insert_secret, secrets)]

    def _new_tokens(self, session: Session) -> tuple[TokenPair, list[SessionSecret]]:
        now = self.clock.now()
        pair = TokenPair(access=new_secret("access"), refresh=new_secret("refresh"), expires_in=self.times.access)
        return pair, [
            _secret_row(pair.access, "access", session, now + self.times.access),
            _secret_row(pair.refresh, "refresh", session, now + self.times.refresh),
        ]

    async def _replaced_session(self, client: LoginClient) -> list[Statement]:
        """Return the statements that end the session whose cookie the browser had before the login."""
        if client.cookie is None or not has_use(client.cookie, "cookie"):
            return []
        found = await self.sessions.find_secret(digest_of(client.cookie))
        return [] if found is None else self.sessions.delete_session(found.session.id, found.user.id)

    async def _revoke_family(self, found: FoundSecret) -> None:
        await self.database.transact(*self.sessions.delete_session(found.session.id, found.user.id))
        log.warning(
            "a refresh token was used twice: its session is revoked",
            action="refresh_token_reused",
            user=found.user.id,
            session=found.session.id,
        )


def _secret_row(secret: str, kind: SecretKind, session: Session, expires_at: float) -> SessionSecret:
    return SessionSecret(
        digest=digest_of(secret),
        session_id=session.id,
        kind=kind,
        expires_at=min(expires_at, session.expires_at),
    )


def _login_refused() -> ApiError:
    return ApiError("unauthorized", "The user name or the password is wrong.", message_key="login_refused")


def _account_disabled() -> ApiError:
    return ApiError(
        "unauthorized",
        "This account is disabled. Ask the operator of this broker.",
        message_key="account_disabled",
    )


def _token_refused() -> ApiError:
    return ApiError(
        "unauthorized", "This refresh token is used, expired or revoked: log in again.", message_key="token_refused"
    )
