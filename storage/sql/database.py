"""The contract every database keeps: read, change together or not at all, wake and sleep."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any, Protocol

Row = Mapping[str, Any]


class Stale(Exception):
    """A statement with `must_change` changed nothing: somebody was quicker. Nothing of the transaction happened."""


@dataclass(frozen=True, kw_only=True)
class Statement:
    """One SQL statement with `:name` parameters.

    must_change: changing no row makes the whole transaction raise `Stale`.
    """

    sql: str
    params: Mapping[str, Any] = field(default_factory=dict)
    must_change: bool = False


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What one statement did: rows changed, and the rows of its RETURNING clause."""

    count: int
    rows: Sequence[Row] = ()


class Bell(Protocol):
    """Rings when its channel is woken; rings that nobody waited for are kept as one."""

    async def wait(self, timeout: float) -> bool:
        """True as soon as it rang, False when `timeout` seconds are over."""
        ...


class Database(Protocol):
    """A SQL database, used with one SQL text on every implementation.

    Every implementation keeps these promises:

    * parameters are named (`:name`); time is a parameter, never the database's own clock;
    * `transact` returns only after its changes survive a power cut, and applies all of them or none;
    * a failing transaction never takes another one along, even where several share one commit;
    * a transaction of which nobody can tell whether it happened is run again, so that one that had happened is refused:
      write it so that a second run is (by compare-and-set or a new key), and take `Stale` as "look again";
    * a cancelled caller may leave the transaction done or undone, but never half done;
    * channels named in `wake` are woken after the commit, in every process where the store can tell them.

    skip_locked: appended to the inner SELECT of a claim; empty where one writer makes it needless.
    exclusive: a statement that makes others who run it wait until this transaction has ended, for migrations.
    """

    skip_locked: str
    exclusive: str

    async def fetch(self, sql: str, **params: Any) -> list[Row]:
        """All rows of a query. May take a while; never blocks the event loop."""
        ...

    async def point(self, sql: str, **params: Any) -> Row | None:
        """The first row of a look-up by a unique index: cheap enough to be run in the loop itself."""
        ...

    async def execute(self, sql: str, **params: Any) -> int:
        """One statement as a transaction of its own; the number of rows it changed."""
        ...

    async def transact(self, *statements: Statement, wake: Sequence[str] = ()) -> list[Outcome]:
        """All statements or none, in order. Raises `Stale` if one with `must_change` changed nothing."""
        ...

    async def settled(self) -> None:
        """Wait until nothing that was handed in is still to be written, also of callers that were cancelled."""
        ...

    def wake(self, *channels: str) -> None:
        """Wake everybody who sleeps on these channels."""
        ...

    def listen(self, channel: str) -> AbstractContextManager[Bell]:
        """Hear every wake of `channel` from now on. Listen first, look second, wait third: no wake is missed."""
        ...

    async def check(self) -> None:
        """Raise `StorageError` with the cure if the store is damaged or out of reach."""
        ...

    async def now(self) -> float:
        """What time it is there, in seconds since the epoch: only to see how far our clocks are apart."""
        ...

    async def facts(self) -> dict[str, str]:
        """What an operator wants to know of it: kind and version, where it is, how large. Never a password."""
        ...

    async def close(self) -> None: ...
