"""Responses with the bytes of a blob."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import aclosing

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from broker.api.http.connection import connection_of
from storage.blobs.store import BlobReader


class BlobResponse(Response):
    """Streams a blob, and closes it in any case.

    In the task of its request: Starlette's own streaming has a task more, which costs as much as a read of the blob.
    """

    def __init__(self, reader: BlobReader, status: int, headers: Mapping[str, str]) -> None:
        self.status_code = status
        self.background = None
        self.init_headers(headers)
        self._reader = reader

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        connection = connection_of(scope)
        async with aclosing(self._reader):
            await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
            async for chunk in self._reader:
                if connection is not None and connection.is_lost:
                    return
                await send({"type": "http.response.body", "body": chunk, "more_body": True})
            await send({"type": "http.response.body", "body": b""})
