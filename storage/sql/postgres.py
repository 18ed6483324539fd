"""Postgres for any number of processes: a pool, the same SQL text, and transactions whose end is always known.

Decisions worth remembering

* A connection that breaks undoes its transaction, unless COMMIT was already sent: then nobody can tell. A transaction
  is a list of statements, so it is simply run again, until that is known (`transact`). The lists are such that the
  second run of one that had happened finds what the first one left: a version that went on, or a key that is there.
* Reads and writes are repeated for some seconds: a restart of Postgres is a pause and not an error.
* READ COMMITTED everywhere. Where a decision depends on what several rows say together, the statement before it
  changes a row that stands for all of them (a lane, a task), and so makes others wait.
* Sessions have no state (no temporary tables, no session locks, no SET), so poolers in transaction mode will do.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AbstractContextManager, asynccontextmanager, suppress
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any, Final, TypeAlias, TypeVar
from urllib.parse import parse_qsl, urlencode, urlsplit, urlunsplit

import asyncpg
from tenacity import AsyncRetrying, retry_if_exception_type, stop_after_delay, wait_random_exponential

from storage.errors import NoSuchTable, StorageError, StorageFull
from storage.sql.database import Bell, Outcome, Row, Stale, Statement
from storage.sql.pg_notify import Notices
from storage.sql.pubsub import Wakes

T = TypeVar("T")
Connection: TypeAlias = "asyncpg.Connection[Any] | asyncpg.pool.PoolConnectionProxy[Any]"

PATIENCE_SECONDS: Final = 5.0
"""How long a statement is tried again while Postgres restarts; callers over HTTP are then told to come back."""
IDLE_SECONDS: Final = 3.0
"""A transaction waits for nothing but us; who is silent in the middle of one for so long is stopped or dead."""
LOCK_SECONDS: Final = 4.0
"""Longer than the dead keep a lock."""
STATEMENT_SECONDS: Final = 10.0
"""For one statement or commit; a server that does not even answer is given up by then."""
MIGRATION_SECONDS: Final = 3600.0
ECHO_SECONDS: Final = 5.0
CLOSE_SECONDS: Final = 5.0
OLDEST_VERSION: Final = 14
MIGRATION_LOCK: Final = 0x62726F6B6572
"""An advisory lock of the whole database: "broker" in ASCII."""

FOREIGN_OPTIONS: Final = frozenset(
    """channel_binding connect_timeout keepalives keepalives_idle keepalives_interval keepalives_count gssencmode
    sslcompression client_encoding fallback_application_name tcp_user_timeout pgbouncer pool_timeout
    connection_limit""".split()
)

BROKEN = (
    asyncpg.PostgresConnectionError,
    asyncpg.AdminShutdownError,
    asyncpg.CrashShutdownError,
    asyncpg.IdleInTransactionSessionTimeoutError,
    asyncpg.StatementCompletionUnknownError,
    asyncpg.InternalClientError,
    asyncpg.InterfaceError,
    OSError,  # a time-out is one
)
"""The connection is gone; what it was doing may have happened."""
UNDONE = (
    asyncpg.SerializationError,
    asyncpg.DeadlockDetectedError,
    asyncpg.LockNotAvailableError,
    asyncpg.QueryCanceledError,
    asyncpg.InvalidCachedStatementError,
    asyncpg.ReadOnlySQLTransactionError,
)
"""Nothing happened, and another try may go better."""
AWAY = (*BROKEN, asyncpg.CannotConnectNowError, asyncpg.TooManyConnectionsError)
"""No connection can be had now."""


class _Again(Exception):
    """Try once more. said: what Postgres, or the network, said."""

    def __init__(self, said: BaseException) -> None:
        super().__init__(type(said).__name__)
        self.said = said


@dataclass(frozen=True)
class _Query:
    """A statement in Postgres' own spelling: `$1` for `:name`."""

    text: str
    names: tuple[str, ...]
    has_rows: bool


