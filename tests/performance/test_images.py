"""Images: thread hops and tasks of a download, and its file where nginx sends it."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from starlette.types import Message

from broker.api.http.blob_responses import BlobResponse
from storage.blobs.local import CHUNK_BYTES, LocalBlobs
from storage.blobs.store import BlobReader
from storage.ids import new_task_id
from tests.performance.test_net_costs import count_hops
from tests.support.api import open_api

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


class OpenCountingBlobs(LocalBlobs):
    """A store that counts the files that it opens."""

    opened = 0

    async def open(self, name: str, start: int = 0, stop: int | None = None) -> BlobReader:
        self.opened += 1
        return await super().open(name, start, stop)


async def test_image_that_nginx_sends_is_not_opened_by_the_broker(tmp_path: Path) -> None:
    prefix, blobs = f"/_images_{'5e' * 16}/", OpenCountingBlobs(tmp_path / "blobs")
    async with open_api(tmp_path, blobs=blobs, accel_prefix=prefix, blob_group_read=True) as broker:
        image = await broker.add_image(new_task_id(1.8e9), b"x")
        path, headers = f"/uploads/images/{image.name}", {"X-Accel-Prefix": prefix, "X-Forwarded-For": "8.8.8.8"}
        assert (await broker.client.get(path, headers=headers)).headers["x-accel-redirect"].startswith(prefix)
        assert blobs.opened == 0
        assert (await broker.client.get(path)).content == b"x"
        assert blobs.opened == 1
