"""Connections to Postgres, each used by one transaction at a time.

In place of asyncpg's pool, whose acquire and release (a proxy, a shielded task) take longer than a look-up by id.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Any, Final, TypeAlias, TypeVar

import asyncpg

from storage.sql.postgres_errors import BROKEN, UNAVAILABLE, UNDONE, RetryableError

Connection: TypeAlias = "asyncpg.Connection[Any]"
T = TypeVar("T")

MAX_IDLE_SECONDS: Final = 300.0
"""A firewall may have forgotten an older connection, whose next statement would wait for its time-out."""


class PostgresPool:
    """Connections that are opened when needed and kept for the next transaction.

    connect: opens one. size: how many are open at most. wait_seconds: for one, while all are in use.
    """

    def __init__(self, connect: Callable[[], Awaitable[Connection]], *, size: int, wait_seconds: float) -> None:
        self._connect = connect
        self._size = size
        self._wait_seconds = wait_seconds
        self._places = asyncio.Semaphore(size)
        self._idle: deque[tuple[float, Connection]] = deque()
        """With the moment of its return; the last one returned is used next."""
        self._closed = False

    async def run(self, work: Callable[[Connection], Awaitable[T]]) -> T:
        """Run one transaction on a connection; one that broke, or was left in the middle, is dropped.

        Raises `RetryableError` for errors after which the same work may be run once more.
        """
        try:
            await self._take_place()
            try:
                connection = self._find_idle() or await self._connect()
                try:
                    return await work(connection)
                # a value that asyncpg cannot send; the caller is cancelled
                except (ValueError, asyncio.CancelledError, *BROKEN, *UNDONE):
                    connection.terminate()
                    raise
                finally:
                    self._keep(connection)
            finally:
                self._places.release()
        except (*UNAVAILABLE, *UNDONE) as error:
            raise RetryableError(error) from None

    async def close(self) -> None:
        """Close all connections, each when its transaction has ended."""
        self._closed = True
        for _ in range(self._size):
            await self._places.acquire()
        while self._idle:
            _, connection = self._idle.pop()
            await connection.close()

    def terminate(self) -> None:
        """Drop the connections that are not in use."""
        while self._idle:
            self._idle.pop()[1].terminate()

    async def _take_place(self) -> None:
        if self._closed:
            raise asyncpg.InterfaceError("the connections are closed")
        if not self._places.locked():
            await self._places.acquire()
            return
        async with asyncio.timeout(self._wait_seconds):
            await self._places.acquire()

    def _find_idle(self) -> Connection | None:
        oldest = time.monotonic() - MAX_IDLE_SECONDS
        while self._idle and self._idle[0][0] < oldest:
            self._idle.popleft()[1].terminate()
        while self._idle:
            _, connection = self._idle.pop()
            if not connection.is_closed():
                return connection
        return None

    def _keep(self, connection: Connection) -> None:
        if connection.is_closed():
            return
        if connection.is_in_transaction():  # its end failed
            connection.terminate()
        else:
            self._idle.append((time.monotonic(), connection))
