"""Check of the users: with some, one of them is an admin who can log in."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from broker.bootstrap import missing_database_file
from broker.doctor.context import DoctorContext
from broker.providers.base import Finding
from broker.providers.health import failed, ok, skipped, warning
from storage.accounts.users import Users
from storage.sql import migrate

NAME: Final = "users"
_ADMIN_CURE: Final = (
    "run: broker users add NAME --admin; or set BROKER_ADMIN_USERNAME and BROKER_ADMIN_PASSWORD and start the broker"
)


async def check_users(context: DoctorContext) -> Sequence[Finding]:
    """Report users without an admin, and anonymous access beside users."""
    if missing_database_file(context.settings) is not None:
        return [ok(NAME, "none yet")]
    async with context.open_database() as database:
        if await migrate.missing_migrations(database):
            return [skipped(NAME, "migrations are missing")]
        users = Users(database)
        if not await users.has_any():
            return [ok(NAME, "none: callers have keys, or call from this machine")]
        admins = await users.count_admins()
    if context.settings.allow_anonymous:
        found = "there are users, and BROKER_ALLOW_ANONYMOUS would make everyone an admin: the broker does not start"
        return [failed(NAME, found, "remove BROKER_ALLOW_ANONYMOUS; give programs an API key (broker keys add)")]
    if not admins:
        return [warning(NAME, "there are users, and none of them is an admin who can log in", _ADMIN_CURE)]
    return [ok(NAME, f"{admins} of them {'is an admin' if admins == 1 else 'are admins'}")]


async def has_accounts(context: DoctorContext) -> bool:
    """Return whether callers need a login or an API key. Raises `StorageError`."""
    if missing_database_file(context.settings) is not None:
        return False
    async with context.open_database() as database:
        return not await migrate.missing_migrations(database) and await Users(database).has_any_account()
