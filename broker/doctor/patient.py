"""What is examined: the settings of this folder, and the means to look at what they lead to."""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Final

from broker.bootstrap import secret_file
from broker.clock import Clock
from broker.net.api_client import ApiClient
from broker.probing import Prober
from broker.public_url import CLOUDFLARED
from broker.settings import Salvaged, Settings
from webhooks.tokens import ChallengeResponse

ANSWER_SECONDS: Final = 10.0


@dataclass(frozen=True, kw_only=True)
class Patient:
    """wrong: fields of the settings that have their defaults, because what was said is wrong.

    secret: that of this deployment; one of the moment where none was made yet. cloudflared: where it may answer.
    """

    settings: Settings
    wrong: frozenset[str]
    clock: Clock
    client: ApiClient
    secret: bytes = field(repr=False)
    cloudflared: Sequence[str] = CLOUDFLARED

    @property
    def prober(self) -> Prober:
        return Prober(client=self.client, presence=ChallengeResponse(self.secret))


@asynccontextmanager
async def admitted(found: Salvaged, clock: Clock, cloudflared: Sequence[str] = CLOUDFLARED) -> AsyncIterator[Patient]:
    """A patient, and a client that is closed at the end."""
    client = ApiClient(timeout=ANSWER_SECONDS, max_connections=32)
    try:
        yield Patient(
            settings=found.settings,
            wrong=found.wrong,
            clock=clock,
            client=client,
            secret=_secret(found.settings),
            cloudflared=cloudflared,
        )
    finally:
        await client.aclose()


def _secret(settings: Settings) -> bytes:
    """Never made here: looking changes nothing."""
    if settings.secret_key is not None:
        return settings.secret_key.get_secret_value().encode()
    with suppress(OSError):
        return secret_file(settings).read_bytes().strip()
    return secrets.token_bytes(32)
