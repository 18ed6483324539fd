"""Checks of what the database knows about the providers: pauses, cooldowns, and keys that were set aside."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import Final

from broker.bootstrap import missing_database_file
from broker.clock import iso
from broker.doctor.context import DoctorContext
from broker.providers.base import Finding
from broker.providers.health import failed, ok, skipped, warning
from storage.limits.provider_limits import AccountLoad, ProviderLimits
from storage.sql import migrate

NAME: Final = "provider state"
_PROBLEMS: Final = {"provider_auth": "it refuses", "provider_credits": "there are no credits left for"}
_CURES: Final = {"provider_auth": "copy the key again into its variable", "provider_credits": "top up the account"}


async def check_provider_state(context: DoctorContext) -> Sequence[Finding]:
    """Report the providers that take no orders, or not with every key, and what the operator must do."""
    if missing_database_file(context.settings) is not None:
        return [skipped(NAME, "nothing was ordered yet")]
    async with context.open_database() as database:
        await database.check()
        if await migrate.missing_migrations(database):
            return [skipped(NAME, "migrations are missing")]
        limits, now = ProviderLimits(database), context.clock.now()
        paused = await limits.paused_providers()
        loads = {
            name: {key_id: await limits.get_load(name, key_id, now) for key_id in pool.accounts}
            for name, pool in context.registry.open_all().items()
        }
    findings = [
        *_pauses(paused & loads.keys()),
        *(one for name in loads for one in _key_problems(name, loads[name], now)),
    ]
    return findings or [ok(NAME, f"{', '.join(loads)}: every key takes orders")]


def _pauses(names: frozenset[str]) -> Iterator[Finding]:
    for name in sorted(names):
        cure = f"run: broker providers resume {name}"
        yield warning(NAME, f"{name} is paused: no orders are submitted to it", cure)


def _key_problems(name: str, loads: Mapping[str, AccountLoad], now: float) -> Iterator[Finding]:
    """Yield a finding for each reason. Keys with the same one are named together: they may be of one account."""
    set_aside: dict[str, list[str]] = defaultdict(list)
    for key_id, load in loads.items():
        if load.is_set_aside:
            set_aside[load.reason].append(key_id)
        elif load.circuit(now) == "open":
            found = f"{name}, key {key_id}: cools down until {iso(load.paused_until)} ({load.reason})"
            yield warning(NAME, found, "none needed: it is tried again then")
    for reason, key_ids in set_aside.items():
        which = f"key {key_ids[0]}" if len(key_ids) == 1 else f"keys {', '.join(key_ids)}"
        found = f"{name}: {_PROBLEMS[reason]} {which}, so no orders are submitted with {_pronoun(key_ids)}"
        shared = "; keys of one account share its balance" if len(key_ids) > 1 and reason == "provider_credits" else ""
        cure = f"{_CURES[reason]}{shared}, then run: broker providers resume {name}"
        is_useless = all(load.is_set_aside for load in loads.values())
        yield failed(NAME, found, cure) if is_useless else warning(NAME, found, cure)


def _pronoun(key_ids: Sequence[str]) -> str:
    return "it" if len(key_ids) == 1 else "them"
