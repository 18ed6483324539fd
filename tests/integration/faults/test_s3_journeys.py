"""A bucket that is slow, rejects or loses parts: results are complete, and submitted once."""

from __future__ import annotations

import io
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tests.support.brokers import RunningBroker, open_broker
from tests.support.faulty_s3 import Network, error, network
from tests.support.process import until
from tests.support.servers.s3 import S3Server

pytestmark = pytest.mark.anyio

PUT = r"^PUT .*/images/task_"
PART = r"^PUT .*partNumber="


@asynccontextmanager
async def broker_with_bucket(
    folder: Path, s3_server: S3Server, **settings: Any
) -> AsyncIterator[tuple[RunningBroker, Network]]:
    """Run a broker whose bucket is behind a faulty network."""
    async with network(int(s3_server.url.rpartition(":")[2])) as net:
        bucket: dict[str, Any] = {
            "blob_url": f"s3://{s3_server.new_bucket()}/images",
            "s3_endpoint": net.url,
            "s3_access_key": "test",
            "s3_secret_key": "test",
        }
        async with open_broker(folder, **{"task_deadline": 30, **bucket, **settings}) as broker:
            yield broker, net


async def _tried_twice(net: Network) -> bool:
    return net.count(PUT) >= 2


async def rows_and_bytes(broker: RunningBroker) -> None:
    """Assert that each image row has its bytes."""
    rows = await broker.services.database.fetch("SELECT blob, size FROM images")
    for row in rows:
        chunks = [chunk async for chunk in await broker.services.blobs.open(row["blob"])]
        assert sum(map(len, chunks)) == row["size"]


@pytest.mark.faults
async def test_bucket_outage_only_delays_the_task(tmp_path: Path, s3_server: S3Server) -> None:
    async with broker_with_bucket(tmp_path, s3_server) as (broker, net):
        net.when(PUT, error("503 Slow Down", "SlowDown"))
        task_id = await broker.create_task("a red bicycle")
        await until(lambda: _tried_twice(net))
        assert (await broker.get_task(task_id))["status"] == "processing"
        await rows_and_bytes(broker)
        net.heal()
        data = await broker.wait_end(task_id, seconds=60)
        assert (data["status"], len(await broker.provider_jobs())) == ("completed", 1)
        await rows_and_bytes(broker)


async def test_interrupted_upload_is_repeated_until_complete(tmp_path: Path, s3_server: S3Server) -> None:
    """The connection breaks inside a part, twice; then the part is sent again completely."""

    async with broker_with_bucket(tmp_path, s3_server) as (broker, net):
        net.when(PART, net.cut_request, times=2)
        data = await broker.wait_end(await broker.create_task("a red bicycle [mood:big:12]"), seconds=60)
        assert net.count(PART) > 2, "it was large enough for a multipart upload"
        assert (data["status"], len(await broker.provider_jobs())) == ("completed", 1)
        answer = await broker.client.get(data["result"])
        with Image.open(io.BytesIO(answer.content)) as image:
            image.load()
        await rows_and_bytes(broker)


@pytest.mark.faults
async def test_reference_that_cannot_be_stored_submits_nothing(tmp_path: Path, s3_server: S3Server) -> None:
    """The response is 503 with Retry-After; no task, no row, no cost."""
    async with broker_with_bucket(tmp_path, s3_server) as (broker, net):
        net.when(r"^PUT .*/images/refs_", error("403 Forbidden", "AccessDenied"))
        buffer = io.BytesIO()
        Image.new("RGB", (8, 8)).save(buffer, "PNG")
        files = {"image": ("a.png", buffer.getvalue(), "image/png")}
        answer = await broker.client.post("/api/generate/image", data={"prompt": "a red bicycle"}, files=files)
        assert (answer.status_code, answer.headers["retry-after"]) == (503, "5")
        assert await broker.services.database.fetch("SELECT id FROM tasks") == []
        assert await broker.provider_jobs() == []
        net.heal()
        answer = await broker.client.post("/api/generate/image", data={"prompt": "a red bicycle"}, files=files)
        assert (await broker.wait_end(answer.json()["taskId"], seconds=60))["status"] == "completed"
