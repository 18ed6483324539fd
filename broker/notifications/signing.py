"""The keys that sign webhooks, and the secrets that must not be stored.

Each account has a key of its own, so that a receiver can believe a webhook that it is about an order of its account:
who knows one key can sign webhooks of no other account, and none of the operator's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from broker.settings import Settings
from storage.sql.scope import is_private
from webhooks.signatures.standard import KEY_PREFIX, derived_key, read_secret, write_secret


@dataclass(frozen=True, kw_only=True)
class WebhookKeys:
    """The keys of all owners, in each case the current one first."""

    configured: tuple[bytes, ...] = field(repr=False)
    """BROKER_WEBHOOK_SECRETS: the operator's."""
    secrets: tuple[bytes, ...] = field(repr=False)
    """Ours: SECRET_KEY, and those before it. Receivers that know only an earlier key find its signature, too."""

    @classmethod
    def from_settings(cls, settings: Settings, secrets: Sequence[bytes]) -> WebhookKeys:
        configured = tuple(read_secret(key.get_secret_value()) for key in settings.webhook_secrets)
        return cls(configured=configured, secrets=tuple(secrets))

    def of_operator(self) -> tuple[bytes, ...]:
        return self.configured or tuple(derived_key(secret) for secret in self.secrets)

    def of_owner(self, owner: str) -> tuple[bytes, ...]:
        """Return the keys that sign the webhooks of an owner."""
        if not is_private(owner):
            return self.of_operator()
        return tuple(derived_key(secret, owner) for secret in self.secrets)

    def secret_of(self, owner: str) -> str:
        """Return what an owner's receivers verify with, as the libraries of Standard Webhooks have it."""
        return write_secret(self.of_owner(owner)[0])


def known_secrets(settings: Settings, secrets: Sequence[bytes]) -> set[str]:
    """Return the secrets that must be stored nowhere else: those of the settings, and those generated or derived."""
    keys = WebhookKeys.from_settings(settings, secrets).of_operator()
    signing = {write_secret(key).removeprefix(KEY_PREFIX) for key in keys}
    return {*settings.secret_values(), *(secret.decode("utf-8", "replace") for secret in secrets), *signing}
