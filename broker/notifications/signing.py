"""The keys that sign webhooks, and the secrets that must not be stored."""

from __future__ import annotations

from collections.abc import Sequence

from broker.settings import Settings
from webhooks.signatures.standard import KEY_PREFIX, derived_key, read_secret, write_secret


def signing_keys(settings: Settings, secrets: Sequence[bytes]) -> list[bytes]:
    """Return the keys that sign webhooks: the configured ones, or one derived from each of our secrets.

    secrets: the current one first; receivers that know only an earlier one find its signature, too.
    """
    chosen = [read_secret(key.get_secret_value()) for key in settings.webhook_secrets]
    return chosen or [derived_key(secret) for secret in secrets]


def known_secrets(settings: Settings, secrets: Sequence[bytes]) -> set[str]:
    """Return the secrets that must be stored nowhere else: those of the settings, and those generated or derived."""
    signing = {write_secret(key).removeprefix(KEY_PREFIX) for key in signing_keys(settings, secrets)}
    return {*settings.secret_values(), *(secret.decode("utf-8", "replace") for secret in secrets), *signing}
