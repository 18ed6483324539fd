"""What is left at the providers: asked now and then by one process, known to all that share the database."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from broker.clock import Clock
from broker.errors import ProviderError
from broker.logs import log
from broker.providers.base import Provider
from storage.cluster_state import Facts
from storage.periodic_jobs import Chores

EVERY: Final = 300.0
PATIENCE: Final = 5.0
OLD: Final = 3 * EVERY
"""An answer that is older says nothing any more."""


@dataclass(frozen=True, kw_only=True)
class Credits:
    clock: Clock
    chores: Chores
    facts: Facts
    providers: Mapping[str, Provider]

    async def ask(self) -> None:
        """Ask every provider, if nobody else has done so lately. It is free, and never worth waiting for."""
        if not await self.chores.take("credits", now=self.clock.now(), every=EVERY):
            return
        for provider in self.providers.values():
            if (left := await _left_at(provider)) is not None:
                await self.facts.tell(_name(provider.name), f"{left!r} {self.clock.now()!r}")

    async def left(self) -> dict[str, float]:
        """By provider, as far as one has told lately."""
        found = {name: _lately(await self.facts.get(_name(name)), self.clock.now()) for name in self.providers}
        return {name: left for name, left in found.items() if left is not None}


def _name(provider: str) -> str:
    return f"credits of {provider}"


async def _left_at(provider: Provider) -> float | None:
    try:
        async with asyncio.timeout(PATIENCE):
            return await provider.balance()
    except (ProviderError, TimeoutError):
        log.debug("the provider did not say what is left", action="credits_unheard", provider=provider.name)
        return None


def _lately(fact: str | None, now: float) -> float | None:
    if fact is None:
        return None
    left, at = map(float, fact.split())
    return left if math.isfinite(left) and abs(now - at) <= OLD else None