_PARAMETER = re.compile(r"'(?:[^']|'')*'|(?<![:\w]):([a-z_][a-z0-9_]*)")
_ROWS = re.compile(r"\bRETURNING\b|^\s*SELECT\b", re.IGNORECASE)


@lru_cache(maxsize=2048)
def _query(sql: str) -> _Query:
    numbers: dict[str, int] = {}

    def numbered(match: re.Match[str]) -> str:
        return f"${numbers.setdefault(match[1], len(numbers) + 1)}" if match[1] else match[0]

    text = _PARAMETER.sub(numbered, sql)
    return _Query(text, tuple(numbers), has_rows=_ROWS.search(sql) is not None)


def _values(query: _Query, params: Any) -> list[Any]:
    # Postgres has no NUL in texts; what asks for one, or brings one, means this
    return [value.replace("\0", "\ufffd") if isinstance(value := params[n], str) else value for n in query.names]


class PostgresDatabase:
    """One database of a Postgres server. `async with PostgresDatabase(url)` opens it, or `await open()` and `close()`.

    url: `postgresql://user:password@host/name`. listen_url: an address that leads to Postgres itself, where `url` leads
    to a pooler in transaction mode; `none` where there is none, then wakes stay within their process. connections: how
    many at the most, besides one for wakes. patience: seconds that a broken connection is tried again. idle: seconds
    after which Postgres ends a transaction whose process is silent. statement: seconds for one statement.
    """

    skip_locked = " FOR UPDATE SKIP LOCKED"
    exclusive = f"SELECT pg_advisory_xact_lock({MIGRATION_LOCK})"

    def __init__(
        self,
        url: str,
        *,
        listen_url: str = "",
        connections: int = 10,
        patience: float = PATIENCE_SECONDS,
        idle: float = IDLE_SECONDS,
        statement: float = STATEMENT_SECONDS,
    ) -> None:
        self._url = _for_asyncpg(url)
        self._pooled = bool(listen_url)
        self._deaf = listen_url == "none"
        self._connections = connections
        self._patience = patience
        self._seconds = statement
        self._begin = (
            "BEGIN ISOLATION LEVEL READ COMMITTED READ WRITE; "
            f"SET LOCAL idle_in_transaction_session_timeout = {int(idle * 1000)}; "
            f"SET LOCAL lock_timeout = {int(LOCK_SECONDS * 1000)}"
        )
        self._begin_migration = "BEGIN ISOLATION LEVEL READ COMMITTED READ WRITE; SET LOCAL lock_timeout = 0"
        self._wakes = Wakes()
        self._notices = Notices(self._wakes, partial(self._connect, _for_asyncpg(listen_url or url)), patience=patience)
        self._writes: set[asyncio.Task[list[Outcome]]] = set()
        self._closed = False

    # -- opening and closing

    async def open(self) -> PostgresDatabase:
        self._pool = await self._tried(self._open_pool)
        self._telling = None if self._deaf else asyncio.create_task(self._notices.run(), name="postgres-notices")
        return self

    async def _open_pool(self) -> asyncpg.Pool[Any]:
        try:
            # none in reserve: asyncpg does not close a spare connection that it is making while the pool closes
            return await asyncpg.create_pool(
                self._url, min_size=0, max_size=self._connections, reset=_leave_as_it_is, **self._options()
            )
        except ValueError:  # the address itself is wrong
            raise
        except AWAY as error:
            raise _Again(error) from None

    async def _connect(self, url: str) -> asyncpg.Connection[Any]:
        connection: asyncpg.Connection[Any] = await asyncpg.connect(url, **self._options())
        return connection

    def _options(self) -> dict[str, Any]:
        # behind a pooler the next statement may meet another session, which knows nothing of what this one prepared
        return {
            "statement_cache_size": 0 if self._pooled else 256,
            "command_timeout": self._seconds,
            "timeout": self._patience,
            "server_settings": {"application_name": "nano-banana-broker"},
        }

    async def __aenter__(self) -> PostgresDatabase:
        return await self.open()

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Everything handed in before is written first."""
        if self._closed:
            return
        self._closed = True
        await self.settled()
        if self._telling is not None:
            self._telling.cancel()
            await asyncio.gather(self._telling, return_exceptions=True)
        try:
            async with asyncio.timeout(CLOSE_SECONDS):
                await self._pool.close()
        except BROKEN:
            self._pool.terminate()

    # -- reading

    async def fetch(self, sql: str, **params: Any) -> list[Row]:
        return await self._tried(partial(self._read, _query(sql), params))

    async def point(self, sql: str, **params: Any) -> Row | None:
        rows = await self.fetch(sql, **params)
        return rows[0] if rows else None

    async def _read(self, query: _Query, params: Any) -> list[Row]:
        values = _values(query, params)
        async with self._session() as connection:
            if not self._pooled:
                return [dict(record) for record in await connection.fetch(query.text, *values)]
            async with connection.transaction(readonly=True):  # keeps both halves of a statement in one session
                return [dict(record) for record in await connection.fetch(query.text, *values)]

    # -- writing

    async def execute(self, sql: str, **params: Any) -> int:
        return (await self.transact(Statement(sql=sql, params=params)))[0].count

    async def transact(self, *statements: Statement, wake: Sequence[str] = ()) -> list[Outcome]:
        """All or nothing, and known which: see the module's docstring. Cancelled, it goes on by itself."""
        if self._closed:
            raise StorageError("the database is closed")
        if not statements:
            return []
        write = asyncio.ensure_future(self._write(statements, wake))
        self._writes.add(write)
        write.add_done_callback(self._written)
        return await asyncio.shield(write)

    def _written(self, write: asyncio.Task[list[Outcome]]) -> None:
        self._writes.discard(write)
        if not write.cancelled():
            write.exception()  # whoever waited may be gone, and does not need it any more

    async def _write(self, statements: Sequence[Statement], wake: Sequence[str]) -> list[Outcome]:
        outcomes = await self._tried(_Writing(statements, self._session, *self._frame(statements)))
        self.wake(*wake)
        return outcomes

    def _frame(self, statements: Sequence[Statement]) -> tuple[str | None, float]:
        """How the transaction begins, and the seconds for each statement of it.

        A single statement is a transaction by itself, in one round trip instead of three. A migration takes its time,
        and waits for whoever runs it just now.
        """
        if statements[0].sql == self.exclusive:
            return self._begin_migration, MIGRATION_SECONDS
        return (None if len(statements) == 1 and not self._pooled else self._begin), self._seconds

    async def settled(self) -> None:
        if self._writes:
            await asyncio.wait(self._writes)

    # -- waking

    def wake(self, *channels: str) -> None:
        self._wakes.wake(*channels)
        if channels and not self._deaf:
            self._notices.tell(*channels)

    def listen(self, channel: str) -> AbstractContextManager[Bell]:
        return self._wakes.listen(channel)

    # -- being well

    async def check(self) -> None:
        """Raise `StorageError` with the cure if Postgres is not as the broker needs it."""
        row = await self.point(
            """SELECT current_setting('server_version_num')::bigint / 10000 AS version, pg_is_in_recovery() AS standby,
                current_setting('server_encoding') AS encoding, current_setting('synchronous_commit') AS commit"""
        )
        complaint = _complaint(dict(row or {}))
        if complaint is None and not self._pooled and await self._is_pooled():
            complaint = (
                "DATABASE_URL leads through a pooler, like pgbouncer: set BROKER_DATABASE_LISTEN_URL to the address of "
                "Postgres itself, or to none, then processes notice each other's news within two seconds"
            )
        if complaint is None and not self._deaf and not await self._notices.heard(ECHO_SECONDS):
            complaint = (
                "LISTEN does not work here: set BROKER_DATABASE_LISTEN_URL to the address of Postgres itself, or to "
                "none, then processes notice each other's news within two seconds"
            )
        if complaint is not None:
            raise StorageError(complaint)

    async def _is_pooled(self) -> bool:
        """Whether somebody stands in between: then the session is not the one that we were greeted by."""
        async with self._session() as connection:
            pid: int = await connection.fetchval("SELECT pg_backend_pid()")
            return pid != connection.get_server_pid()

    async def now(self) -> float:
        row = await self.point("SELECT extract(epoch FROM clock_timestamp())::double precision AS now")
        return float((row or {})["now"])

    async def facts(self) -> dict[str, str]:
        row = await self.point(
            """SELECT current_database() AS name, current_setting('server_version') AS version,
                pg_size_pretty(pg_database_size(current_database())) AS size,
                (SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()) AS sessions,
                current_setting('max_connections') AS most"""
        )
        facts = dict(row or {})
        return {
            "database": facts["name"],
            "Postgres": facts["version"],
            "size": facts["size"],
            "connections": f"{facts['sessions']} of this database; the server takes {facts['most']}",
        }

    # -- trying again

    @asynccontextmanager
    async def _session(self) -> AsyncIterator[Connection]:
        """A connection for one transaction. One that broke, or was left in the middle, is not used again."""
        try:
            connection = await self._pool.acquire(timeout=self._patience)
        except AWAY as error:
            raise _Again(error) from None
        try:
            yield connection
        except (ValueError, asyncio.CancelledError):  # a value that asyncpg cannot send; we are being stopped
            _drop(connection)
            raise
        except (*BROKEN, *UNDONE) as error:
            _drop(connection)
            raise _Again(error) from None
        finally:
            with suppress(*BROKEN):  # it is closed on the way now and then, which may go wrong as well
                await self._pool.release(connection)

    async def _tried(self, work: Callable[[], Awaitable[T]]) -> T:
        """Again and again until it went well, went wrong for good, or patience is over."""
        begun = time.monotonic()
        try:
            try:
                return await work()
            except _Again:
                if time.monotonic() - begun > self._patience:  # it did not say no, it said nothing
                    raise
                return await self._again(work)
        except _Again as error:
            raise _told(error.said) from None
        except (asyncpg.PostgresError, asyncpg.InterfaceError, ValueError) as error:
            raise _told(error) from None

    async def _again(self, work: Callable[[], Awaitable[T]]) -> T:
        tries = AsyncRetrying(
            retry=retry_if_exception_type(_Again),
            stop=stop_after_delay(self._patience),
            wait=wait_random_exponential(multiplier=0.05, max=0.5),
            reraise=True,
        )
        return await tries(work)


