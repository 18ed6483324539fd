"""Databases that the contract suites run on; a new one adds one line."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from pathlib import Path

import pytest

from storage.sql.database import Database
from storage.sql.postgres import PostgresDatabase
from storage.sql.sqlite import SqliteDatabase
from tests.support.servers.postgres import Postgres

Opened = AbstractAsyncContextManager[Database]
Opener = Callable[[pytest.FixtureRequest, Path], Awaitable[Opened]]
"""Opens an empty database, which is closed on leaving it."""


async def sqlite(_: pytest.FixtureRequest, folder: Path) -> Opened:
    return SqliteDatabase(folder / "broker.db")


async def sqlite_in_process(_: pytest.FixtureRequest, folder: Path) -> Opened:
    return SqliteDatabase(folder / "broker.db", own_process=True)


async def postgres(request: pytest.FixtureRequest, _: Path) -> Opened:
    server: Postgres = request.getfixturevalue("postgres")
    return PostgresDatabase(await server.fresh())


DATABASES: dict[str, Opener] = {"sqlite": sqlite, "postgres": postgres}
WITH_EACH_WRITER: dict[str, Opener] = {**DATABASES, "sqlite-process": sqlite_in_process}
"""For the contract of a database alone: the tables know nothing of the writer."""
