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


async def test_readers_that_wait_for_a_load_go_on_in_the_same_turn() -> None:
    """One per turn of the event loop, and the last of 64 would wait for 64 turns."""
    begun, turns = asyncio.Event(), list[int]()
    turn = 0

    async def count_turns() -> None:
        nonlocal turn
        while True:
            turn += 1
            await asyncio.sleep(0)

    async def load() -> str:
        await begun.wait()
        return "loaded"

    async def read() -> None:
        assert await cache.get() == "loaded"
        turns.append(turn)

    cache = TtlCache(load, seconds=5, clock=ManualClock())
    counting = asyncio.create_task(count_turns())
    async with asyncio.TaskGroup() as readers:
        for _ in range(20):
            readers.create_task(read())
        await asyncio.sleep(0)
        begun.set()
    counting.cancel()
    assert max(turns) - min(turns) <= 3


async def test_cancelled_load_is_repeated_by_a_reader_that_waited_for_it() -> None:
    loads = 0

    async def load() -> int:
        nonlocal loads
        loads += 1
        await asyncio.sleep(0 if loads > 1 else 60)
        return loads

    cache = TtlCache(load, seconds=5, clock=ManualClock())
    first, second = (asyncio.create_task(cache.get()) for _ in range(2))
    await asyncio.sleep(0)
    first.cancel()
    assert await second == 2
