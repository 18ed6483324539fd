"""API keys: made, listed and revoked. `credentials.py` accepts them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from broker.accounts.secret_texts import digest_of, new_secret
from broker.clock import Clock
from broker.errors import ApiError
from broker.logs import log
from storage.accounts.api_keys import ApiKey, ApiKeys, ListedKey
from storage.accounts.users import User
from storage.errors import Stale
from storage.ids import API_KEY_ID, new_api_key_id
from storage.sql.database import Database
from storage.sql.scope import EVERYTHING, Scope

MAX_NAME_CHARS: Final = 64
MAX_EXPIRY_DAYS: Final = 3650
MAX_KEYS_PER_USER: Final = 100
PREFIX_CHARS: Final = 10
"""Shown of a key: the prefix of its kind, and six of its 43 random characters."""
_DAY_SECONDS: Final = 86_400.0


@dataclass(frozen=True, kw_only=True)
class NewApiKey:
    """A key that was just made, and its secret, which is stored nowhere."""

    listed: ListedKey
    secret: str


@dataclass(frozen=True, kw_only=True)
class ApiKeyService:
    """Makes, lists and revokes keys."""

    clock: Clock
    database: Database
    api_keys: ApiKeys
    max_per_user: int = MAX_KEYS_PER_USER

    async def add(self, name: str, *, user: User | None, expires_days: int | None = None) -> NewApiKey:
        """Make a key with the rights of a user; without one, the key is an owner itself, with no other rights.

        Raises `ApiError`: invalid_request for the name, conflict if it is taken or the user has `max_per_user`.
        """
        secret, key_id, now = new_secret("api_key"), new_api_key_id(), self.clock.now()
        key = ApiKey(
            id=key_id,
            digest=digest_of(secret),
            prefix=secret[:PREFIX_CHARS],
            name=parse_key_name(name),
            owner=user.id if user else key_id,
            created_at=now,
            expires_at=None if expires_days is None else now + expires_days * _DAY_SECONDS,
        )
        checks = self.api_keys.check_user(user.id, limit=self.max_per_user) if user else []
        try:
            await self.database.transact(*checks, self.api_keys.insert_key(key))
        except Stale:
            if not await self.api_keys.find(key.id, EVERYTHING):  # else: the second run of a committed transaction
                raise await self._refusal(key) from None
        log.info("an API key was made", action="api_key_added", api_key_id=key.id, owner=key.owner)
        return NewApiKey(listed=ListedKey(key=key, owner_name=user.name if user else None), secret=secret)

    async def _refusal(self, key: ApiKey) -> ApiError:
        same_name = await self.api_keys.find(key.name, EVERYTHING)
        if any(_user_of(one.key) == _user_of(key) for one in same_name):
            return ApiError("conflict", f"There is a key with the name {key.name} already.", field="name")
        return ApiError(
            "conflict", f"A user has at most {self.max_per_user} keys, and must exist: revoke one first.", field="owner"
        )

    async def list_newest(self, scope: Scope, *, limit: int, before: tuple[float, str] | None) -> Sequence[ListedKey]:
        """Return one page, newest first, with expired ones; before: as in `ApiKeys.list_newest`."""
        return await self.api_keys.list_newest(scope, limit=limit, before=before)

    async def find_one(self, name: str, scope: Scope) -> ListedKey:
        """Return a key by its id or name.

        Raises `ApiError`: not_found, or conflict if several owners have a key of this name.
        """
        found = await self.api_keys.find(name, scope)
        if len(found) > 1:
            ids = ", ".join(one.key.id for one in found)
            raise ApiError("conflict", f"Several keys have this name: revoke one by its id ({ids}).")
        if not found:
            raise _no_such_key()
        return found[0]

    async def revoke(self, name: str, scope: Scope) -> ListedKey:
        """Delete a key, by its id or name, and return it; from now on it opens nothing.

        What it has made remains. Raises `ApiError` like `find_one`.
        """
        found = await self.find_one(name, scope)
        if not await self.api_keys.delete(found.key.id, scope):
            raise _no_such_key()
        log.info("an API key was revoked", action="api_key_revoked", api_key_id=found.key.id, owner=found.key.owner)
        return found


def _no_such_key() -> ApiError:
    return ApiError("not_found", "There is no API key with this id or name.")


def parse_key_name(text: str) -> str:
    """Return a name without blanks around it. Raises `ApiError("invalid_request")`.

    It may not look like an id or hold a slash, because keys are revoked by id or name.
    """
    name = text.strip()
    if not 1 <= len(name) <= MAX_NAME_CHARS or not name.isprintable() or "/" in name or API_KEY_ID.fullmatch(name):
        raise ApiError(
            "invalid_request",
            f"The name of a key has 1 to {MAX_NAME_CHARS} visible characters, no slash, and is not an id.",
            field="name",
        )
    return name


def _user_of(key: ApiKey) -> str | None:
    return None if key.owner == key.id else key.owner
