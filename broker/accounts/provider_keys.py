"""Provider keys of users: set, shown by their last characters, removed, sealed again; opened only to be used."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Collection
from dataclasses import dataclass, replace
from typing import Final, Literal

from pydantic import SecretStr

from broker.accounts.sealing import KeyRing, SealBroken, Sealed
from broker.clock import Clock
from broker.errors import ApiError, SettingsError
from broker.logs import log
from storage.accounts.provider_keys import ProviderKey, ProviderKeys
from storage.errors import Stale
from storage.ids import new_account_name, new_provider_key_id
from storage.limits.rate_limits import RateLimits
from storage.sql.scope import is_private
from storage.tasks import DUE_CHANNEL

MIN_KEY_CHARACTERS: Final = 16
"""Of a shorter key the last four characters would tell too much, and it would not be found to be hidden."""
MAX_KEY_CHARACTERS: Final = 512
SHOWN_CHARACTERS: Final = 4
MAX_TESTS_PER_MINUTE: Final = 10
"""Keys that one owner can have tested: each is a request to a provider."""
MAX_TRIES: Final = 3
PAGE_SIZE: Final = 100
_KEY: Final = re.compile(r"[\x21-\x7e]+")

Validity = Literal["true", "false", "unknown"]


@dataclass(frozen=True, kw_only=True)
class KeyTest:
    """The answer of a provider about a key."""

    valid: Validity
    reason: str
    """A sentence for the user, without any secret."""


@dataclass(frozen=True, kw_only=True)
class RotationCount:
    """Keys that `rotate_keys` found."""

    sealed_again: int = 0
    current: int = 0
    """Sealed by the current SECRET_KEY before."""
    unreadable: int = 0
    """Changed in the database, or sealed by a SECRET_KEY that is lost; deleted on request."""


def _context(key: ProviderKey) -> tuple[str, ...]:
    """Return what a sealed key is bound to: moved or changed, its row does not open."""
    return ("provider_keys", key.id, key.owner, key.provider, key.account, key.last_four)


@dataclass(frozen=True, kw_only=True)
class KeyVault:
    """Seals and opens provider keys."""

    ring: KeyRing

    def open_key(self, key: ProviderKey) -> SecretStr:
        """Return the key itself. Raises `SealBroken`."""
        return self.ring.open(Sealed(text=key.sealed, key_id=key.sealing_key), *_context(key))

    def find_secret(self, key: ProviderKey) -> SecretStr | None:
        """Return the key itself; None, which is logged, if its row does not open."""
        try:
            return self.open_key(key)
        except SealBroken as error:
            log.error(
                "a provider key of a user does not open: see docs/deploying.md, Replacing the secret",
                action="provider_key_unreadable",
                provider=key.provider,
                key_id=key.id,
                why=str(error),
            )
            return None

    def seal_row(self, row: ProviderKey, secret: SecretStr) -> Sealed:
        """Return the sealed text for a row, whose own may be empty."""
        return self.ring.seal(secret, *_context(row))


@dataclass(frozen=True, kw_only=True)
class ProviderKeyService:
    """The provider keys of users and of API keys without a user."""

    clock: Clock
    keys: ProviderKeys
    vault: KeyVault
    usage: RateLimits
    providers: Collection[str]
    """Those at which users may have keys."""
    test_key: Callable[[str, SecretStr], Awaitable[KeyTest]]
    """(provider, key): asks the provider; never raises."""
    forget: Callable[[str], None] = lambda _: None
    """Told the account whose key has changed."""

    async def set_key(self, owner: str, provider: str, secret: SecretStr) -> tuple[ProviderKey, KeyTest]:
        """Test a key at its provider and store it; the one before is replaced.

        Raises `ApiError`: forbidden for the operator, not_found for an unknown provider, rate_limited after many tests,
        invalid_request for a key that cannot be one or that the provider refuses.
        """
        self._check_owner(owner)
        self._check_provider(provider)
        _check_form(secret)
        await self._count_test(owner)
        tested = await self.test_key(provider, secret)
        if tested.valid == "false":
            raise ApiError("invalid_request", f"{tested.reason} It is not stored.", field="key")
        key = await self._store_key(owner, provider, secret, is_verified=tested.valid == "true")
        self.forget(key.account)
        log.info("provider key set", action="provider_key_set", provider=provider, key_id=key.id, owner=owner)
        return key, tested

    async def list_keys(self, owner: str) -> list[ProviderKey]:
        return await self.keys.list_active(owner)

    async def get_key(self, owner: str, provider: str) -> ProviderKey:
        """Return the key of an owner at a provider. Raises `ApiError("not_found")`."""
        key = await self.keys.find_active(owner, provider)
        if key is None:
            raise ApiError("not_found", "You have no key of your own at a provider of this name.")
        return key

    async def remove_key(self, owner: str, provider: str) -> None:
        """Submit nothing more with a key. Raises `ApiError("not_found")`.

        It is deleted at once, or when the last job that it started is stored. Queued orders go to another provider, or
        fail.
        """
        for _ in range(MAX_TRIES):
            key = await self.get_key(owner, provider)
            try:
                await self.keys.database.transact(*self.keys.retire_key(key, self.clock.now()), wake=(DUE_CHANNEL,))
            except Stale:
                continue
            self.forget(key.account)
            log.info("provider key removed", action="provider_key_removed", provider=provider, key_id=key.id)
            return
        raise ApiError("conflict", "Another request changes this key: try again.", retryable=True)

    async def _store_key(self, owner: str, provider: str, secret: SecretStr, *, is_verified: bool) -> ProviderKey:
        for _ in range(MAX_TRIES):
            before, now = await self.keys.find_active(owner, provider), self.clock.now()
            row = ProviderKey(
                id=new_provider_key_id(),
                owner=owner,
                provider=provider,
                account=before.account if before else new_account_name(provider),
                sealed="",
                sealing_key="",
                last_four=secret.get_secret_value()[-SHOWN_CHARACTERS:],
                is_verified=is_verified,
                created_at=now,
            )
            sealed = self.vault.seal_row(row, secret)
            row = replace(row, sealed=sealed.text, sealing_key=sealed.key_id)
            retiring = self.keys.retire_key(before, now) if before else []
            try:
                await self.keys.database.transact(*retiring, self.keys.insert_key(row), wake=(DUE_CHANNEL,))
            except Stale:
                continue
            return row
        raise ApiError("conflict", "Another request changes this key: try again.", retryable=True)

    async def _count_test(self, owner: str) -> None:
        counting = self.usage.add_usage(f"{owner} key tests", 1, limit=MAX_TESTS_PER_MINUTE, now=self.clock.now())
        try:
            await self.keys.database.transact(counting)
        except Stale:
            raise ApiError(
                "rate_limited",
                f"At most {MAX_TESTS_PER_MINUTE} keys a minute are tested: try again in a minute.",
                retryable=True,
                retry_after=60.0,
            ) from None

    def _check_owner(self, owner: str) -> None:
        if not is_private(owner):
            raise ApiError(
                "forbidden",
                "The operator's provider keys are environment variables (.env.example). Log in as a user to set a key "
                "of your own.",
            )

    def _check_provider(self, provider: str) -> None:
        if provider not in self.providers:
            names = ", ".join(self.providers)
            raise ApiError("not_found", f"There is no provider of this name. Known: {names}.")


def _check_form(secret: SecretStr) -> None:
    text = secret.get_secret_value()
    if not _KEY.fullmatch(text) or not MIN_KEY_CHARACTERS <= len(text) <= MAX_KEY_CHARACTERS:
        raise ApiError(
            "invalid_request",
            f"A key has {MIN_KEY_CHARACTERS} to {MAX_KEY_CHARACTERS} visible ASCII characters without blanks: copy it "
            "as the provider shows it.",
            field="key",
        )


async def require_sealing_keys(keys: ProviderKeys, ring: KeyRing, *, hint: str = "") -> None:
    """Raise `SettingsError` with the cure if a key in the database is sealed by an unknown SECRET_KEY.

    hint: where the right one may be.
    """
    unknown = [use for use in await keys.count_by_sealing_key() if use.sealing_key not in ring.by_id]
    if not unknown:
        return
    count, ids = sum(use.keys for use in unknown), ", ".join(use.sealing_key for use in unknown)
    raise SettingsError(
        f"{count} provider {'key' if count == 1 else 'keys'} of users cannot be opened: sealed with another SECRET_KEY "
        f"(sealing key {ids}). Put the earlier SECRET_KEY into BROKER_OLD_SECRET_KEYS{hint}; if it is lost, run "
        "'broker secrets rotate --drop-unreadable', and have the users set their keys again"
    )


async def rotate_keys(keys: ProviderKeys, vault: KeyVault, *, drop_unreadable: bool = False) -> RotationCount:
    """Seal every key again that another SECRET_KEY than the current one sealed.

    Others may read, set and remove keys at the same time. drop_unreadable: delete those that do not open; otherwise
    `SettingsError` is raised for an unknown SECRET_KEY, before anything is changed.
    """
    current = vault.ring.current.id
    if not drop_unreadable:
        await require_sealing_keys(keys, vault.ring)
    counts = {use.sealing_key: use.keys for use in await keys.count_by_sealing_key()}
    again, unreadable, last = 0, 0, ""
    while page := await keys.list_sealed_by_others(current, after=last, limit=PAGE_SIZE):
        for key in page:
            secret = vault.find_secret(key)
            if secret is not None:
                again += await _seal_again(keys, vault, key, secret)
                continue
            unreadable += 1
            if drop_unreadable:
                await keys.database.transact(*keys.delete_key(key))
        last = page[-1].id
    return RotationCount(sealed_again=again, current=counts.get(current, 0), unreadable=unreadable)


async def _seal_again(keys: ProviderKeys, vault: KeyVault, key: ProviderKey, secret: SecretStr) -> int:
    sealed = vault.seal_row(key, secret)
    try:
        await keys.database.transact(keys.reseal_key(key, sealed.text, sealed.key_id))
    except Stale:  # replaced or removed since, or another rotation was faster
        return 0
    return 1
