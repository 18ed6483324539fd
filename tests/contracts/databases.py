"""The databases that the contract suite runs on: the next one adds one line."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from pathlib import Path

from storage.database import Database
from storage.sqlite import SqliteDatabase

Opener = Callable[[Path], AbstractAsyncContextManager[Database]]

DATABASES: dict[str, Opener] = {"sqlite": lambda folder: SqliteDatabase(folder / "broker.db")}
