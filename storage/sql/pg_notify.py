"""Wakes between processes: what one of them committed rings the bells of all the others (LISTEN and NOTIFY).

Decisions worth remembering

* A wake is told after the commit, by one connection that does nothing else. NOTIFY inside a transaction takes a lock
  of the whole server that is held until the commit is on disk, so writers would commit one after the other; told
  afterwards, everything that came together is one message. What is lost with a process that dies in between is found
  by those who look again by themselves.
* Nobody relies on being told: workers look every second, those who wait every two.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import suppress
from typing import Any, Final

import asyncpg

from storage.sql.pubsub import Wakes

CHANNEL: Final = "broker_wakes"
LONGEST_PAYLOAD: Final = 7900
"""Postgres allows 7999 bytes."""
HEARTBEAT_SECONDS: Final = 15.0
AGAIN_SECONDS: Final = 0.5
ECHO: Final = "echo"
"""A channel that nobody listens on: it only shows that telling and hearing work."""

Connect = Callable[[], Awaitable["asyncpg.Connection[Any]"]]
TROUBLE: Final = (asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError, OSError, ValueError)


class Notices:
    """Tells other processes of our wakes, and rings our bells for theirs.

    connect: opens a connection of its own, which must lead to Postgres itself: a pooler in transaction mode hands
    every NOTIFY to whoever comes by. patience: seconds for one message.
    """

    def __init__(self, wakes: Wakes, connect: Connect, *, patience: float) -> None:
        self._wakes = wakes
        self._connect = connect
        self._patience = patience
        self._untold: set[str] = set()
        self._news = asyncio.Event()
        self._echo = asyncio.Event()
        self._pid = 0

    def tell(self, *channels: str) -> None:
        """Soon, and once however often it was asked for until then."""
        self._untold.update(channels)
        self._news.set()

    async def run(self) -> None:
        """Until it is cancelled. A broken connection is made anew; what was said meanwhile others look up."""
        while True:
            with suppress(*TROUBLE):
                await self._work()
            await asyncio.sleep(AGAIN_SECONDS)

    async def heard(self, seconds: float) -> bool:
        """Whether what we tell comes back within `seconds`: only then will others hear it."""
        self.tell(ECHO)
        try:
            async with asyncio.timeout(seconds):
                await self._echo.wait()
        except TimeoutError:
            return False
        return True

    async def _work(self) -> None:
        connection = await self._connected()
        try:
            self._pid = connection.get_server_pid()
            connection.add_termination_listener(lambda _: self._news.set())  # a broken line is news, too
            await connection.add_listener(CHANNEL, self._hear)
            self._wakes.wake_all()
            while not connection.is_closed():
                await self._tell_next(connection)
        finally:
            connection.terminate()

    async def _connected(self) -> asyncpg.Connection[Any]:
        """asyncpg forgets to close a connection that is cancelled while it is made: so it is made first."""
        connecting = asyncio.ensure_future(self._connect())
        try:
            return await asyncio.shield(connecting)
        except asyncio.CancelledError:
            with suppress(*TROUBLE):
                (await connecting).terminate()
            raise

    async def _tell_next(self, connection: asyncpg.Connection[Any]) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(HEARTBEAT_SECONDS):
                await self._news.wait()
        self._news.clear()
        channels, self._untold = self._untold, set()
        if not channels:
            await connection.execute("SELECT 1", timeout=self._patience)  # it may be dead without knowing it
        try:
            for payload in _payloads(sorted(channels)):
                await connection.execute("SELECT pg_notify($1, $2)", CHANNEL, payload, timeout=self._patience)
        except BaseException:
            self.tell(*channels)
            raise

    def _hear(self, _: object, pid: int, __: str, payload: object) -> None:
        channels = str(payload).split()
        if ECHO in channels:
            self._echo.set()
        if pid != self._pid:  # our own bells rang when we committed
            self._wakes.wake(*channels)


def _payloads(channels: Sequence[str]) -> Iterator[str]:
    """Names in as few messages as they fit in; a name has no blanks."""
    message = ""
    for channel in channels:
        if message and len(message) + 1 + len(channel) > LONGEST_PAYLOAD:
            yield message
            message = ""
        message = f"{message} {channel}" if message else channel
    if message:
        yield message
