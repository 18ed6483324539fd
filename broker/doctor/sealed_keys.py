"""Checks of the provider keys of users: whether the known SECRET_KEYs open them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from broker.accounts.provider_keys import require_sealing_keys
from broker.accounts.sealing import KeyRing
from broker.bootstrap import missing_database_file
from broker.doctor.context import DoctorContext
from broker.errors import SettingsError
from broker.providers.base import Finding
from broker.providers.health import failed, ok, skipped, warning
from storage.accounts.provider_keys import ProviderKeys
from storage.sql import migrate

NAME: Final = "provider keys of users"


async def check_sealed_keys(context: DoctorContext) -> Sequence[Finding]:
    """Report keys that do not open, and those that an earlier SECRET_KEY sealed."""
    if missing_database_file(context.settings) is not None:
        return [skipped(NAME, "none yet")]
    ring = KeyRing.from_secrets(context.secret, context.settings.old_secrets)
    async with context.open_database() as database:
        await database.check()
        if await migrate.missing_migrations(database):
            return [skipped(NAME, "migrations are missing")]
        keys = ProviderKeys(database)
        counts = {use.sealing_key: use.keys for use in await keys.count_by_sealing_key()}
        try:
            await require_sealing_keys(keys, ring)
        except SettingsError as error:
            found, _, cure = str(error).partition(". ")
            return [failed(NAME, found, cure)]
    if not counts:
        return [ok(NAME, "none")]
    earlier = sum(count for key_id, count in counts.items() if key_id != ring.current.id)
    if earlier:
        found = f"{earlier} of {sum(counts.values())} are sealed with an earlier SECRET_KEY"
        return [warning(NAME, found, "run: broker secrets rotate")]
    return [ok(NAME, f"{sum(counts.values())}, sealed with the current SECRET_KEY")]
