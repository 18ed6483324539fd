"""The accounts that tasks are ordered with: pools of the operator's keys, and users' accounts with their own keys.

An account of a user is one more provider to the queue, the limits and the steps, named `<provider>@<number>`. Its pool
is opened from the sealed row on demand and kept for a moment, so a change in another process is seen within
`POOL_SECONDS`. Nothing depends on that: a submission is written only while its key is active in the database.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Final

from pydantic import SecretStr

from broker.accounts.provider_keys import KeyVault
from broker.clock import Clock
from broker.providers.base import Provider
from broker.providers.pool import ProviderPool
from broker.providers.registry import SANDBOX, ProviderRegistry
from storage.accounts.provider_keys import ProviderKey, ProviderKeys
from storage.ids import is_own_account, provider_of
from storage.sql.scope import is_private
from storage.tasks import Task

POOL_SECONDS: Final = 2.0
MAX_OPEN_POOLS: Final = 500
"""Accounts of users whose keys are in memory."""


@dataclass(frozen=True, kw_only=True)
class OpenedPool:
    """The pool of a user's account, and the rows that it was made of."""

    rows: Sequence[ProviderKey]
    pool: ProviderPool | None
    """None for an account that no longer exists."""
    secrets: tuple[str, ...] = field(repr=False)
    read_at: float
    """Monotonic time at which the rows were read."""


@dataclass(kw_only=True)
class ProviderAccounts:
    """Finds accounts by the names that tasks have."""

    clock: Clock
    keys: ProviderKeys
    vault: KeyVault
    registry: ProviderRegistry
    house: Mapping[str, ProviderPool]
    """The operator's, by provider, the preferred one first."""
    _opened: OrderedDict[str, OpenedPool] = field(default_factory=OrderedDict)

    @cached_property
    def _preferred(self) -> Mapping[str, Provider]:
        """The preferred key of each provider of the operator."""
        return {name: pool.preferred for name, pool in self.house.items()}

    async def find_pool(self, account: str) -> ProviderPool | None:
        """Return the pool of an account; None if it does not exist, or no longer.

        That of a user whose key does not open has no key at all.
        """
        if not is_own_account(account):
            return self.house.get(account)
        return (await self._open(account)).pool

    async def find_bound(self, task: Task) -> Provider | None:
        """Return the key with which the current attempt of a task was submitted, or else another of its account."""
        pool = await self.find_pool(task.provider)
        return None if pool is None else pool.bound_to(task.key_id)

    async def find_own(self, owner: str) -> Mapping[str, Provider]:
        """Return the accounts of an owner with which orders can be submitted, in the order of preference."""
        if not is_private(owner) or not await self.keys.has_active(owner):
            return {}
        found: dict[str, Provider] = {}
        for row in await self.keys.list_active(owner):
            pool = await self.find_pool(row.account) if row.provider in self.registry.known else None
            if pool is not None and pool.accounts:
                found[row.account] = pool.preferred
        order = list(self.registry.known)
        return dict(sorted(found.items(), key=lambda item: order.index(provider_of(item[0]))))

    async def find_usable(self, owner: str) -> Mapping[str, Provider]:
        """Return what may get the orders of an owner, by account: its own accounts first, then the operator's.

        Not the sandbox beside an own account: an order for it must not end with a synthetic picture.
        """
        if not is_private(owner):
            return self._preferred
        own = await self.find_own(owner)
        if own and SANDBOX.name in self.house:
            return own
        return {**own, **self._preferred} if own else self._preferred

    async def list_siblings(self, account: str) -> list[str]:
        """Return the names of all accounts of the user to whom one belongs; none if it does not exist."""
        rows = (await self._open(account)).rows
        return [row.account for row in await self.keys.list_active(rows[0].owner)] if rows else []

    def holds_submit(self, provider: str) -> bool:
        """Return whether submissions to a provider may wait for minutes, so that they have slots of their own."""
        adapter = self.registry.adapters.get(provider)
        return adapter is not None and adapter.holds_submit

    async def list_secrets(self, owner: str) -> tuple[str, ...]:
        """Return the keys of an owner, retired ones too, to be removed from what is stored."""
        if not is_private(owner):
            return ()
        accounts = dict.fromkeys(row.account for row in await self.keys.list_of_owner(owner))
        opened = [await self._open(account) for account in accounts]
        return tuple(secret for one in opened for secret in one.secrets)

    def forget(self, account: str) -> None:
        """Read an account again when it is needed next: this process has changed it."""
        self._opened.pop(account, None)

    async def _open(self, account: str) -> OpenedPool:
        known = self._opened.get(account)
        now = self.clock.monotonic()
        if known is None or now - known.read_at >= POOL_SECONDS:
            rows = await self.keys.list_of_account(account)
            known = self._make_pool(account, rows, now) if known is None or known.rows != rows else known
            self._opened[account] = OpenedPool(rows=rows, pool=known.pool, secrets=known.secrets, read_at=now)
        self._opened.move_to_end(account)
        while len(self._opened) > MAX_OPEN_POOLS:
            self._opened.popitem(last=False)
        return self._opened[account]

    def _make_pool(self, account: str, rows: Sequence[ProviderKey], now: float) -> OpenedPool:
        opened = {row.id: secret for row in rows if (secret := self.vault.find_secret(row)) is not None}
        secrets = tuple(secret.get_secret_value() for secret in opened.values())
        pool = self._build_pool(account, rows, opened) if rows else None
        return OpenedPool(rows=rows, pool=pool, secrets=secrets, read_at=now)

    def _build_pool(self, account: str, rows: Sequence[ProviderKey], opened: Mapping[str, SecretStr]) -> ProviderPool:
        """Return the pool, without keys if its provider is not known here; another process may know it."""
        provider, active = provider_of(account), {row.id for row in rows if row.retired_at is None}
        keys = opened if provider in self.registry.known else {}
        adapters = {key_id: self.registry.open_own(provider, key_id, secret) for key_id, secret in keys.items()}
        return ProviderPool(
            name=account,
            accounts={key_id: adapter for key_id, adapter in adapters.items() if key_id in active},
            retired={key_id: adapter for key_id, adapter in adapters.items() if key_id not in active},
            is_removed=not active,
        )
