"""Scopes: whose rows a query may return.

Every query for a caller takes one. It comes from `Principal.scope`, so a route that forgets to limit a query does not
type-check; the few that need no limit say so with `CAPABILITY` or `EVERYTHING`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from storage.ids import HOUSE_PREFIX


@dataclass(frozen=True, kw_only=True)
class Scope:
    """The owners whose rows are visible."""

    owner: str
    """One owner; a prefix that ends in `:`, for all owners that begin with it; or empty, for all."""

    def condition(self, column: str) -> str:
        """Return the SQL condition on a column of owners. Its parameters are `params`."""
        if not self.owner:
            return "1 = 1"
        return f"{column} LIKE :scope_owner" if self.owner.endswith(":") else f"{column} = :scope_owner"

    @property
    def params(self) -> dict[str, str]:
        if not self.owner:
            return {}
        return {"scope_owner": f"{self.owner}%" if self.owner.endswith(":") else self.owner}

    def includes(self, owner: str) -> bool:
        return owner == self.owner or not self.owner or (self.owner.endswith(":") and owner.startswith(self.owner))


EVERYTHING: Final = Scope(owner="")
"""For the operator and for the broker's own work."""
CAPABILITY: Final = Scope(owner="")
"""For public routes: the id, a secret of 128 bits, is the permission."""
HOUSE: Final = Scope(owner=HOUSE_PREFIX)
"""What the operator's own keys and calls have made."""


def is_private(owner: str) -> bool:
    """Return whether rows belong to a user or to an API key of its own, and not to the operator."""
    return not owner.startswith(HOUSE_PREFIX)
