"""The keys that sign webhooks, and the secrets that must not be stored."""

from __future__ import annotations

from broker.settings import Settings
from webhooks.signatures.standard import KEY_PREFIX, derived_key, read_secret, write_secret


def signing_keys(settings: Settings, secret: bytes) -> list[bytes]:
    """Return the keys that sign webhooks: the configured ones, or one derived from our secret."""
    chosen = [read_secret(key.get_secret_value()) for key in settings.webhook_secrets]
    return chosen or [derived_key(secret)]


def known_secrets(settings: Settings, secret: bytes) -> set[str]:
    """Return the secrets that must be stored nowhere else: those of the settings, and those generated or derived."""
    signing = {write_secret(key).removeprefix(KEY_PREFIX) for key in signing_keys(settings, secret)}
    return {*settings.secret_values(), secret.decode("utf-8", "replace"), *signing}
