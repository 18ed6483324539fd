"""Migrations: numbered SQL files, each run once, in a transaction of its own."""

from __future__ import annotations

import re
from contextlib import suppress
from dataclasses import dataclass
from importlib import resources
from typing import Final

from storage.errors import ForeignTables, NoSuchTable, Stale, StorageError
from storage.sql.database import Database, Statement

_TABLE: Final = """CREATE TABLE IF NOT EXISTS migrations
    (number BIGINT PRIMARY KEY, name TEXT NOT NULL, ran_at DOUBLE PRECISION NOT NULL)"""
_MARK: Final = """INSERT INTO migrations (number, name, ran_at) VALUES (:number, :name, :now)
    ON CONFLICT (number) DO NOTHING"""
_CREATED: Final = re.compile(r"CREATE TABLE (\w+)")


@dataclass(frozen=True, kw_only=True)
class Migration:
    number: int
    name: str
    statements: tuple[str, ...]


class SchemaTooNew(Exception):
    """The database was migrated by a newer broker. Cure: run that version, or restore an older backup."""


def load_migrations() -> list[Migration]:
    """Return all migrations of this version, in order."""
    files = (f for f in resources.files("storage.sql.migrations").iterdir() if f.name.endswith(".sql"))
    return [
        Migration(number=int(f.name[:4]), name=f.name.removesuffix(".sql"), statements=_split(f.read_text("utf-8")))
        for f in sorted(files, key=lambda f: f.name)
    ]


def _split(text: str) -> tuple[str, ...]:
    # our own files: no semicolon stands inside a string or a comment
    without_comments = re.sub(r"--[^\n]*", "", text)
    return tuple(part.strip() for part in without_comments.split(";") if part.strip())


async def missing_migrations(database: Database) -> list[Migration]:
    """Return the migrations that `upgrade_schema` would run. Raises `SchemaTooNew`."""
    try:
        applied = {row["number"] for row in await database.fetch("SELECT number FROM migrations")}
    except NoSuchTable:
        applied = set()
    known = load_migrations()
    if applied - {m.number for m in known}:
        raise SchemaTooNew(
            f"the database has migration {max(applied)}, this version knows {known[-1].number}: use the newer broker"
        )
    return [m for m in known if m.number not in applied]


async def probe_commit(database: Database) -> None:
    """Commit without a change; raise `StorageError` if that fails."""
    await database.execute("DELETE FROM migrations WHERE number < 0")


async def created_at(database: Database) -> float:
    """Return when this database was created; older files belong to another one."""
    row = await database.fetch_one("SELECT min(ran_at) AS created_at FROM migrations")
    return float(row["created_at"]) if row and row["created_at"] is not None else float("inf")


async def check_ownership(database: Database) -> None:
    """Raise `ForeignTables` if a database that no broker has used has tables of our names."""
    foreign = []
    for name in _CREATED.findall("\n".join(sql for migration in load_migrations() for sql in migration.statements)):
        with suppress(NoSuchTable):
            await database.fetch(f'SELECT 1 FROM "{name}" LIMIT 1')
            foreign.append(name)
    with suppress(NoSuchTable):
        await database.fetch("SELECT number FROM migrations LIMIT 1")
        return
    if foreign:
        raise ForeignTables(
            f"the database holds tables of another program ({', '.join(foreign)}), and none of the broker: create an "
            "empty database for the broker, and name it in DATABASE_URL or POSTGRES_DB"
        )


async def upgrade_schema(database: Database, now: float) -> list[Migration]:
    """Run the missing migrations; safe in several processes at once. Return those that were run here.

    Raises `ForeignTables` if the database belongs to another program.
    """
    try:
        return await _run_missing(database, now)
    except StorageError:
        await check_ownership(database)
        raise


async def _run_missing(database: Database, now: float) -> list[Migration]:
    applied = []
    for migration in await missing_migrations(database):
        values = {"number": migration.number, "name": migration.name, "now": now}
        mark = Statement(sql=_MARK, params=values, must_change=True)
        first = (Statement(sql=database.exclusive), Statement(sql=_TABLE), mark)
        with suppress(Stale):  # another process ran it first: its row is there
            await database.transact(*first, *(Statement(sql=sql) for sql in migration.statements))
            applied.append(migration)
    return applied
