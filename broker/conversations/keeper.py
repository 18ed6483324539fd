"""The keeper of turns: releases those that waited, and finishes deletions, whichever process began them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Final

from broker.clock import seconds_to_beat
from broker.conversations.deletion import ConversationDeleter
from broker.conversations.release import TurnRelease
from broker.conversations.service import TURNS_CHANNEL
from broker.logs import log, safe_exc_info
from broker.tasks.transitions import ENDED_CHANNEL
from storage.conversations.turns import Turns
from storage.errors import StorageError

IDLE_SECONDS: Final = 10.0
"""A turn that another process left behind is found within this time."""
BUSY_SECONDS: Final = 0.5
"""The end of a task is noticed within this time, also without a notification."""
PAUSE_SECONDS: Final = 0.1
"""Tasks may change very often."""


@dataclass(frozen=True, kw_only=True)
class TurnKeeper:
    """One loop per process. A notification is a hint; polling is the floor."""

    turns: Turns
    release: TurnRelease
    deleter: ConversationDeleter

    @asynccontextmanager
    async def run(self) -> AsyncIterator[None]:
        """Keep turns while the block runs."""
        keeping = asyncio.create_task(self._keep(), name="turn-keeper")
        try:
            yield
        finally:
            keeping.cancel()
            await asyncio.gather(keeping, return_exceptions=True)

    async def keep_once(self) -> bool:
        """Do what can be done now; return whether something is left to be done."""
        await self.release.release_all()
        are_deleted = await self.deleter.delete_marked()
        return not are_deleted or await self.turns.has_waiting()

    async def _keep(self) -> None:
        database = self.turns.database
        with database.listen(TURNS_CHANNEL) as added, database.listen(ENDED_CHANNEL) as changed:
            while True:
                try:
                    is_busy = await self.keep_once()
                except StorageError as error:
                    log.error("the database is unavailable", action="store_unavailable", why=str(error))
                    is_busy = False
                except Exception as error:
                    log.error(
                        "the conversations could not be kept", action="keeper_failed", exc_info=safe_exc_info(error)
                    )
                    is_busy = False
                if is_busy:
                    await asyncio.sleep(PAUSE_SECONDS)
                    await changed.wait(BUSY_SECONDS)
                else:
                    await added.wait(seconds_to_beat(IDLE_SECONDS))
