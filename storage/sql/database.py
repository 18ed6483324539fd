"""Contract of a database: queries, transactions, notifications."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Final, NamedTuple, Protocol

from storage.sql.pubsub import Subscription
from storage.sql.row_changes import RowChanges

Row = Mapping[str, Any]

_NO_PARAMS: Final[Mapping[str, Any]] = {}


class Statement(NamedTuple):
    """One SQL statement with `:name` parameters; a tuple, which is made in a third of the time of a frozen dataclass.

    must_change: changing no row makes the whole transaction raise `Stale`.
    may_use_reserve: the whole transaction may use disk space that is kept for what must not be lost.
    """

    sql: str
    params: Mapping[str, Any] = _NO_PARAMS
    must_change: bool = False
    may_use_reserve: bool = False
    row: tuple[Any, ...] = ()
    """Of an INSERT with `VALUES (:a, 0, :b)` and no other parameters, in the place of `params`: their values, in order.
    Such statements of one transaction do not depend on each other, so that equal ones of several can run as one."""


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """Result of one statement: rows changed, and the rows of its RETURNING clause."""

    count: int
    rows: Sequence[Row] = ()


class NamedRow(Protocol):
    """Row of a driver: its values in order, and the names of the columns."""

    def keys(self) -> Iterable[str]: ...
    def __iter__(self) -> Iterator[Any]: ...


def to_dicts(rows: Sequence[NamedRow]) -> list[Row]:
    """Return the rows of one query as dictionaries: the drivers' own look a name up more slowly."""
    if not rows:
        return []
    names = tuple(rows[0].keys())
    return [dict(zip(names, row, strict=True)) for row in rows]


class Database(Protocol):
    """SQL database; the same SQL text runs on every implementation.

    Every implementation keeps these promises:

    * parameters are named (`:name`); time is a parameter, never the database's own clock;
    * `transact` returns only after its changes survive a power cut, and applies all of them or none;
    * a failing transaction never fails another one, even where several share one commit;
    * a transaction whose end is unknown is run again: write it so that the second run of a committed one fails (by
      compare-and-set or a new key), and read the rows again after `Stale`;
    * a cancelled caller may leave the transaction done or undone, but never half done;
    * channels in `wake` are notified after the commit, in every process that the store can reach.

    skip_locked: appended to the inner SELECT of a claim; empty where there is one writer.
    exclusive: a statement that makes its other callers wait until this transaction ends, for migrations.
    """

    skip_locked: str
    exclusive: str

    async def fetch(self, sql: str, **params: Any) -> list[Row]:
        """Return all rows of a query, without blocking the event loop."""

    async def fetch_report(self, sql: str, **params: Any) -> list[Row]:
        """Return all rows of a query that may take seconds, without holding up other queries."""

    async def fetch_one(self, sql: str, **params: Any) -> Row | None:
        """Return the first row of a look-up by index, or None; fast enough to run in the event loop."""

    def fetch_at_once(self, sql: str, **params: Any) -> Sequence[tuple[Any, ...]] | None:
        """Return the rows of a look-up by index as tuples; None where that means to wait."""

    async def execute(self, sql: str, **params: Any) -> int:
        """Run one statement as a transaction; return the number of rows that it changed."""

    async def transact(self, *statements: Statement, wake: Sequence[str] = ()) -> list[Outcome]:
        """Run all statements in order, or none. Raises `Stale` if one with `must_change` changed nothing."""

    async def track_changes(self, table: str, *, but: Collection[str]) -> RowChanges | None:
        """Track the changes of a table's rows from now on, by their `id`; None where they cannot be known.

        but: columns whose changes do not count. At most once, after migrations.
        """

    async def flush(self) -> None:
        """Wait until all that was handed in is written, also by callers that were cancelled."""

    def notify(self, *channels: str) -> None:
        """Notify the listeners of these channels."""

    def listen(self, channel: str) -> AbstractContextManager[Subscription]:
        """Subscribe to a channel. Listen first, query second, wait third: then no notification is missed."""

    async def check(self, *, patience_seconds: float | None = None) -> None:
        """Raise `StorageError` with the cure if the store is damaged or out of reach.

        patience_seconds: a check that takes longer goes on; if it finds damage, `check_files` and writes raise.
        """

    async def check_files(self) -> None:
        """Raise `DatabaseReplaced` if the files are no longer those that were opened, or the damage that was found.

        Writes then raise it, too.
        """

    async def read_clock(self) -> float:
        """Return the database's time in seconds since the epoch, to measure the clock skew."""

    async def describe(self) -> dict[str, str]:
        """Return kind, version, location and size for the operator; never a password."""

    async def close(self) -> None: ...
