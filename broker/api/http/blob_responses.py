"""Responses with the bytes of a blob."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import aclosing

from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from storage.blobs.store import BlobReader


class BlobResponse(StreamingResponse):
    """Streams a blob, and closes it in any case."""

    def __init__(self, reader: BlobReader, status: int, headers: Mapping[str, str]) -> None:
        super().__init__(reader, status, headers)
        self._reader = reader

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async with aclosing(self._reader):
            await super().__call__(scope, receive, send)
