"""The child's end: its standard input is a socket that leads to the parent.

Few imports: a child has to start fast and to stay small.
"""

from __future__ import annotations

import os
import select
import signal
import socket
import threading

from storage.children.messages import LENGTH_BYTES, frame


class ParentMessages:
    """Blocking messages from and to the parent. One thread receives; any may send."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._sending = threading.Lock()

    def receive(self, seconds: float | None = None) -> bytes | None:
        """Return the next message; None when the parent has closed its end, or is gone.

        seconds: the wait for its first byte. Raises TimeoutError after that.
        """
        try:
            self._connection.settimeout(seconds)
            head = self._read(LENGTH_BYTES, seconds)
        except TimeoutError:
            self._connection.settimeout(None)  # it would hold for `send`, which would give up amid a message
            raise
        return None if head is None else self._read(int.from_bytes(head, "big"))

    def send(self, *parts: bytes) -> None:
        """Send one message made of these parts; nothing if the parent is gone."""
        try:
            with self._sending:
                self._connection.sendall(b"".join(frame(parts)))
        except OSError:
            return  # the parent is gone: `receive` says it

    def end_with_parent(self) -> None:
        """From now on, end this process as soon as the parent is gone, whatever it does: `receive` would tell later.

        A parent that asks to end keeps its end open until this process has closed its own.
        """
        threading.Thread(target=self._wait_for_hang_up, name="parent-watch", daemon=True).start()

    def _wait_for_hang_up(self) -> None:
        poll = select.poll()
        poll.register(self._connection.fileno(), 0)  # a hang-up is always reported, messages are not
        poll.poll()
        os._exit(1)

    def _read(self, size: int, seconds: float | None = None) -> bytes | None:
        buffer = bytearray(size)
        left = memoryview(buffer)
        while left:
            try:
                count = self._connection.recv_into(left)
            except ConnectionError:
                return None
            if count == 0:
                return None
            left = left[count:]
            if seconds is not None:
                self._connection.settimeout(None)
                seconds = None
        return bytes(buffer)


def connect_parent() -> ParentMessages:
    """Return the messages of the process that started this one.

    The parent says when to end, by closing its end: signals to all processes of a terminal or service are for the
    parent, which has work to finish with its children.
    """
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    return ParentMessages(socket.socket(fileno=0))
