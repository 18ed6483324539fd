"""Flow control of a connection, its end, and what the kernel holds of it."""

from __future__ import annotations

import asyncio
import fcntl
import termios
from array import array
from collections.abc import Callable
from contextlib import suppress

from uvicorn.protocols.http.flow_control import FlowControl


class Signal:
    """`asyncio.Event` without its queue of waiters, which takes most of a kibibyte of each connection."""

    __slots__ = ("_waiting", "is_set")

    def __init__(self) -> None:
        self.is_set = False
        self._waiting: tuple[asyncio.Future[None], ...] = ()

    def set(self) -> None:
        self.is_set = True
        for waiting in self._waiting:
            if not waiting.done():
                waiting.set_result(None)

    def clear(self) -> None:
        self.is_set = False

    async def wait(self) -> bool:
        while not self.is_set:
            waiting = asyncio.get_running_loop().create_future()
            self._waiting += (waiting,)
            try:
                await waiting
            finally:
                self._waiting = tuple(one for one in self._waiting if one is not waiting)
        return True


class TurnFlow(FlowControl):
    """Flow control that reads nothing more while received bytes wait for their turn."""

    def __init__(self, transport: asyncio.Transport) -> None:
        super().__init__(transport)
        self.transport = transport
        self.is_held = False

    def hold(self) -> None:
        self.is_held = True
        self.transport.pause_reading()

    def release(self) -> None:
        self.is_held = False
        if not self.read_paused:
            self.transport.resume_reading()

    def resume_reading(self) -> None:
        if self.read_paused:
            self.read_paused = False
            if not self.is_held:
                self.transport.resume_reading()


class OrderTransport:
    """The transport of one response: after the answer to an order only our side is closed.

    A client that did not read all of it then resets the connection, which could not be seen after a full close.
    """

    def __init__(self, transport: asyncio.Transport, close: Callable[[], None]) -> None:
        self.write = transport.write
        self.is_closing = transport.is_closing
        self.close = close


def has_unread_bytes(transport: asyncio.Transport) -> bool:
    """Return whether the kernel holds bytes that the loop has not read yet."""
    count = array("i", [0])
    fcntl.ioctl(transport.get_extra_info("socket").fileno(), termios.FIONREAD, count)
    return count[0] > 0


def unacknowledged_bytes(transport: asyncio.Transport) -> int:
    """Return the sent bytes that the kernel still holds, because the other side has not acknowledged them."""
    count = array("i", [0])
    with suppress(OSError):  # closed, or a kernel that does not tell
        fcntl.ioctl(transport.get_extra_info("socket").fileno(), termios.TIOCOUTQ, count)
    return count[0]
