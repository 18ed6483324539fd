"""`broker secrets`: seals the provider keys of users again after a change of SECRET_KEY."""

from __future__ import annotations

from broker.accounts.provider_keys import KeyVault, rotate_keys
from broker.accounts.sealing import KeyRing
from broker.bootstrap import database_for, existing_secret, load_settings, missing_database_file
from broker.cli.connection import quiet_logs
from broker.cli.console import CommandError, print_line, print_note
from storage.accounts.provider_keys import ProviderKeys
from storage.sql import migrate


async def rotate_secrets(*, drop_unreadable: bool) -> None:
    """Seal again what another SECRET_KEY sealed; brokers may run. Raises `CommandError` before the first start."""
    settings = load_settings()
    quiet_logs(settings)
    secret = existing_secret(settings)
    if secret is None or missing_database_file(settings) is not None:
        raise CommandError("There is no database or no secret yet: is this the right folder?")
    vault = KeyVault(ring=KeyRing.from_secrets(secret, settings.old_secrets))
    async with database_for(settings) as database:
        await database.check()
        if await migrate.missing_migrations(database):
            raise CommandError("Migrations are missing. Run: broker db upgrade")
        count = await rotate_keys(ProviderKeys(database), vault, drop_unreadable=drop_unreadable)
    print_line(f"{count.sealed_again} sealed again, {count.current} were sealed with the current SECRET_KEY already.")
    if count.unreadable:
        what = "deleted: their users must set them again" if drop_unreadable else "do not open: --drop-unreadable"
        print_line(f"{count.unreadable} {what}.")
    if settings.old_secret_keys:
        print_note(
            "Remove BROKER_OLD_SECRET_KEYS when all processes have the current SECRET_KEY, and older tasks ended."
        )
