"""Every blob store there is; a new one registers by one line, and the contract suite runs on it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path

from storage.blobs import BlobStore
from storage.local import LocalBlobs

Open = Callable[[Path], AbstractAsyncContextManager[BlobStore]]


@asynccontextmanager
async def local(folder: Path) -> AsyncIterator[BlobStore]:
    yield LocalBlobs(folder / "blobs")


STORES: dict[str, Open] = {
    "local": local,
}
