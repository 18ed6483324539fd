"""Held answers as server-sent events: the response begins at once, blank lines keep it open, the end is an event."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any, Final

from starlette.requests import ClientDisconnect, Request
from starlette.responses import StreamingResponse

from broker.api.http.answers import mark_unfinished
from broker.api.http.errors import unavailable
from broker.api.http.responses import to_json
from broker.api.shared.held_answers import HeldAnswers, PlacedOrder
from broker.api.shared.inline_images import split_document, stream_pieces
from broker.errors import ApiError
from storage.blobs.store import BlobStore
from storage.errors import StorageError
from storage.tasks import Task

HEARTBEAT: Final = b"\n\n"
"""The one form that no parser of an SDK trips over."""
EVENT_SCHEMA: Final = {
    "type": "object",
    "properties": {"event": {"type": "string"}, "data": {"type": "string", "contentMediaType": "application/json"}},
    "required": ["data"],
}
"""Of an event in the OpenAPI document."""
_HEADERS: Final = {"cache-control": "no-store", "x-accel-buffering": "no"}

RenderEvents = Callable[[Sequence[Task]], AsyncIterator[bytes]]
"""The ended tasks of an order → its events. Raises `ApiError` for an order that failed."""


def stream_answer(
    held: HeldAnswers,
    request: Request,
    placed: PlacedOrder,
    render_events: RenderEvents,
    render_error: Callable[[ApiError], bytes],
) -> StreamingResponse:
    """Return a response that waits for the end of an order. render_error: the event of a failure."""

    async def events() -> AsyncIterator[bytes]:
        try:
            async for _ in held.pauses(request, placed):
                yield HEARTBEAT
            async for chunk in render_events(await held.ended_tasks(placed)):
                yield chunk
        except ClientDisconnect:
            return
        except StorageError:
            mark_unfinished(request)
            yield render_error(unavailable())
        except ApiError as error:
            yield render_error(error)

    return StreamingResponse(events(), media_type="text/event-stream", headers=_HEADERS)


async def stream_event(document: Any, blobs: BlobStore, *, name: str | None = None) -> AsyncIterator[bytes]:
    """Yield an event with a JSON document, which may have `InlineImage` values."""
    yield b"data: " if name is None else f"event: {name}\ndata: ".encode()
    async for chunk in stream_pieces(split_document(document), blobs):
        yield chunk
    yield b"\n\n"


def event_bytes(document: Any) -> bytes:
    """Return an event with a small JSON document."""
    return b"data: " + to_json(document) + b"\n\n"
