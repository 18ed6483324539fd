"""Users: registration, and what admins and operators do with accounts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from broker.accounts.names import UserName, lookup_key, parse_email, parse_name
from broker.accounts.passwords import PasswordHasher, check_new_password
from broker.accounts.quotas import QuotaLimit, merge_quota
from broker.accounts.throttle import LoginClient, LoginThrottle
from broker.clock import Clock
from broker.errors import ApiError
from broker.logs import log
from storage.accounts.api_keys import ApiKeys
from storage.accounts.login_attempts import LoginClients
from storage.accounts.sessions import Sessions
from storage.accounts.users import User, Users
from storage.errors import Stale
from storage.ids import new_user_id
from storage.sql.database import Database, Statement


@dataclass(frozen=True, kw_only=True)
class UserChanges:
    """Changes of a user by an admin or the operator; None leaves a value as it is."""

    is_admin: bool | None = None
    is_disabled: bool | None = None
    must_change_password: bool | None = None
    """The user can do nothing but change the password."""
    password: str | None = field(default=None, repr=False)
    email: str | None = None
    """Empty: none."""
    quota: Mapping[str, QuotaLimit | None] | None = None
    """By names of `QUOTA_NAMES`; None as a limit restores a default."""

    def plain_values(self) -> dict[str, Any]:
        """Return the columns that are set as they are."""
        values: dict[str, Any] = {
            "is_admin": self.is_admin,
            "is_disabled": self.is_disabled,
            "must_change_password": self.must_change_password,
        }
        changed = {name: value for name, value in values.items() if value is not None}
        return changed if self.email is None else {**changed, "email": parse_email(self.email)}


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
            raise _no_such_user()
        return user

    async def find_by_name(self, name: str) -> User | None:
        return await self.users.get_by_name(lookup_key(name))

    async def get_by_name(self, name: str) -> User:
        """Return the user of a name. Raises `ApiError("not_found")`."""
        user = await self.find_by_name(name)
        if user is None:
            raise ApiError("not_found", "No user has this name: `broker users list` shows them.")
        return user

    async def list_page(self, *, before: tuple[float, str] | None, limit: int) -> list[User]:
        """Return one page, the newest first. before: moment and id of the last user of the page before."""
        return await self.users.list_page(before=before, limit=limit)

    # -- changing

    async def change(self, user_id: str, changes: UserChanges) -> User:
        """Change a user by an admin or the operator, all or nothing; return the user afterwards.

        A new password, new rights, and disabling end all sessions; API keys of a disabled user are refused, too.
        Raises `ApiError`: not_found, or invalid_request for an unfit password or quota.
        """
        user, values = await self.get(user_id), changes.plain_values()
        statements: list[Statement] = []
        if changes.password is not None:
            check_new_password(changes.password, user.name)
            values["password_hash"] = await self.hasher.hash(changes.password)
            statements.append(self.clients.delete_of_user(user_id))
        if changes.quota is not None:
            values["quota"] = merge_quota(user.quota, changes.quota)
        if changes.password is not None or changes.is_disabled or changes.is_admin not in {None, user.is_admin}:
            statements += self.sessions.delete_of_user(user_id)
        try:
            await self.database.transact(self.users.update_user(user_id, self.clock.now(), **values), *statements)
        except Stale:
            raise _no_such_user() from None
        log.info("a user was changed", action="user_changed", user=user_id, changed=sorted(values))
        return await self.get(user_id)

    # -- deleting

    def delete_account(self, owner: str) -> list[Statement]:
        """Return the statements that end an account, of a user or of an API key without one: no login and no key works.

        What the account has made, and the provider keys that its running jobs need, are deleted after it.
        """
        return [
            self.users.delete_user(owner),  # first: a login at the same moment then ends before or fails
            *self.sessions.delete_of_user(owner),
            self.clients.delete_of_user(owner),
            self.api_keys.delete_of_owner(owner),
        ]


def _no_such_user() -> ApiError:
    return ApiError("not_found", "There is no such user: GET /api/users lists them.")


def _name_taken() -> ApiError:
    return ApiError("conflict", "This user name is taken: choose another.", field="username", message_key="name_taken")
