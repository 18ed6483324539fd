"""Name resolution in threads of its own."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from typing import Final, TypeAlias

MAX_LOOKUP_THREADS: Final = 8

Resolver: TypeAlias = Callable[[str, int], Awaitable[Sequence[str]]]
"""Returns the addresses of a host and port; raises OSError when there are none."""


class SystemResolver:
    """getaddrinfo in daemon threads: a slow name server delays neither file writes nor the shutdown."""

    def __init__(self, threads: int = MAX_LOOKUP_THREADS) -> None:
        self._thread_slots = asyncio.Semaphore(threads)

    async def __call__(self, host: str, port: int) -> Sequence[str]:
        await self._thread_slots.acquire()
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[Sequence[str] | Exception] = loop.create_future()

        def deliver(found: Sequence[str] | Exception) -> None:
            self._thread_slots.release()  # only now: an abandoned lookup still occupies its thread
            if not answer.done():
                answer.set_result(found)

        def look_up() -> None:
            found = _getaddrinfo(host, port)
            with suppress(RuntimeError):  # the loop is closed
                loop.call_soon_threadsafe(deliver, found)

        threading.Thread(target=look_up, name="resolve", daemon=True).start()
        result = await answer
        if isinstance(result, Exception):
            raise result
        return result


def _getaddrinfo(host: str, port: int) -> Sequence[str] | Exception:
    try:
        return [str(info[4][0]) for info in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)]
    except (OSError, UnicodeError) as exc:
        return exc
