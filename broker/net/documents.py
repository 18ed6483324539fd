"""Parsing of large documents beside the event loop, which would answer no other request in that time."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import Final, TypeVar

MAX_INLINE_BYTES: Final = 32 * 1024
"""Documents up to this size are parsed in less time than a change of threads takes."""

T = TypeVar("T")


async def parse_off_loop(size: int, parse: Callable[[], T]) -> T:
    """Return `parse()`, called in the parser thread for a document of more than 32 KiB. size: bytes.

    Re-raises the errors of `parse`, which must not touch the event loop.
    """
    if size <= MAX_INLINE_BYTES:
        return parse()
    return await asyncio.get_running_loop().run_in_executor(_parser_thread(), parse)


@cache
def _parser_thread() -> ThreadPoolExecutor:
    """Return the one thread of the process: several would only take the interpreter from the event loop in turns."""
    return ThreadPoolExecutor(max_workers=1, thread_name_prefix="parser")
