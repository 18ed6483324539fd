"""TtlCache: one load for concurrent readers, a limited lifetime, and errors that are not kept."""

from __future__ import annotations

import asyncio

import pytest

from broker.cache import TtlCache
from tests.support.clock import ManualClock

pytestmark = pytest.mark.anyio


async def test_concurrent_readers_share_one_load() -> None:
    loads = 0

    async def load() -> int:
        nonlocal loads
        loads += 1
        await asyncio.sleep(0)
        return loads

    cache = TtlCache(load, seconds=5, clock=ManualClock())
    assert await asyncio.gather(*(cache.get() for _ in range(20))) == [1] * 20


async def test_value_is_reloaded_after_its_lifetime() -> None:
    clock, values = ManualClock(), iter("ab")

    async def load() -> str:
        return next(values)

    cache = TtlCache(load, seconds=5, clock=clock)
    assert cache.expires_in == 0
    assert (await cache.get(), cache.expires_in) == ("a", 5)
    clock.advance(4)
    assert (await cache.get(), cache.expires_in) == ("a", 1)
    clock.advance(1)
    assert (await cache.get(), cache.expires_in) == ("b", 5)


async def test_failed_load_is_repeated_by_the_next_reader() -> None:
    outcomes = iter([OSError("down"), None])

    async def load() -> str:
        if error := next(outcomes):
            raise error
        return "loaded"

    cache = TtlCache(load, seconds=5, clock=ManualClock())
    with pytest.raises(OSError, match="down"):
        await cache.get()
    assert await cache.get() == "loaded"
