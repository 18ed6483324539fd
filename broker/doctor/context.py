"""Settings under examination, and the clients that the checks use."""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Final

from broker.bootstrap import database_for, existing_secret
from broker.callbacks.probe import ReachabilityProbe
from broker.callbacks.tunnels import CLOUDFLARED_URLS
from broker.clock import Clock
from broker.net.api_client import ApiClient
from broker.providers.registry import ProviderRegistry, load_catalog
from broker.settings import Settings
from broker.settings.loading import SalvagedSettings
from storage.sql.database import Database
from webhooks.tokens import ChallengeResponse

RESPONSE_SECONDS: Final = 10.0
DATABASE_SECONDS: Final = 2.0
"""The doctor reports a Postgres that restarts; a broker waits longer for it."""


@dataclass(frozen=True, kw_only=True)
class DoctorContext:
    """Everything that a check may use."""

    settings: Settings
    wrong: frozenset[str]
    """Fields of the settings that have their defaults because the given value is wrong."""
    clock: Clock
    client: ApiClient
    registry: ProviderRegistry
    secret: bytes = field(repr=False)
    """The deployment's secret; a temporary one where none has been generated yet."""
    cloudflared: Sequence[str] = CLOUDFLARED_URLS

    @property
    def probe(self) -> ReachabilityProbe:
        preferred = next(iter(self.registry.open_all().values())).preferred
        challenge = ChallengeResponse(self.secret)
        return ReachabilityProbe(client=self.client, challenge=challenge, path=preferred.callback_path)

    def open_database(self) -> AbstractAsyncContextManager[Database]:
        return database_for(self.settings, retry_seconds=DATABASE_SECONDS)


@asynccontextmanager
async def open_context(
    salvaged: SalvagedSettings, clock: Clock, cloudflared: Sequence[str] = CLOUDFLARED_URLS
) -> AsyncIterator[DoctorContext]:
    client = ApiClient(timeout=RESPONSE_SECONDS, max_connections=32)
    try:
        yield DoctorContext(
            settings=salvaged.settings,
            wrong=salvaged.wrong,
            clock=clock,
            client=client,
            registry=ProviderRegistry(settings=salvaged.settings, client=client, catalog=load_catalog(), now=clock.now),
            secret=_read_secret(salvaged.settings),
            cloudflared=cloudflared,
        )
    finally:
        await client.aclose()


def _read_secret(settings: Settings) -> bytes:
    """Return the secret without creating its file: checks change nothing."""
    with suppress(OSError):
        return existing_secret(settings) or secrets.token_bytes(32)
    return secrets.token_bytes(32)
