"""The variables that this package reads. Another package owns them: both speak to one upstream, chosen by its URL."""

from __future__ import annotations

from typing import Protocol

from pydantic import SecretStr


class LegacySettings(Protocol):
    """The part of the upstream's settings that this package needs."""

    @property
    def api_key(self) -> SecretStr | None: ...

    @property
    def webhook_key(self) -> SecretStr | None: ...

    @property
    def creates_per_10s(self) -> int | None: ...

    @property
    def older_dialect_url(self) -> str | None:
        """Base URL of the service, ending in `/nano-banana`; None if the upstream speaks another dialect."""
        ...


def is_configured(settings: LegacySettings) -> bool:
    """Return True if the upstream is a service of this dialect and a key is set."""
    return settings.api_key is not None and settings.older_dialect_url is not None
