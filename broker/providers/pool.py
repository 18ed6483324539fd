"""The keys of one provider: an adapter for each, of which an order uses one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from broker.providers.base import Provider


@dataclass(frozen=True, kw_only=True)
class ProviderPool:
    """One configured provider with an adapter per key."""

    name: str
    accounts: Mapping[str, Provider]
    """By key id, the preferred one first; at least one."""

    @property
    def preferred(self) -> Provider:
        """The first account, for everything that needs no particular key."""
        return next(iter(self.accounts.values()))

    def bound_to(self, key_id: str) -> Provider:
        """Return the account of an attempt.

        For a key that is no longer configured it is the first one: a new key of the same account reads its jobs too.
        """
        return self.accounts.get(key_id, self.preferred)