class _Writing:
    """One transaction, and what earlier runs of it may have left."""

    def __init__(
        self, statements: Sequence[Statement], session: Callable[[], Any], begin: str | None, seconds: float
    ) -> None:
        self._statements = statements
        self._session = session
        self._begin = begin
        self._seconds = seconds
        self._doubtful: list[Outcome] | None = None

    async def __call__(self) -> list[Outcome]:
        async with self._session() as connection:
            try:
                return await (self._at_once(connection) if self._begin is None else self._in_turn(connection))
            except asyncpg.UniqueViolationError:
                if self._doubtful is None:
                    raise
                return self._doubtful  # nobody else has our keys: the run before had happened after all

    async def _at_once(self, connection: Connection) -> list[Outcome]:
        (statement,) = self._statements
        try:
            return [await _run(connection, statement, self._seconds)]
        except BROKEN:
            self._doubtful = [Outcome(count=1)]
            raise

    async def _in_turn(self, connection: Connection) -> list[Outcome]:
        try:
            await connection.execute(self._begin or "")
            outcomes = [await _run(connection, statement, self._seconds) for statement in self._statements]
        except (Stale, asyncpg.PostgresError):
            with suppress(*BROKEN):
                await connection.execute("ROLLBACK")
            raise
        try:
            await connection.execute("COMMIT")
        except BROKEN:
            self._doubtful = outcomes
            raise
        return outcomes


