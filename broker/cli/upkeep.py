"""`broker cleanup` and `broker db`: what an operator does to the data, and sees of it."""

from __future__ import annotations

import platform

from broker.bootstrap import absent, database_for, load_settings, open_services
from broker.cli.house import quiet_logs
from broker.cli.screen import say
from broker.clock import SystemClock
from storage.images import Images
from storage.sql import migrate
from storage.sql.database import Database
from storage.states import State
from storage.tasks import Tasks


async def cleanup() -> None:
    """Retention now. Nothing is submitted and nobody is asked."""
    settings = load_settings()
    quiet_logs(settings)
    async with open_services(settings, joins=False) as services:
        removed = await services.worker.clean_up()
    say(f"{removed} {'task' if removed == 1 else 'tasks'} older than {settings.retention_hours:g} hours deleted.")


async def upgrade() -> None:
    """Run the migrations that are missing."""
    async with database_for(load_settings()) as database:
        ran = await migrate.upgrade(database, SystemClock().now())
    for migration in ran:
        say(f"ran {migration.name}")
    say(f"The database is up to date: {len(migrate.migrations())} migrations.")


async def status() -> int:
    """0 when the database is as this version wants it, 1 when `broker db upgrade` or a first start is needed."""
    settings = load_settings()
    path = absent(settings)
    if path is not None:
        _say_facts({"database": str(path.resolve()), "Python": platform.python_version()})
        say("There is no database yet. The first start makes one.")
        return 1
    async with database_for(settings) as database:
        await database.check()
        _say_facts({**await database.facts(), "Python": platform.python_version()})
        if missing := await migrate.missing(database):
            say(f"Migrations are missing: {', '.join(m.name for m in missing)}. Run: broker db upgrade", style="yellow")
            return 1
        await _say_contents(database)
    return 0


async def _say_contents(database: Database) -> None:
    counts, images = await Tasks(database).counts(), await Images(database).stored()
    _say_facts({"migrations": f"all {len(migrate.migrations())} applied"})
    _say_facts({f"tasks {state.value}": str(counts.get(state.value, 0)) for state in State})
    _say_facts({"images": f"{images['n']}, {images['size'] / 2**20:.1f} MiB"})


def _say_facts(facts: dict[str, str]) -> None:
    for name, value in facts.items():
        say(f"{name:<18} {value}")
