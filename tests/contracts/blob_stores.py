"""Blob stores that the contract suite runs on; a new one adds one line."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, aclosing, asynccontextmanager
from pathlib import Path

import pytest

from storage.blobs.local import LocalBlobs
from storage.blobs.s3 import S3Blobs
from storage.blobs.store import BlobStore, Bucket
from tests.support.servers.s3 import S3Server

Open = Callable[[Path, pytest.FixtureRequest], AbstractAsyncContextManager[BlobStore]]


@asynccontextmanager
async def local(folder: Path, _: pytest.FixtureRequest) -> AsyncIterator[BlobStore]:
    yield LocalBlobs(folder / "blobs")


@asynccontextmanager
async def s3(folder: Path, request: pytest.FixtureRequest) -> AsyncIterator[BlobStore]:
    server: S3Server = request.getfixturevalue("s3_server")
    bucket = Bucket(
        name=server.new_bucket(),
        prefix="images",
        endpoint=server.url,
        access_key="test-id",
        secret_key="test-secret",
    )
    store = S3Blobs(bucket, scratch=folder / "scratch")
    async with aclosing(store):
        yield store


STORES: dict[str, Open] = {
    "local": local,
    "s3": s3,
}
