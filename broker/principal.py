"""The sender of a request, however it was authenticated."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

from storage.ids import HOUSE_PREFIX, USER_ID
from storage.sql.scope import EVERYTHING, HOUSE, Scope, is_private


@dataclass(frozen=True, kw_only=True)
class Principal:
    """The sender of a request: the one result of a key, an API key, a session, a token, or a trusted call."""

    owner: str
    """Owns what the request creates; stable, and not a secret: `house:…`, the id of a user, or that of an API key."""
    is_admin: bool
    name: str
    """The name of a user or key, for people."""
    session_id: str | None = None
    """Of a login; None for keys and trusted calls."""
    must_change_password: bool = False
    sees_content: bool = False
    """An admin who reads prompts and images of others (BROKER_ADMIN_SEES_CONTENT)."""

    @property
    def user_id(self) -> str | None:
        """The user's id; None for the operator and for an API key without a user."""
        return self.owner if USER_ID.fullmatch(self.owner) else None

    @property
    def is_operator(self) -> bool:
        """Return whether it is the operator, by a configured key, a direct call, or anonymous access."""
        return self.owner.startswith(HOUSE_PREFIX)

    @property
    def scope(self) -> Scope:
        """Return the scope of the tasks, images and conversations that it sees and changes."""
        return EVERYTHING if self.sees_content else self.own_scope

    @property
    def own_scope(self) -> Scope:
        """Return the scope of its own objects; for the operator, of those of all configured keys and trusted calls."""
        return HOUSE if self.is_operator else Scope(owner=self.owner)

    def may_read(self, owner: str) -> bool:
        """Return whether it may read the prompts, images and ids of an owner's tasks: its own, for an admin the
        operator's, and everyone's by setting.
        """
        return self.sees_content or owner == self.owner or (self.is_admin and not is_private(owner))

    @property
    def oversight(self) -> Scope:
        """Return the scope of the tasks that it may cancel, delete, and list without content: for an admin all."""
        return EVERYTHING if self.is_admin else self.scope


@lru_cache(maxsize=64)  # by every request of the operator
def house_principal(name: str, *, sees_content: bool) -> Principal:
    """Return the principal of the operator: a configured key, a direct call, or anonymous access."""
    return Principal(owner=f"{HOUSE_PREFIX}{name}", is_admin=True, name=name, sees_content=sees_content)