async def _run(connection: Connection, statement: Statement, seconds: float) -> Outcome:
    query = _query(statement.sql)
    values = _values(query, statement.params)
    if query.has_rows:
        rows = [dict(record) for record in await connection.fetch(query.text, *values, timeout=seconds)]
        outcome = Outcome(count=len(rows), rows=rows)
    else:
        status = await connection.execute(query.text, *values, timeout=seconds)
        outcome = Outcome(count=_count(status))
    if statement.must_change and outcome.count == 0:
        raise Stale
    return outcome


def _count(status: str) -> int:
    """From `UPDATE 3`, `INSERT 0 1`, `CREATE TABLE`."""
    last = status.rpartition(" ")[2]
    return int(last) if last.isdigit() else 0


async def _leave_as_it_is(_: Connection) -> None:
    """Sessions have no state that the next user could stumble over; asking the server costs a round trip."""


def _drop(connection: Connection) -> None:
    """Use it no more. One that broke by itself has gone back already."""
    with suppress(asyncpg.InterfaceError):
        connection.terminate()


def _for_asyncpg(url: str) -> str:
    """Without the options that only libpq, or only some other driver, understands; hosted databases hand them out."""
    parts = urlsplit(url)
    options = [(name, value) for name, value in parse_qsl(parts.query) if name not in FOREIGN_OPTIONS]
    return urlunsplit(parts._replace(query=urlencode(options)))


