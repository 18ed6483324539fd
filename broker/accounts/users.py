"""Users: registration, and what admins and operators do with accounts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal

from broker.accounts.names import UserName, lookup_key, parse_email, parse_name
from broker.accounts.passwords import PasswordHasher, check_new_password
from broker.accounts.throttle import LoginClient, LoginThrottle
from broker.clock import Clock
from broker.errors import ApiError
from broker.logs import log
from storage.accounts.api_keys import ApiKeys
from storage.accounts.login_attempts import LoginClients
from storage.accounts.sessions import Sessions
from storage.accounts.users import User, Users
from storage.ids import new_user_id
from storage.sql.database import Database, Stale, Statement

QUOTA_NAMES: Final = ("images", "usd", "in_flight", "pins", "bytes")
"""What `User.quota` may limit. A number, or "unlimited"; an absent name has the default of the settings."""


@dataclass(frozen=True, kw_only=True)
class UserService:
    """Creates, changes and deletes users."""

    clock: Clock
    database: Database
    users: Users
    sessions: Sessions
    api_keys: ApiKeys
    clients: LoginClients
    hasher: PasswordHasher
    throttle: LoginThrottle
    registration: Literal["closed", "open"]

    # -- creating

    async def register(self, name: str, password: str, *, email: str | None = None, client: LoginClient) -> User:
        """Create a user who is no admin. Raises `ApiError`.

        forbidden: BROKER_REGISTRATION is closed. rate_limited. invalid_request: the name, password or address.
        conflict: the name is taken.
        """
        if self.registration != "open":
            raise ApiError(
                "forbidden",
                "Registration is closed: ask the operator of this broker for an account (`broker users add NAME`, or "
                "BROKER_REGISTRATION=open).",
                message_key="registration_closed",
            )
        parsed, address = parse_name(name), parse_email(email)
        check_new_password(password, parsed.shown)
        await self.throttle.acquire_registration(client)
        return await self._insert(parsed, password, email=address)

    async def add(
        self,
        name: str,
        password: str,
        *,
        email: str | None = None,
        is_admin: bool = False,
        must_change_password: bool = False,
    ) -> User:
        """Create a user by an admin or the operator. Raises `ApiError`: invalid_request, or conflict if it exists."""
        parsed, address = parse_name(name), parse_email(email)
        check_new_password(password, parsed.shown)
        return await self._insert(
            parsed, password, email=address, is_admin=is_admin, must_change_password=must_change_password
        )

    async def _insert(self, name: UserName, password: str, **values: Any) -> User:
        if await self.users.get_by_name(name.key) is not None:
            raise _name_taken()
        now = self.clock.now()
        user = User(
            id=new_user_id(),
            name=name.shown,
            name_key=name.key,
            password_hash=await self.hasher.hash(password),
            created_at=now,
            updated_at=now,
            **values,
        )
        try:
            await self.database.transact(self.users.insert_user(user))
        except Stale:
            if await self.users.get(user.id) is None:  # else it is the second run of a committed transaction
                raise _name_taken() from None
        log.info("a user was created", action="user_created", user=user.id, is_admin=user.is_admin)
        return user

    # -- finding

    async def get(self, user_id: str) -> User:
        """Return a user. Raises `ApiError("not_found")`."""
        user = await self.users.get(user_id)
        if user is None:
            raise ApiError("not_found", "There is no such user: GET /api/users lists them.")
        return user

    async def get_by_name(self, name: str) -> User:
        """Return the user of a name. Raises `ApiError("not_found")`."""
        user = await self.users.get_by_name(lookup_key(name))
        if user is None:
            raise ApiError("not_found", "No user has this name: `broker users list` shows them.")
        return user

    async def list_all(self) -> list[User]:
        return await self.users.list_by_name()

    # -- changing

    async def disable(self, user_id: str) -> None:
        """Refuse all logins, sessions and API keys of a user from now on."""
        await self._change(user_id, *self.sessions.delete_of_user(user_id), is_disabled=True)

    async def enable(self, user_id: str) -> None:
        """Let a disabled user log in again; API keys work again, sessions do not."""
        await self._change(user_id, is_disabled=False)

    async def set_admin(self, user_id: str, *, is_admin: bool) -> None:
        """Change the rights of a user, and end all sessions that began with the old ones."""
        await self._change(user_id, *self.sessions.delete_of_user(user_id), is_admin=is_admin)

    async def set_password(self, user_id: str, password: str, *, must_change: bool = True) -> None:
        """Set a password by an admin or the operator, and end all sessions. Raises `ApiError`."""
        user = await self.get(user_id)
        check_new_password(password, user.name)
        password_hash = await self.hasher.hash(password)
        await self._change(
            user_id,
            *self.sessions.delete_of_user(user_id),
            self.clients.delete_of_user(user_id),
            password_hash=password_hash,
            must_change_password=must_change,
        )

    async def set_must_change_password(self, user_id: str, *, must_change: bool) -> None:
        """Let a user do nothing but change the password, or end that."""
        await self._change(user_id, must_change_password=must_change)

    async def set_quota(self, user_id: str, changes: Mapping[str, float | str | None]) -> None:
        """Change limits of a user, by names of `QUOTA_NAMES`; None restores a default."""
        unknown = set(changes) - set(QUOTA_NAMES)
        if unknown:
            raise ApiError("invalid_request", f"Quotas are {', '.join(QUOTA_NAMES)}.", field="quota")
        quota = {**(await self.get(user_id)).quota, **changes}
        await self._change(user_id, quota={name: value for name, value in quota.items() if value is not None})

    async def _change(self, user_id: str, *statements: Statement, **changes: Any) -> None:
        try:
            await self.database.transact(self.users.update_user(user_id, self.clock.now(), **changes), *statements)
        except Stale:
            raise ApiError("not_found", "There is no such user: GET /api/users lists them.") from None
        log.info("a user was changed", action="user_changed", user=user_id, changed=sorted(changes))

    # -- deleting

    async def delete(self, user_id: str) -> None:
        """Delete an account: the user, sessions, known clients and API keys. Raises `ApiError("not_found")`.

        What the user has made is not deleted here.
        """
        await self.get(user_id)
        await self.database.transact(*self.delete_account(user_id))
        log.info("a user was deleted", action="user_deleted", user=user_id)

    def delete_account(self, user_id: str) -> list[Statement]:
        """Return the statements that delete an account, for one transaction with others about its data."""
        return [
            self.users.delete_user(user_id),  # first: a login at the same moment then ends before or fails
            *self.sessions.delete_of_user(user_id),
            self.clients.delete_of_user(user_id),
            self.api_keys.delete_of_owner(user_id),
        ]


def _name_taken() -> ApiError:
    return ApiError("conflict", "This user name is taken: choose another.", field="username", message_key="name_taken")
