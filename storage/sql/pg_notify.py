"""Notifications between processes by LISTEN and NOTIFY.

Decisions worth remembering

* NOTIFY is sent after the commit, by one connection that does nothing else. Inside a transaction it takes a lock of the
  whole server that is held until the commit is on disk, so writers would commit one after the other; sent afterwards,
  all channels of a moment share one message. What a dying process does not send is found by polling.
* Nothing depends on a notification: workers poll every second, long polls every two.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import suppress
from typing import Any, Final

import asyncpg

from storage.sql.pubsub import LocalChannels

CHANNEL: Final = "broker_wakes"
MAX_PAYLOAD_BYTES: Final = 7900
"""Postgres allows 7999 bytes."""
HEARTBEAT_SECONDS: Final = 15.0
RECONNECT_SECONDS: Final = 0.5
ECHO_CHANNEL: Final = "echo"
"""Channel without listeners, to test that sending and receiving work."""

Connect = Callable[[], Awaitable["asyncpg.Connection[Any]"]]
CONNECTION_ERRORS: Final = (
    asyncpg.PostgresError,
    asyncpg.InterfaceError,
    asyncpg.InternalClientError,
    OSError,
    ValueError,
)


class PgNotifier:
    """Sends notifications of this process to the others, and receives theirs.

    connect: opens a connection of its own, which must lead to Postgres itself: a pooler in transaction mode hands
    every NOTIFY to an arbitrary session. patience: seconds for one message.
    """

    def __init__(self, wakes: LocalChannels, connect: Connect, *, patience: float) -> None:
        self._wakes = wakes
        self._connect = connect
        self._patience = patience
        self._untold: set[str] = set()
        self._news = asyncio.Event()
        self._echo = asyncio.Event()
        self._pid = 0

    def send(self, *channels: str) -> None:
        """Send soon; calls until then share one message."""
        self._untold.update(channels)
        self._news.set()

    async def run(self) -> None:
        """Run until cancelled. Replaces a broken connection; what was not sent is found by polling."""
        while True:
            with suppress(*CONNECTION_ERRORS):
                await self._work()
            await asyncio.sleep(RECONNECT_SECONDS)

    async def listening(self, seconds: float) -> bool:
        """Return whether a message comes back within `seconds`, which shows that other processes receive it."""
        self.send(ECHO_CHANNEL)
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
            connection.add_termination_listener(lambda _: self._news.set())  # a broken connection must be noticed
            await connection.add_listener(CHANNEL, self._hear)
            self._wakes.notify_all()
            while not connection.is_closed():
                await self._tell_next(connection)
        finally:
            connection.terminate()

    async def _connected(self) -> asyncpg.Connection[Any]:
        """Open the connection behind a shield: asyncpg leaks one whose opening is cancelled."""
        connecting = asyncio.ensure_future(self._connect())
        try:
            return await asyncio.shield(connecting)
        except asyncio.CancelledError:
            with suppress(*CONNECTION_ERRORS):
                (await connecting).terminate()
            raise

    async def _tell_next(self, connection: asyncpg.Connection[Any]) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(HEARTBEAT_SECONDS):
                await self._news.wait()
        self._news.clear()
        channels, self._untold = self._untold, set()
        if not channels:
            await connection.execute("SELECT 1", timeout=self._patience)  # detects a dead connection
        try:
            for payload in _payloads(sorted(channels)):
                await connection.execute("SELECT pg_notify($1, $2)", CHANNEL, payload, timeout=self._patience)
        except BaseException:
            self.send(*channels)
            raise

    def _hear(self, _: object, pid: int, __: str, payload: object) -> None:
        channels = str(payload).split()
        if ECHO_CHANNEL in channels:
            self._echo.set()
        if pid != self._pid:  # listeners of this process were notified at the commit
            self._wakes.notify(*channels)


def _payloads(channels: Sequence[str]) -> Iterator[str]:
    """Pack channel names, which have no blanks, into as few messages as possible."""
    message = ""
    for channel in channels:
        if message and len(message) + 1 + len(channel) > MAX_PAYLOAD_BYTES:
            yield message
            message = ""
        message = f"{message} {channel}" if message else channel
    if message:
        yield message
