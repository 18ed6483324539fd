"""What a check found, and running all checks side by side."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Final

from broker.doctor.patient import Patient
from broker.providers.base import Finding
from broker.providers.health import failed, ok, skipped, warning
from storage.database import StorageError

__all__ = ["Check", "Finding", "examine", "failed", "ok", "skipped", "store_trouble", "warning"]

PATIENCE: Final = 20.0
"""Seconds for one check; they run side by side."""


def store_trouble(name: str, error: StorageError) -> Finding:
    """Its messages end with their cure."""
    found, sign, cure = str(error).rpartition(": ")
    return failed(name, found if sign else cure, cure if sign else "look at the log of the store, and at its disk")


@dataclass(frozen=True, kw_only=True)
class Check:
    """look: returns one finding or several, some named otherwise. needs: settings without which it makes no sense."""

    name: str
    look: Callable[[Patient], Awaitable[Sequence[Finding]]]
    needs: frozenset[str] = frozenset()


async def examine(patient: Patient, checks: Sequence[Check], patience: float = PATIENCE) -> AsyncIterator[Finding]:
    """All findings, in the order of the checks; whatever happens to one, the others are made."""
    looking = [asyncio.create_task(_look(patient, check, patience)) for check in checks]
    try:
        for look in looking:
            for finding in await look:
                yield finding
    finally:
        for look in looking:
            look.cancel()
        await asyncio.gather(*looking, return_exceptions=True)


async def _look(patient: Patient, check: Check, patience: float) -> Sequence[Finding]:
    if check.needs & patient.wrong:
        return [skipped(check.name, "cannot be looked at before the settings above are right")]
    try:
        async with asyncio.timeout(patience):
            return await check.look(patient)
    except StorageError as error:
        return [store_trouble(check.name, error)]
    except TimeoutError:
        return [failed(check.name, f"no answer within {patience:g} seconds", "see why it hangs, then run this again")]
    except Exception as error:  # the text of an error that nobody foresaw may hold anything
        found = f"the check itself broke ({type(error).__name__})"
        return [failed(check.name, found, "please report it, with the versions and the kind of this error")]