def _complaint(facts: dict[str, Any]) -> str | None:
    if facts["version"] < OLDEST_VERSION:
        return f"Postgres {facts['version']} is too old: use {OLDEST_VERSION} or newer"
    if facts["standby"]:
        return "this Postgres is a standby, which cannot be written to: let DATABASE_URL lead to the primary"
    if facts["encoding"] != "UTF8":
        return f"the database has the encoding {facts['encoding']}: make one with ENCODING 'UTF8'"
    if facts["commit"] == "off":
        return "synchronous_commit is off, so a power cut loses orders: ALTER DATABASE … SET synchronous_commit = on"
    return None


_CURES: Final[tuple[tuple[type[BaseException], str], ...]] = (
    (asyncpg.InvalidAuthorizationSpecificationError, "Postgres refuses us ({}): check DATABASE_URL"),
    (asyncpg.InvalidCatalogNameError, "Postgres refuses us ({}): check DATABASE_URL"),
    (asyncpg.InsufficientPrivilegeError, "Postgres forbids it ({}): GRANT that to the user of DATABASE_URL"),
    (asyncpg.UndefinedObjectError, "Postgres does not know something ({}): are the options of DATABASE_URL right?"),
)


def _told(error: BaseException) -> StorageError:
    """Postgres' error in the words of the contract; never with a value, which may be anybody's prompt."""
    if isinstance(error, asyncpg.DiskFullError):
        return StorageFull("the disk of the database is full: free some space")
    if isinstance(error, asyncpg.UndefinedTableError):
        return NoSuchTable("the database has no tables yet: run broker db upgrade")
    for kind, cure in _CURES:
        if isinstance(error, kind):
            return StorageError(cure.format(error.args[0]))
    return StorageError(_in_general(error))


def _in_general(error: BaseException) -> str:
    name = type(error).__name__
    if isinstance(error, asyncpg.PostgresError):
        return f"the database cannot do it now ({name}, {error.sqlstate}): look at the log of Postgres"
    if isinstance(error, ValueError):
        return f"the database takes no such value, or no such address ({name}): check DATABASE_URL"
    return f"the database cannot be reached ({name}): does Postgres run, is DATABASE_URL right?"
