"""Migrations: numbered SQL files, each run once, in a transaction of its own."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import resources

from storage.errors import NoSuchTable
from storage.sql.database import Database, Stale, Statement

TABLE = """CREATE TABLE IF NOT EXISTS migrations
    (number BIGINT PRIMARY KEY, name TEXT NOT NULL, ran_at DOUBLE PRECISION NOT NULL)"""
MARK = """INSERT INTO migrations (number, name, ran_at) VALUES (:number, :name, :now)
    ON CONFLICT (number) DO NOTHING"""


@dataclass(frozen=True, kw_only=True)
class Migration:
    number: int
    name: str
    statements: tuple[str, ...]


class SchemaTooNew(Exception):
    """The database was migrated by a newer broker. Cure: run that version, or restore an older backup."""


def load_migrations() -> list[Migration]:
    """Return all migrations of this version, in order."""
    folder = resources.files("storage.sql.migrations")
    return sorted(
        (_read(f.name, f.read_text("utf-8")) for f in folder.iterdir() if f.name.endswith(".sql")),
        key=lambda m: m.number,
    )


def _read(name: str, text: str) -> Migration:
    return Migration(number=int(name[:4]), name=name.removesuffix(".sql"), statements=tuple(_statements(text)))


def _statements(text: str) -> Iterator[str]:
    # our own files: no semicolon stands inside a string or a comment
    without_comments = re.sub(r"--[^\n]*", "", text)
    return (part.strip() for part in without_comments.split(";") if part.strip())


async def missing_migrations(database: Database) -> list[Migration]:
    """Return the migrations that `upgrade` would run. Raises `SchemaTooNew`."""
    try:
        rows = await database.fetch("SELECT number FROM migrations")
    except NoSuchTable:
        rows = []
    return _unseen({row["number"] for row in rows})


def _unseen(seen: set[int]) -> list[Migration]:
    known = load_migrations()
    if seen - {m.number for m in known}:
        raise SchemaTooNew(
            f"the database has migration {max(seen)}, this version knows {known[-1].number}: use the newer broker"
        )
    return [m for m in known if m.number not in seen]


async def _applied(database: Database) -> set[int]:
    """Return the numbers of the migrations that were run here."""
    await database.transact(Statement(sql=database.exclusive), Statement(sql=TABLE))
    return {row["number"] for row in await database.fetch("SELECT number FROM migrations")}


async def probe_write(database: Database) -> None:
    """Commit without a change; raise `StorageError` if that fails."""
    await database.execute("DELETE FROM migrations WHERE number < 0")


async def created_at(database: Database) -> float:
    """Return when this database was created; older files belong to another one."""
    row = await database.fetch_one("SELECT min(ran_at) AS born_at FROM migrations")
    return float(row["born_at"]) if row and row["born_at"] is not None else float("inf")


async def upgrade_schema(database: Database, now: float) -> list[Migration]:
    """Run the missing migrations; safe in several processes at once. Return those that were run here."""
    return [m for m in _unseen(await _applied(database)) if await _run(database, m, now)]


async def _run(database: Database, migration: Migration, now: float) -> bool:
    # the row is first: the second of two processes finds it and changes nothing
    mark = Statement(
        sql=MARK,
        params={"number": migration.number, "name": migration.name, "now": now},
        must_change=True,
    )
    try:
        await database.transact(
            Statement(sql=database.exclusive), mark, *(Statement(sql=sql) for sql in migration.statements)
        )
    except Stale:
        return False
    return True
