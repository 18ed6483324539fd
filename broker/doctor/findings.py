"""Findings of the checks, and running all checks concurrently."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Final

from broker.doctor.context import DoctorContext
from broker.providers.base import Finding
from broker.providers.health import failed, ok, skipped, warning
from storage.errors import StorageError

__all__ = ["Check", "Finding", "failed", "ok", "run_checks", "skipped", "storage_failure", "warning"]

CHECK_SECONDS: Final = 20.0
"""Time-out of one check; they run concurrently."""


def storage_failure(name: str, error: StorageError) -> Finding:
    """Split a storage error, whose message ends with the cure."""
    found, sign, cure = str(error).rpartition(": ")
    return failed(name, found if sign else cure, cure if sign else "look at the log of the store, and at its disk")


@dataclass(frozen=True, kw_only=True)
class Check:
    """One check of the configuration."""

    name: str
    run: Callable[[DoctorContext], Awaitable[Sequence[Finding]]]
    """Returns one or more findings, whose names may differ from the check's."""
    needs: frozenset[str] = frozenset()
    """Settings without which the check makes no sense."""


async def run_checks(
    context: DoctorContext, checks: Sequence[Check], seconds: float = CHECK_SECONDS
) -> AsyncIterator[Finding]:
    """Yield all findings in the order of the checks; a check that fails does not affect the others."""
    running = [asyncio.create_task(_run_check(context, check, seconds)) for check in checks]
    try:
        for findings in running:
            for finding in await findings:
                yield finding
    finally:
        for findings in running:
            findings.cancel()
        await asyncio.gather(*running, return_exceptions=True)


async def _run_check(context: DoctorContext, check: Check, seconds: float) -> Sequence[Finding]:
    if check.needs & context.wrong:
        return [skipped(check.name, "cannot be checked before the settings above are right")]
    try:
        async with asyncio.timeout(seconds):
            return await check.run(context)
    except StorageError as error:
        return [storage_failure(check.name, error)]
    except TimeoutError:
        return [failed(check.name, f"no answer within {seconds:g} seconds", "see why it hangs, then run this again")]
    except Exception as error:  # the text of an unexpected error may hold secrets
        found = f"the check itself failed ({type(error).__name__})"
        return [failed(check.name, found, "please report it, with the versions and the type of this error")]
