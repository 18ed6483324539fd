"""`broker cleanup` and `broker db`: maintenance of the data by the operator."""

from __future__ import annotations

import platform
from functools import partial

from broker.bootstrap import database_for, load_settings, missing_database_file, open_services
from broker.cli import ExitCode
from broker.cli.connection import quiet_logs
from broker.cli.console import print_facts, print_line
from broker.clock import SystemClock
from storage.images import Images
from storage.sql import migrate
from storage.sql.database import Database
from storage.states import TaskState
from storage.tasks import Tasks

_WIDTH = 18


async def delete_expired() -> None:
    """Run retention once. No order is submitted, no provider is called.

    It frees space, so it may use all that is left on the disk, and the reserve of the database.
    """
    settings = load_settings()
    quiet_logs(settings)
    open_database = partial(database_for, spends_reserve=True)
    async with open_services(settings, joins=False, free_floor=0, open_database=open_database) as services:
        removed = await services.worker.clean_up()
    print_line(
        f"{removed} {'task' if removed == 1 else 'tasks'} older than {settings.retention_hours:g} hours deleted."
    )


async def upgrade_database() -> None:
    """Run the missing migrations."""
    async with database_for(load_settings()) as database:
        ran = await migrate.upgrade_schema(database, SystemClock().now())
    for migration in ran:
        print_line(f"ran {migration.name}")
    print_line(f"The database is up to date: {len(migrate.load_migrations())} migrations.")


async def show_database() -> int:
    """Print the state of the database; NOT_DONE when `broker db upgrade` or a first start is needed."""
    settings = load_settings()
    path = missing_database_file(settings)
    if path is not None:
        print_facts({"database": str(path.resolve()), "Python": platform.python_version()}, width=_WIDTH)
        print_line("There is no database yet. The first start makes one.")
        return ExitCode.NOT_DONE
    async with database_for(settings) as database:
        await database.check()
        print_facts({**await database.describe(), "Python": platform.python_version()}, width=_WIDTH)
        if missing := await migrate.missing_migrations(database):
            names = ", ".join(migration.name for migration in missing)
            print_line(f"Migrations are missing: {names}. Run: broker db upgrade", style="yellow")
            return ExitCode.NOT_DONE
        await _print_contents(database)
    return ExitCode.DONE


async def _print_contents(database: Database) -> None:
    counts, images = await Tasks(database).count_by_state(), await Images(database).count_stored()
    facts = {"migrations": f"all {len(migrate.load_migrations())} applied"}
    facts |= {f"tasks {state.value}": str(counts.get(state.value, 0)) for state in TaskState}
    facts |= {"images": f"{images['n']}, {images['size'] / 2**20:.1f} MiB"}
    print_facts(facts, width=_WIDTH)
