"""Sinks of results that a provider's response contains: the bytes go to the blob store while they arrive."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Final

from broker.errors import SinkError
from broker.reports import STORED_PREFIX, Failed
from storage.blobs.store import BlobStore
from storage.errors import StorageError

WRITE_BYTES: Final = 256 * 1024
"""Bytes written at once."""


@dataclass(frozen=True, kw_only=True)
class TaskSink:
    """Sink of one task. The blobs belong to the task, so they are deleted with it, used or not."""

    blobs: BlobStore
    task_id: str
    max_bytes: int
    """Limit of one result."""

    async def store(self, chunks: AsyncIterator[bytes]) -> str:
        """Store one result durably and return its output; see `ResultSink`."""
        try:
            pieces = self._pieces(chunks)
            piece = await anext(pieces, b"")
            if len(piece) < WRITE_BYTES:  # all there is
                blob = await self.blobs.new_draft(self.task_id).store(piece)
            else:
                async with self.blobs.new_draft(self.task_id) as draft:
                    while piece:
                        await draft.write(piece)
                        piece = await anext(pieces, b"")
                    blob = await draft.commit()
        except StorageError as error:
            raise SinkError("storage_full", str(error)) from error
        return STORED_PREFIX + blob.name

    async def _pieces(self, chunks: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
        """Yield pieces of at least `WRITE_BYTES`, but the last."""
        held, size = bytearray(), 0
        async for chunk in chunks:
            size += len(chunk)
            if size > self.max_bytes:
                raise SinkError("invalid_result", f"the image is larger than {self.max_bytes:,} bytes")
            held += chunk
            if len(held) >= WRITE_BYTES:
                yield bytes(held)
                held.clear()
        if held:
            yield bytes(held)


def sink_failure(error: SinkError) -> Failed:
    """Return the report of a job that succeeded, but whose result is lost."""
    return Failed(code=error.code, message=str(error), retryable=False, billed="yes")


@dataclass(frozen=True, kw_only=True)
class SinkFactory:
    """Makes the sinks of tasks."""

    blobs: BlobStore
    max_bytes: int
    """Limit of one result."""

    def for_task(self, task_id: str) -> TaskSink:
        return TaskSink(blobs=self.blobs, task_id=task_id, max_bytes=self.max_bytes)

    async def check(self) -> None:
        """Raise `StorageError` with the cure if no result can be stored now."""
        await self.blobs.check()
