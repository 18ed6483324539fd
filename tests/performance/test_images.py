"""Images: thread hops and tasks of a download."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from starlette.types import Message

from broker.api.http.blob_responses import BlobResponse
from storage.blobs.local import CHUNK_BYTES, LocalBlobs

pytestmark = pytest.mark.anyio


class CountingExecutor(ThreadPoolExecutor):
    """Counts the calls that leave the event loop."""

    calls = 0

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        self.calls += 1
        return super().submit(fn, *args, **kwargs)


async def _receive() -> Message:
    raise AssertionError("a download waits for nothing from the client")


@pytest.mark.parametrize(("size", "hops"), [(1000, 1), (CHUNK_BYTES, 1), (2 * CHUNK_BYTES, 2)])
async def test_image_costs_one_thread_hop_per_mebibyte_and_no_task(tmp_path: Path, size: int, hops: int) -> None:
    executor = CountingExecutor()
    asyncio.get_running_loop().set_default_executor(executor)
    blobs = LocalBlobs(tmp_path)
    async with blobs.new_draft("task_1") as draft:
        await draft.write(bytes(size))
        blob = await draft.commit()
    executor.calls, sent, tasks = 0, 0, len(asyncio.all_tasks())

    async def send(message: Message) -> None:
        nonlocal sent
        sent += len(message.get("body", b""))
        assert len(asyncio.all_tasks()) == tasks

    response = BlobResponse(await blobs.open(blob.name), 200, {"content-length": str(size)})
    await response({"type": "http", "extensions": {}}, _receive, send)
    assert (sent, executor.calls) == (size, hops)
