"""Postgres for any number of processes: a pool, the same SQL text, and transactions whose end is always known.

Decisions worth remembering

* A broken connection undoes its transaction, unless COMMIT was already sent: then the end is unknown. A transaction is
  a list of statements, so it is run again until the end is known (`transact`). The lists are written so that the
  second run of a committed one finds a higher version or an existing key.
* Reads and writes are retried for some seconds: a restart of Postgres is a pause and not an error.
* READ COMMITTED everywhere. Where a decision depends on several rows, the statement before it changes a row that
  stands for all of them (a provider, a task), so that other transactions wait.
* Sessions have no state (no temporary tables, no session locks, no SET), so poolers in transaction mode work.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Collection, Sequence
from contextlib import AbstractContextManager
from functools import partial
from typing import Any, Final, TypeVar
from urllib.parse import parse_qsl, urlencode, urlsplit, urlunsplit

import asyncpg
from tenacity import AsyncRetrying, retry_if_exception_type, stop_after_delay, wait_random_exponential

from storage.errors import StorageError
from storage.sql.database import Outcome, Row, Statement, to_dicts
from storage.sql.pg_notify import PgNotifier
from storage.sql.postgres_errors import BROKEN, RetryableError, storage_error
from storage.sql.postgres_pool import Connection, PostgresPool
from storage.sql.postgres_transaction import (
    PostgresQuery,
    PostgresTransaction,
    parameter_values,
    to_postgres,
)
from storage.sql.pubsub import LocalChannels, Subscription
from storage.sql.row_changes import RowChanges

T = TypeVar("T")

RETRY_SECONDS: Final = 5.0
"""Retries of a statement while Postgres restarts; HTTP callers get a Retry-After afterwards."""
IDLE_SECONDS: Final = 3.0
"""A transaction waits only for its process; one that is silent for so long has stopped or died."""
LOCK_SECONDS: Final = 4.0
"""Longer than a dead process keeps a lock."""
STATEMENT_SECONDS: Final = 10.0
"""Time-out of one statement or commit, also of a server that does not respond."""
MIGRATION_SECONDS: Final = 3600.0
ECHO_SECONDS: Final = 5.0
CLOSE_SECONDS: Final = 5.0
MIN_SERVER_VERSION: Final = 14
MIGRATION_LOCK: Final = 0x62726F6B6572
"""An advisory lock of the whole database: "broker" in ASCII."""

_SET_LISTEN_URL: Final = (
    "set BROKER_DATABASE_LISTEN_URL to the address of Postgres itself, or to none, then processes notice each other's "
    "changes within two seconds"
)
FOREIGN_OPTIONS: Final = frozenset(
    """channel_binding connect_timeout keepalives keepalives_idle keepalives_interval keepalives_count gssencmode
    sslcompression client_encoding fallback_application_name tcp_user_timeout pgbouncer pool_timeout
    connection_limit""".split()
)


class PostgresDatabase:
    """One database of a Postgres server. `async with PostgresDatabase(url)` opens it.

    url: `postgresql://user:password@host/name`. listen_url: an address of Postgres itself, where `url` leads to a
    pooler in transaction mode; `none` without one: notifications then stay within their process. connections: at most,
    and one more for notifications. retry_seconds: of retries after a broken connection. idle_seconds: until Postgres
    ends a transaction whose process is silent. lock_seconds: for a lock. statement_seconds: for one statement.
    """

    skip_locked = " FOR UPDATE SKIP LOCKED"
    exclusive = f"SELECT pg_advisory_xact_lock({MIGRATION_LOCK})"

    def __init__(
        self,
        url: str,
        *,
        listen_url: str = "",
        connections: int = 10,
        retry_seconds: float = RETRY_SECONDS,
        idle_seconds: float = IDLE_SECONDS,
        lock_seconds: float = LOCK_SECONDS,
        statement_seconds: float = STATEMENT_SECONDS,
    ) -> None:
        self._url = _for_asyncpg(url)
        self._pooled = bool(listen_url)
        self._is_alone = listen_url == "none"
        self._retry_seconds = retry_seconds
        self._seconds = statement_seconds
        self._begin = (
            "BEGIN ISOLATION LEVEL READ COMMITTED READ WRITE; "
            f"SET LOCAL idle_in_transaction_session_timeout = {int(idle_seconds * 1000)}; "
            f"SET LOCAL lock_timeout = {int(lock_seconds * 1000)}"
        )
        self._begin_migration = "BEGIN ISOLATION LEVEL READ COMMITTED READ WRITE; SET LOCAL lock_timeout = 0"
        self._pool = PostgresPool(partial(self._connect, self._url), size=connections, wait_seconds=retry_seconds)
        self._channels = LocalChannels()
        self._notifier = PgNotifier(
            self._channels,
            partial(self._connect, _for_asyncpg(listen_url or url)),
            timeout_seconds=retry_seconds,
        )
        self._writes: set[asyncio.Task[list[Outcome]]] = set()
        self._openings: set[asyncio.Task[Connection]] = set()
        self._closed = False

    # -- opening and closing

    async def __aenter__(self) -> PostgresDatabase:
        self._notifying = (
            None if self._is_alone else asyncio.create_task(self._notifier.run(), name="postgres-notifier")
        )
        return self

    async def _connect(self, url: str) -> Connection:
        """Open a connection in a task of its own: asyncpg leaks one whose opening is cancelled, or its error."""
        opening: asyncio.Task[Connection] = asyncio.create_task(asyncpg.connect(url, **self._options()))
        self._openings.add(opening)
        opening.add_done_callback(self._openings.discard)
        try:
            return await asyncio.shield(opening)
        except asyncio.CancelledError:
            opening.add_done_callback(_terminate_opened)
            raise

    def _options(self) -> dict[str, Any]:
        # behind a pooler the next statement may run in another session, without the prepared statements of this one
        return {
            "statement_cache_size": 0 if self._pooled else 256,
            "command_timeout": self._seconds,
            "timeout": self._retry_seconds,
            "server_settings": {"application_name": "nano-banana-broker"},
        }

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Finish all transactions that were handed in, then close."""
        if self._closed:
            return
        self._closed = True
        await self.flush()
        if self._notifying is not None:
            self._notifying.cancel()
            await asyncio.gather(self._notifying, return_exceptions=True)
        try:
            async with asyncio.timeout(CLOSE_SECONDS):
                await self._pool.close()
        except BROKEN:
            self._pool.terminate()
        if self._openings:  # those that nothing waits for any more; they end by their time-out
            await asyncio.wait(self._openings)

    # -- reading

    async def fetch(self, sql: str, **params: Any) -> list[Row]:
        return await self._run_with_retries(partial(self._read, to_postgres(sql), params))

    async def fetch_report(self, sql: str, **params: Any) -> list[Row]:
        return await self.fetch(sql, **params)

    async def fetch_one(self, sql: str, **params: Any) -> Row | None:
        rows = await self.fetch(sql, **params)
        return rows[0] if rows else None

    async def _read(self, query: PostgresQuery, params: Any) -> list[Row]:
        values = parameter_values(query, params)

        async def read_in_transaction(connection: Connection) -> list[asyncpg.Record]:
            async with connection.transaction(readonly=True):
                return await connection.fetch(query.text, *values)

        # a pooler keeps both halves of a statement in one session only within a transaction
        read = read_in_transaction if self._pooled else lambda connection: connection.fetch(query.text, *values)
        return to_dicts(await self._pool.run(read))

    def fetch_at_once(self, sql: str, **params: Any) -> Sequence[tuple[Any, ...]] | None:
        """Return None: every read waits for the server."""

    # -- writing

    async def execute(self, sql: str, **params: Any) -> int:
        return (await self.transact(Statement(sql=sql, params=params)))[0].count

    async def transact(self, *statements: Statement, wake: Sequence[str] = ()) -> list[Outcome]:
        """Run all statements or none, as the module's docstring explains. A cancelled one goes on in the background."""
        if self._closed:
            raise StorageError("the database is closed")
        if not statements:
            return []
        write = asyncio.ensure_future(self._write(statements, wake))
        self._writes.add(write)
        write.add_done_callback(self._writes.discard)
        return await asyncio.shield(write)

    async def _write(self, statements: Sequence[Statement], wake: Sequence[str]) -> list[Outcome]:
        work = PostgresTransaction(statements, *self._frame(statements))
        outcomes = await self._run_with_retries(partial(self._pool.run, work))
        self.notify(*wake)
        return outcomes

    def _frame(self, statements: Sequence[Statement]) -> tuple[str | None, float]:
        """Return how the transaction begins, and the seconds for each of its statements.

        A single statement is a transaction by itself, in one round trip instead of three. A migration gets more time,
        and waits for the same migration in another process.
        """
        if statements[0].sql == self.exclusive:
            return self._begin_migration, MIGRATION_SECONDS
        return (None if len(statements) == 1 and not self._pooled else self._begin), self._seconds

    async def track_changes(self, table: str, *, but: Collection[str]) -> RowChanges | None:
        """Return None: other processes change rows at any time, and a notification may be lost."""

    async def flush(self) -> None:
        if self._writes:
            await asyncio.wait(self._writes)

    # -- notifications

    def notify(self, *channels: str) -> None:
        self._channels.notify(*channels)
        if channels and not self._is_alone:
            self._notifier.send(*channels)

    def listen(self, channel: str) -> AbstractContextManager[Subscription]:
        return self._channels.listen(channel)

    # -- health

    async def check(self, *, patience_seconds: float | None = None) -> None:
        """Raise `StorageError` with the cure if Postgres is not as the broker needs it. This takes one query."""
        row = await self.fetch_one(
            """SELECT current_setting('server_version_num')::bigint / 10000 AS version, pg_is_in_recovery() AS standby,
                current_setting('server_encoding') AS encoding, current_setting('synchronous_commit') AS commit"""
        )
        problem = _find_problem(dict(row or {}))
        if problem is None and not self._pooled and await self._is_pooled():
            problem = f"DATABASE_URL leads through a pooler, like pgbouncer: {_SET_LISTEN_URL}"
        if problem is None and not self._is_alone and not await self._notifier.is_listening(ECHO_SECONDS):
            problem = f"LISTEN does not work here: {_SET_LISTEN_URL}"
        if problem is not None:
            raise StorageError(problem)

    async def check_files(self) -> None:
        """Return at once: the server keeps its files, and this process has none of them open."""

    async def _is_pooled(self) -> bool:
        """Return whether a pooler is in between: the session is then not the one of the handshake."""

        async def compare(connection: Connection) -> bool:
            pid: int = await connection.fetchval("SELECT pg_backend_pid()")
            return pid != connection.get_server_pid()

        return await self._pool.run(compare)

    async def read_clock(self) -> float:
        row = await self.fetch_one("SELECT extract(epoch FROM clock_timestamp())::double precision AS now")
        return float((row or {})["now"])

    async def describe(self) -> dict[str, str]:
        row = await self.fetch_one(
            """SELECT current_database() AS database, current_setting('server_version') AS "Postgres",
                pg_size_pretty(pg_database_size(current_database())) AS size,
                (SELECT count(*) FROM pg_stat_activity WHERE datname = current_database())
                    || ' of this database; the server takes ' || current_setting('max_connections') AS connections"""
        )
        return dict(row or {})

    # -- retries

    async def _run_with_retries(self, work: Callable[[], Awaitable[T]]) -> T:
        """Run the work; retry errors that may pass for `retry_seconds`."""
        began = time.monotonic()
        try:
            try:
                return await work()  # without tenacity, which costs as much as a short query
            except RetryableError:
                if time.monotonic() - began > self._retry_seconds:  # the server did not respond at all
                    raise
                tries = AsyncRetrying(
                    retry=retry_if_exception_type(RetryableError),
                    stop=stop_after_delay(self._retry_seconds),
                    wait=wait_random_exponential(multiplier=0.05, max=0.5),
                    reraise=True,
                )
                return await tries(work)
        except RetryableError as error:
            raise storage_error(error.cause) from None
        except (asyncpg.PostgresError, asyncpg.InterfaceError, ValueError) as error:
            raise storage_error(error) from None


def _terminate_opened(opening: asyncio.Task[Connection]) -> None:
    """Close a connection that nothing waits for any more."""
    if not opening.cancelled() and opening.exception() is None:
        opening.result().terminate()


def _for_asyncpg(url: str) -> str:
    """Remove options that only libpq or other drivers understand; hosted databases put them into their URLs."""
    parts = urlsplit(url)
    options = [(name, value) for name, value in parse_qsl(parts.query) if name not in FOREIGN_OPTIONS]
    return urlunsplit(parts._replace(query=urlencode(options)))


def _find_problem(server: dict[str, Any]) -> str | None:
    if server["version"] < MIN_SERVER_VERSION:
        return f"Postgres {server['version']} is too old: use {MIN_SERVER_VERSION} or newer"
    if server["standby"]:
        return "this Postgres is a standby, which cannot be written to: let DATABASE_URL lead to the primary"
    if server["encoding"] != "UTF8":
        return f"the database has the encoding {server['encoding']}: make one with ENCODING 'UTF8'"
    if server["commit"] == "off":
        return "synchronous_commit is off, so a power cut loses orders: ALTER DATABASE … SET synchronous_commit = on"
    return None
