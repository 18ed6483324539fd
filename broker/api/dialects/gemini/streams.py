"""Chunks of an answer as a stream of server-sent events, or as the pieces of a JSON array.

google-genai reads each line of a stream as JSON unless it begins with `data: `, so there are no comments and no event
names; an empty line is the only sign of life that it accepts.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from starlette.responses import StreamingResponse

from broker.api.http.responses import to_json
from broker.api.shared.inline_images import split_document, stream_pieces
from storage.blobs.store import BlobStore


@dataclass(frozen=True, kw_only=True)
class StreamFormat:
    """How chunks are written one after the other."""

    media_type: str
    begin: bytes
    """Before the first chunk."""
    between: bytes
    end: bytes
    """After the last one."""
    blank: bytes
    """May be sent before the first chunk, any number of times."""

    def write_one(self, chunk: Mapping[str, Any]) -> bytes:
        """Return a stream of one chunk without an image."""
        return self.begin + to_json(chunk) + self.end

    def respond(self, chunks: Iterable[Any], blobs: BlobStore) -> StreamingResponse:
        """Return the response with all chunks."""
        headers = {"content-type": self.media_type, "cache-control": "no-store", "x-accel-buffering": "no"}
        return StreamingResponse(self._write_all([*chunks], blobs), headers=headers)

    async def _write_all(self, chunks: list[Any], blobs: BlobStore) -> AsyncIterator[bytes]:
        yield self.begin
        for number, chunk in enumerate(chunks):
            if number:
                yield self.between
            async for piece in stream_pieces(split_document(chunk), blobs):
                yield piece
        yield self.end


EVENTS = StreamFormat(
    media_type="text/event-stream",
    begin=b"data: ",
    between=b"\r\n\r\ndata: ",
    end=b"\r\n\r\n",
    blank=b"\n\n",
)
ARRAY = StreamFormat(media_type="application/json", begin=b"[", between=b",\r\n", end=b"]", blank=b"\n")
