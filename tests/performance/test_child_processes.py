"""Costs of the child processes of `broker serve`: messages, copies of an image, and wake-ups while idle."""

from __future__ import annotations

import asyncio
import gc
import os
import sys
import tracemalloc
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path
from typing import TypeVar

import pytest

from broker.bootstrap import serving_database
from storage.blobs.file_threads import FileThreads
from storage.children.parent import Child
from tests.integration.storage.test_writer_process import writer_child
from tests.performance.test_life_costs import live
from tests.support import samples as s
from tests.support.brokers import RunningBroker, open_broker
from tests.support.intake import IntakeHarness, open_process
from uploads.process.parent import ImageProcess

pytestmark = pytest.mark.anyio

T = TypeVar("T")

IMAGE = s.plain_png(s.chunk(b"tEXt", b"a\0" + b"x" * 200_000))
"""Small enough to be sent to the child in a message."""
HEAD_BYTES = 500
"""Of a message with an image, at most."""
IDLE_SECONDS = 1.9
SETTLING_SECONDS = 0.3

WHOLE = pytest.mark.skipif(sys.platform != "linux", reason="sockets of other systems take less at once")


@pytest.fixture
async def broker(tmp_path: Path) -> AsyncIterator[RunningBroker]:
    """A broker with a child that writes the database and one that validates images, as `broker serve` has them."""
    async with open_broker(tmp_path, open_database=serving_database, isolates_images=True, check_after=30.0) as broker:
        await live(broker, tmp_path)  # starts the children
        yield broker


def image_process(broker: RunningBroker) -> ImageProcess:
    process = broker.services.image_work
    assert isinstance(process, ImageProcess)
    return process


async def test_one_life_takes_five_messages_to_the_writer_and_one_with_the_image(
    broker: RunningBroker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (image_child,) = image_process(broker).pids
    counts, send, run = Counter[str](), Child.send, FileThreads.run

    def count_sent(child: Child, *parts: bytes) -> None:
        counts["images" if child.pid == image_child else "writes"] += 1
        send(child, *parts)

    async def count_hops(threads: FileThreads, work: Callable[[], T]) -> T:
        counts["thread hops"] += 1
        return await run(threads, work)

    monkeypatch.setattr(Child, "send", count_sent)
    monkeypatch.setattr(FileThreads, "run", count_hops)
    await live(broker, tmp_path)
    assert counts["images"] == 1
    assert 4 <= counts["writes"] <= 5, counts
    assert counts["thread hops"] == 0, "the child validates and stores a small image"


@WHOLE
async def test_image_is_handed_to_the_kernel_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    handed, write = list[int](), os.writev

    def count_handed(descriptor: int, pieces: Sequence[bytes]) -> int:
        handed.append(sum(map(len, pieces)))
        return write(descriptor, pieces)

    async with open_process(tmp_path) as process:
        harness = IntakeHarness(tmp_path, process)
        await harness.accept(s.PNG)  # starts the child
        monkeypatch.setattr(os, "writev", count_handed)
        await harness.accept(IMAGE)
    assert len(handed) == 1
    assert len(IMAGE) < handed[0] < len(IMAGE) + HEAD_BYTES


@WHOLE
async def test_chunks_of_an_image_are_joined_once_until_it_is_sent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A buffer that grows with the chunks, and its bytes: another copy would exceed the limit."""
    peaks, send = list[int](), Child.send

    def note_peak(child: Child, *parts: bytes) -> None:
        send(child, *parts)
        peaks.append(tracemalloc.get_traced_memory()[1])  # before asyncio allocates 256 KiB to receive the answer

    async with open_process(tmp_path) as process:
        harness = IntakeHarness(tmp_path, process)
        await harness.accept(s.PNG)  # starts the child
        monkeypatch.setattr(Child, "send", note_peak)
        gc.collect()
        tracemalloc.start()
        try:
            await harness.accept(IMAGE)
        finally:
            tracemalloc.stop()
    (peak,) = peaks
    assert len(IMAGE) < peak <= 3 * len(IMAGE)


def count_waits(pid: int) -> int:
    """Return how often the threads of a process have begun to wait."""
    statuses = [(thread / "status").read_text() for thread in Path(f"/proc/{pid}/task").iterdir()]
    lines = [line.split() for status in statuses for line in status.splitlines()]
    return sum(int(line[1]) for line in lines if line[0] == "voluntary_ctxt_switches:")


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the kernel's account is read from /proc")
async def test_children_of_an_idle_broker_sleep(broker: RunningBroker) -> None:
    writer, (image_child,) = writer_child(), image_process(broker).pids
    await asyncio.sleep(SETTLING_SECONDS)
    before = count_waits(writer), count_waits(image_child)
    await asyncio.sleep(IDLE_SECONDS)
    assert count_waits(writer) - before[0] <= 1
    assert count_waits(image_child) - before[1] <= IDLE_SECONDS + 1, "a look for endless decoders once a second"
