"""Connections to a SQLite file: WAL, synchronous FULL, and readers that cannot write."""

from __future__ import annotations

import sqlite3
import time
from pathlib import Path
from typing import Any, Final

from storage.sql.sqlite_errors import is_busy

CHECKPOINT_PAGES: Final = 2000
"""Pages in the log after which a commit copies them itself, and its callers wait for that: many rows per statement."""
WAL_LIMIT_BYTES: Final = 64 * 2**20
MAX_OPEN_ATTEMPTS: Final = 50
OPEN_RETRY_SECONDS: Final = 0.1

ALL_PRAGMAS: Final = "PRAGMA busy_timeout=5000; PRAGMA mmap_size=0;"
WRITER_PRAGMAS: Final = f"""PRAGMA journal_mode=WAL; PRAGMA synchronous=FULL;
    PRAGMA wal_autocheckpoint={CHECKPOINT_PAGES}; PRAGMA journal_size_limit={WAL_LIMIT_BYTES}; PRAGMA temp_store=MEMORY;
    SELECT 1 FROM sqlite_schema;"""  # reading creates the log
READER_PRAGMAS: Final = "PRAGMA query_only=ON; PRAGMA cache_size=-65536;"
REPORT_PRAGMAS: Final = "PRAGMA query_only=ON; PRAGMA cache_size=-32768;"


def open_connection(path: Path, pragmas: str) -> sqlite3.Connection:
    """Return a connection in autocommit mode: transactions begin and end where we say so."""
    connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False, cached_statements=256)
    connection.row_factory = sqlite3.Row
    connection.create_function("lower", 1, _lower, deterministic=True)  # its own knows no letters outside ASCII
    try:
        _run_pragmas(connection, f"{ALL_PRAGMAS} {pragmas}")
    except sqlite3.Error:
        connection.close()
        raise
    return connection


def _run_pragmas(connection: sqlite3.Connection, pragmas: str) -> None:
    """Retry while another process switches the file to WAL: busy_timeout does not cover that."""
    for attempts_left in range(MAX_OPEN_ATTEMPTS, 0, -1):
        try:
            connection.executescript(pragmas)
        except sqlite3.Error as error:
            if not is_busy(error) or attempts_left == 1:
                raise
            time.sleep(OPEN_RETRY_SECONDS)
        else:
            return


def _lower(value: Any) -> Any:
    return value.lower() if isinstance(value, str) else value
