"""Users of tests, with an API key each and without a password, because a password takes time."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from broker.accounts.secret_texts import digest_of, new_secret
from broker.services import Services
from storage.accounts.api_keys import ApiKey
from storage.accounts.users import User
from storage.ids import new_api_key_id, new_user_id


@dataclass(frozen=True, kw_only=True)
class KeyHolder:
    """The owner of an API key. headers: of its requests."""

    owner: str
    headers: dict[str, str]


async def add_key_holder(services: Services, *, name: str = "ann", is_user: bool = True, **quota: Any) -> KeyHolder:
    """Add a user with an API key, or a key without a user. quota: of the user."""
    now, key_id, secret = services.clock.now(), new_api_key_id(), new_secret("api_key")
    owner = new_user_id() if is_user else key_id
    key = ApiKey(
        id=key_id, digest=digest_of(secret), prefix=secret[:8], name=f"key of {name}", owner=owner, created_at=now
    )
    statements = [services.tables.api_keys.insert_key(key)]
    if is_user:
        user = User(
            id=owner, name=name, name_key=name, password_hash="none", quota=quota, created_at=now, updated_at=now
        )
        statements.append(services.tables.users.insert_user(user))
    await services.database.transact(*statements)
    return KeyHolder(owner=owner, headers={"authorization": f"Bearer {secret}"})


async def set_quota(services: Services, holder: KeyHolder, **quota: Any) -> None:
    """Set the whole quota of a user, as an admin does."""
    change = services.tables.users.update_user(holder.owner, services.clock.now(), quota=quota)
    await services.database.transact(change)
