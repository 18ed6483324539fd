"""The keys of one account at a provider: an adapter for each, of which an order uses one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from broker.providers.base import Provider


@dataclass(frozen=True, kw_only=True)
class ProviderPool:
    """One configured provider, or the account of a user at one, with an adapter per key."""

    name: str
    """As in tasks and attempts."""
    accounts: Mapping[str, Provider]
    """By key id, the preferred one first; at least one for a configured provider."""
    retired: Mapping[str, Provider] = field(default_factory=dict)
    """Keys with which nothing more is submitted, for the jobs that they have started."""
    is_removed: bool = False
    """No key is there any more but retired ones."""

    @property
    def preferred(self) -> Provider:
        """The first account, for everything that needs no particular key. Raises StopIteration if there is none."""
        return next(iter(self.accounts.values()))

    def bound_to(self, key_id: str) -> Provider | None:
        """Return the account of an attempt.

        For a key that is no longer known it is the first one: a new key of the same account reads its jobs too. None
        if there is no key at all.
        """
        known = {**self.retired, **self.accounts}
        return known.get(key_id) or next(iter([*self.accounts.values(), *self.retired.values()]), None)
