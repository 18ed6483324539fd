"""Hosts of the writer: a thread of this process, or a process of its own."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Final, Protocol

from storage.children.parent import Child
from storage.errors import StorageError
from storage.sql.writer.group_writer import GroupWriter
from storage.sql.writer.groups import Group, Report
from storage.sql.writer.messages import CLOSE, Opening, decode_opened, decode_report, encode_group
from storage.sql.writer.opened_files import FileIdentity

STARTS: Final = 2
"""Of a process that ends while it starts, which may be by chance: it was killed because memory was exhausted."""
NOT_STARTED: Final = (
    "the process that writes the database does not start: look whether memory or the number of processes is exhausted"
)


class WriterHost(Protocol):
    """Runs a `GroupWriter`. Use it in one event loop."""

    async def start(
        self,
        known: Mapping[str, FileIdentity] | None,
        setup: Sequence[str],
        *,
        on_report: Callable[[Report], None],
        on_loss: Callable[[], None],
    ) -> Mapping[str, FileIdentity]:
        """Open the database; return the identities of its files. Raises what `GroupWriter.open` raises.

        on_report: called in the event loop. on_loss: called there if the writer ends after that without being asked
        to; it may be started again then.
        """

    def write(self, group: Group) -> None:
        """Have a group written, which is reported."""

    async def stop(self) -> None:
        """Write what was handed over, then end the writer."""


class WriterThread:
    """A thread: it costs no memory, and competes with the event loop for the GIL."""

    def __init__(self, writer: GroupWriter) -> None:
        self._writer = writer
        self._queue: SimpleQueue[Group | None] = SimpleQueue()
        self._thread: threading.Thread | None = None

    async def start(
        self,
        known: Mapping[str, FileIdentity] | None,
        setup: Sequence[str],
        *,
        on_report: Callable[[Report], None],
        on_loss: Callable[[], None],
    ) -> Mapping[str, FileIdentity]:
        loop = asyncio.get_running_loop()

        def report(one: Report) -> None:
            with suppress(RuntimeError):  # the loop is closed, so no caller waits
                loop.call_soon_threadsafe(on_report, one)

        identities = await asyncio.to_thread(self._writer.open, known, setup)
        self._thread = threading.Thread(target=self._run, args=(report,), name="sqlite-writer")
        self._thread.start()
        return identities

    def write(self, group: Group) -> None:
        self._queue.put(group)

    async def stop(self) -> None:
        self._queue.put(None)
        if self._thread is not None:
            await asyncio.to_thread(self._thread.join)

    def _run(self, report: Callable[[Report], None]) -> None:
        try:
            self._writer.run(self._receive, report)
        finally:
            self._writer.close()

    def _receive(self, seconds: float | None) -> Group | None:
        try:
            return self._queue.get(timeout=seconds)
        except Empty:
            raise TimeoutError from None


class _EndedAtStart(StorageError):
    """The process ended before it had opened the database."""

    def __init__(self) -> None:
        super().__init__(NOT_STARTED)


class WriterProcess:
    """A process of its own, which does not compete with the event loop. path, spends_reserve: see `GroupWriter`."""

    def __init__(self, path: Path, *, spends_reserve: bool) -> None:
        self._path = path
        self._spends_reserve = spends_reserve
        self._child = Child("storage.sql.writer", on_message=self._receive, on_loss=self._lose)
        self._opened: asyncio.Future[Mapping[str, FileIdentity]] | None = None
        """While it starts."""
        self._is_stopped = False

    @property
    def pid(self) -> int | None:
        return self._child.pid

    async def start(
        self,
        known: Mapping[str, FileIdentity] | None,
        setup: Sequence[str],
        *,
        on_report: Callable[[Report], None],
        on_loss: Callable[[], None],
    ) -> Mapping[str, FileIdentity]:
        self._on_report, self._on_loss = on_report, on_loss
        opening = Opening(str(self._path), self._spends_reserve, known, setup)
        for starts_left in reversed(range(STARTS)):
            try:
                return await self._start_once(opening)
            except _EndedAtStart:
                if not starts_left or self._is_stopped:
                    raise
        raise AssertionError("the last start has returned or raised")

    async def _start_once(self, opening: Opening) -> Mapping[str, FileIdentity]:
        self._opened = asyncio.get_running_loop().create_future()
        try:
            await self._child.start(opening.encode())
            identities = await self._opened
            if self._child.pid is None:  # lost since it has answered
                raise _EndedAtStart
        except BaseException as error:
            await self._child.stop()
            if isinstance(error, OSError):
                raise StorageError(f"{NOT_STARTED} ({error})") from error
            raise
        finally:
            self._opened = None
        return identities

    def write(self, group: Group) -> None:
        self._child.send(encode_group(group))

    async def stop(self) -> None:
        self._is_stopped = True
        if self._opened is not None:
            self._opened.cancel()
        self._child.send(CLOSE)
        await self._child.stop()

    def _receive(self, message: bytes) -> None:
        if self._opened is None:
            self._on_report(decode_report(message))
            return
        opened = decode_opened(message)
        if self._opened.done():
            return
        if isinstance(opened, Exception):
            self._opened.set_exception(opened)
        else:
            self._opened.set_result(opened)

    def _lose(self) -> None:
        if self._opened is None:
            self._on_loss()
        elif not self._opened.done():
            self._opened.set_exception(_EndedAtStart())
