"""Threads for the work on files."""

from __future__ import annotations

import asyncio
import gc
import os
import threading
import time
import weakref

import pytest

from storage.blobs.file_threads import MAX_THREADS, FileThreads

pytestmark = pytest.mark.anyio


def _count_threads() -> int:
    return sum(thread.name == "files" for thread in threading.enumerate())


async def test_result_and_error_are_those_of_the_work() -> None:
    threads = FileThreads()

    def fail() -> None:
        raise OSError("no disk")

    assert await threads.run(lambda: threading.current_thread().name) == "files"
    with pytest.raises(OSError, match="no disk"):
        await threads.run(fail)
    assert await threads.run(lambda: 1) == 1


async def test_threads_start_when_the_others_are_busy() -> None:
    threads, before = FileThreads(), _count_threads()
    for _ in range(3):
        await threads.run(lambda: None)
    assert _count_threads() == before + 1
    await asyncio.gather(*(threads.run(lambda: time.sleep(0.01)) for _ in range(MAX_THREADS * 2)))
    assert _count_threads() == before + MAX_THREADS


async def test_cancelled_caller_waits_for_the_end_of_its_work() -> None:
    threads, may_end, ended = FileThreads(), threading.Event(), threading.Event()

    def work() -> None:
        may_end.wait(10)
        ended.set()
        raise OSError("after the cancellation")

    running = asyncio.create_task(threads.run(work))
    await asyncio.sleep(0)
    for _ in range(3):
        running.cancel()
        await asyncio.sleep(0)
    assert not running.done()
    may_end.set()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert ended.is_set()


def test_work_of_a_closed_loop_leaves_the_threads_to_others() -> None:
    threads, may_end = FileThreads(), threading.Event()

    async def abandon() -> None:
        waiting = threads.run(lambda: may_end.wait(10))
        waiting.send(None)
        waiting.close()

    asyncio.run(abandon())
    may_end.set()
    assert asyncio.run(threads.run(lambda: 1)) == 1


async def test_nothing_keeps_a_result_or_an_error() -> None:
    """A result may be a megabyte of an image."""
    threads = FileThreads()

    class Result:
        pass

    class NoDisk(Exception):
        pass

    def fail() -> None:
        raise NoDisk

    gc.disable()
    try:
        result = await threads.run(Result)
        is_alive = weakref.ref(result)
        del result
        await threads.run(lambda: None)
        assert is_alive() is None
        error = None
        try:
            await threads.run(fail)
        except NoDisk as caught:
            error = weakref.ref(caught)
        await threads.run(lambda: None)
        assert error is not None
        assert error() is None
    finally:
        gc.enable()


def test_forked_process_has_threads_of_its_own() -> None:
    threads = FileThreads()
    assert asyncio.run(threads.run(lambda: 1)) == 1
    child = os.fork()
    if child == 0:
        code = 1
        try:
            code = asyncio.run(asyncio.wait_for(threads.run(lambda: 0), 10))
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
