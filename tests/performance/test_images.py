"""Images: thread hops and tasks of a download."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from starlette.types import Message

from broker.api.http.blob_responses import BlobResponse
from storage.blobs.local import CHUNK_BYTES, LocalBlobs
from tests.performance.test_net_costs import count_hops

pytestmark = pytest.mark.anyio


async def _receive() -> Message:
    raise AssertionError("a download waits for nothing from the client")


@pytest.mark.parametrize(("size", "hops"), [(1000, 1), (CHUNK_BYTES, 1), (2 * CHUNK_BYTES, 2)])
async def test_image_costs_one_thread_hop_per_mebibyte_and_no_task(tmp_path: Path, size: int, hops: int) -> None:
    handed_back, blobs = count_hops(asyncio.get_running_loop()), LocalBlobs(tmp_path)
    async with blobs.new_draft("task_1") as draft:
        await draft.write(bytes(size))
        blob = await draft.commit()
    handed_back.clear()
    sent, tasks = 0, len(asyncio.all_tasks())

    async def send(message: Message) -> None:
        nonlocal sent
        sent += len(message.get("body", b""))
        assert len(asyncio.all_tasks()) == tasks

    response = BlobResponse(await blobs.open(blob.name), 200, {"content-length": str(size)})
    await response({"type": "http", "extensions": {}}, _receive, send)
    assert (sent, len(handed_back)) == (size, hops)
