"""The parent's end: starts a child, exchanges messages with it in the event loop, and notes when it is gone."""

from __future__ import annotations

import asyncio
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Final, cast

from storage.children.messages import MAX_MESSAGE_BYTES, MessageTooLarge, Unframer, frame

STOP_SECONDS: Final = 10.0
"""For a child to finish its work; then it is killed."""
EXIT_SECONDS: Final = 1.0
"""Between the end of the connection and that of a process which ends by itself; then it is killed."""
_ROOT: Final = Path(__file__).parents[2]
_PASSED_PREFIXES: Final = ("LC_", "LD_", "DYLD_", "MALLOC_", "PYTHON")
_PASSED: Final = frozenset({"LANG", "PATH", "TMPDIR", "TZ"})


class Child:
    """A child process that runs `python -m module`. `start` and `stop` may follow each other again and again.

    on_message: called in the event loop with each message of the child. on_loss: called there once if the child ends,
    or closes its end, without being asked to; its process is killed then. max_message_bytes: of a message of the child;
    one that announces more is lost.
    """

    def __init__(
        self,
        module: str,
        *,
        on_message: Callable[[bytes], None],
        on_loss: Callable[[], None],
        max_message_bytes: int = MAX_MESSAGE_BYTES,
    ) -> None:
        self._module = module
        self._max_message_bytes = max_message_bytes
        self._on_message = on_message
        self._on_loss = on_loss
        self._process: subprocess.Popen[bytes] | None = None
        self._spawned: socket.socket | None = None
        """The connection to a process that was spawned, and is not started yet."""
        self._line: _Line | None = None
        self._exit: asyncio.Future[int] | None = None

    @property
    def pid(self) -> int | None:
        """Process id; None when there is no child."""
        return self._process.pid if self._process else None

    def spawn(self) -> None:
        """Begin to start the process, without an event loop: it loads its code meanwhile. Raises OSError."""
        ours, theirs = socket.socketpair()
        try:
            with theirs:
                self._process = _spawn(self._module, theirs)
        except BaseException:
            ours.close()
            raise
        ours.setblocking(False)
        self._spawned = ours

    async def start(self, *first: bytes) -> None:
        """Start the process, and send it a first message of these parts. Raises OSError."""
        if self._spawned is None:
            self.spawn()
        ours, self._spawned = self._spawned, None
        loop = asyncio.get_running_loop()
        try:
            unframer = Unframer(self._max_message_bytes)
            _, self._line = await loop.create_unix_connection(
                lambda: _Line(unframer, self._on_message, self._lose), sock=ours
            )
        except BaseException:
            if ours is not None:
                ours.close()
            self._kill()
            raise
        self.send(*first)

    def send(self, *parts: bytes) -> None:
        """Send one message made of these parts, without waiting for the child to read it; nothing if it is gone."""
        if self._line is not None:
            self._line.send(parts)

    async def stop(self) -> None:
        """Let the child do what it was sent, receive its last messages, and wait for its end."""
        if self._spawned is not None:
            self._spawned.close()
            self._spawned = None
        line, self._line = self._line, None
        process, self._process = self._process, None
        try:
            if line is not None:
                await line.end(STOP_SECONDS)
        finally:
            if process is not None:
                await asyncio.shield(asyncio.get_running_loop().run_in_executor(None, _reap, process, STOP_SECONDS))

    def kill(self) -> None:
        """Kill a child without asking it to end. `on_message` and `on_loss` are not called any more."""
        line, self._line = self._line, None
        if line is not None:
            line.abort()
        self._kill()

    async def exit_code(self) -> int:
        """Return the exit code of the last child that was lost or killed; negative for a signal."""
        return 0 if self._exit is None else await asyncio.shield(self._exit)

    def _lose(self) -> None:
        if self._line is not None:  # and was not asked to end
            self._line = None
            self._kill(EXIT_SECONDS)
            self._on_loss()

    def _kill(self, seconds: float = 0.0) -> None:
        """Kill the process after so many seconds; wait for its end elsewhere, as its disk may not answer."""
        process, self._process = self._process, None
        if process is not None:
            self._exit = asyncio.get_running_loop().run_in_executor(None, _reap, process, seconds)


class _Line(asyncio.Protocol):
    """The connection to a child."""

    _transport: asyncio.Transport

    def __init__(self, unframer: Unframer, on_message: Callable[[bytes], None], on_loss: Callable[[], None]) -> None:
        self._unframer = unframer
        self._on_message = on_message
        self._on_loss = on_loss
        self._is_aborted = False
        self._closed = asyncio.Event()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        self._socket = transport.get_extra_info("socket")

    def data_received(self, data: bytes) -> None:
        try:
            for message in self._unframer.messages(data):
                if not self._is_aborted:
                    self._on_message(message)
        except MessageTooLarge:
            self._transport.abort()

    def connection_lost(self, error: Exception | None) -> None:
        self._closed.set()
        if not self._is_aborted:
            self._on_loss()

    def send(self, parts: tuple[bytes, ...]) -> None:
        """Write now what the socket takes: the transport of uvloop would begin at the end of this turn of the loop."""
        pieces, sent = frame(parts), 0
        if not self._transport.get_write_buffer_size():
            with suppress(OSError):  # full, or lost, which the transport notes
                sent = os.writev(self._socket.fileno(), pieces)
        if sent < sum(map(len, pieces)):
            self._transport.write(b"".join(pieces)[sent:])

    def abort(self) -> None:
        """Close both ends now, and report nothing any more."""
        self._is_aborted = True
        self._transport.abort()

    async def end(self, seconds: float) -> None:
        """Close this end behind what was sent, and wait until the child closes its own; no longer than `seconds`."""
        with suppress(OSError, RuntimeError):  # lost already
            self._transport.write_eof()
        try:
            with suppress(TimeoutError):
                async with asyncio.timeout(seconds):
                    await self._closed.wait()
        finally:
            self._transport.abort()


def _spawn(module: str, connection: socket.socket) -> subprocess.Popen[bytes]:
    """Start the module with the connection as its standard input, and without the secrets of this environment.

    It imports from where this process does, and from nowhere else: not from the working folder, where a user may have
    anything, and without `site`, which costs ten milliseconds.
    """
    passed = {name: value for name, value in os.environ.items() if name in _PASSED or name.startswith(_PASSED_PREFIXES)}
    paths = [path or str(Path.cwd()) for path in sys.path]
    if str(_ROOT) not in paths:  # an installed broker is in `site-packages`, which must not hide the standard library
        paths.insert(0, str(_ROOT))
    passed["PYTHONPATH"] = os.pathsep.join(paths)
    command = (sys.executable, "-P", "-S", "-m", module)
    return subprocess.Popen(command, stdin=connection.fileno(), stdout=subprocess.DEVNULL, env=passed)  # noqa: S603


def _reap(process: subprocess.Popen[bytes], seconds: float) -> int:
    """Wait for the end of a process; kill it after so many seconds. Return its exit code."""
    with suppress(subprocess.TimeoutExpired):
        return process.wait(seconds)
    process.kill()
    return process.wait()
