"""Notifications between processes by LISTEN and NOTIFY.

Decisions worth remembering

* NOTIFY is sent after the commit, by one connection that does nothing else. Inside a transaction it takes a lock of the
  whole server that is held until the commit is on disk, so writers would commit one after the other; sent afterwards,
  all channels of a moment share one message. What a dying process does not send is found by polling.
* Nothing depends on a notification: workers poll every second, long polls every two.
"""

from __future__ import annotations

import asyncio
import textwrap
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any, Final

import asyncpg

from storage.sql.postgres_errors import BROKEN
from storage.sql.pubsub import LocalChannels, Subscription

CHANNEL: Final = "broker"
MAX_PAYLOAD_BYTES: Final = 7900
"""Postgres allows 7999 bytes."""
HEARTBEAT_SECONDS: Final = 15.0
RECONNECT_SECONDS: Final = 0.5
ECHO_CHANNEL: Final = "echo"
"""Channel without listeners, to test that sending and receiving work."""

Connect = Callable[[], Awaitable["asyncpg.Connection[Any]"]]
CONNECTION_ERRORS: Final = (*BROKEN, asyncpg.PostgresError, ValueError)


class PgNotifier:
    """Sends notifications of this process to the others, and receives theirs.

    connect: opens a connection of its own, which must lead to Postgres itself: a pooler in transaction mode hands
    every NOTIFY to an arbitrary session. timeout_seconds: for one message.
    """

    def __init__(self, channels: LocalChannels, connect: Connect, *, timeout_seconds: float) -> None:
        self._channels = channels
        self._connect = connect
        self._timeout_seconds = timeout_seconds
        self._unsent: set[str] = set()
        self._wanted = Subscription()
        self._echo = Subscription()
        self._pid = 0

    def send(self, *channels: str) -> None:
        """Send soon; calls until then share one message."""
        self._unsent.update(channels)
        self._wanted.notify()

    async def run(self) -> None:
        """Run until cancelled. Replaces a broken connection; what was not sent is found by polling."""
        while True:
            with suppress(*CONNECTION_ERRORS):
                await self._work()
            await asyncio.sleep(RECONNECT_SECONDS)

    async def is_listening(self, seconds: float) -> bool:
        """Return whether a message comes back within `seconds`, which shows that other processes receive it."""
        self.send(ECHO_CHANNEL)
        return await self._echo.wait(seconds)

    async def _work(self) -> None:
        connection = await self._connect()
        try:
            self._pid = connection.get_server_pid()
            connection.add_termination_listener(lambda _: self._wanted.notify())  # a broken connection must be noticed
            await connection.add_listener(CHANNEL, self._receive)
            self._channels.notify_all()  # what was sent while no connection listened is lost
            while not connection.is_closed():
                await self._send_next(connection)
        finally:
            connection.terminate()

    async def _send_next(self, connection: asyncpg.Connection[Any]) -> None:
        await self._wanted.wait(HEARTBEAT_SECONDS)
        channels, self._unsent = self._unsent, set()
        if not channels:
            await connection.execute("SELECT 1", timeout=self._timeout_seconds)  # detects a dead connection
        try:
            # as few messages as possible; channel names have no blanks
            for payload in textwrap.wrap(" ".join(channels), MAX_PAYLOAD_BYTES, break_on_hyphens=False):
                await connection.execute("SELECT pg_notify($1, $2)", CHANNEL, payload, timeout=self._timeout_seconds)
        except BaseException:
            self.send(*channels)
            raise

    def _receive(self, _: object, pid: int, __: str, payload: object) -> None:
        channels = str(payload).split()
        if ECHO_CHANNEL in channels:
            self._echo.notify()
        if pid != self._pid:  # listeners of this process were notified at the commit
            self._channels.notify(*channels)
