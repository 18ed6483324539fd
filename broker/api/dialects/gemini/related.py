"""Bodies of two parts, JSON and bytes (multipart/related, RFC 2387), as older SDKs upload files."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from typing import Final, TypeVar

from pydantic import BaseModel, ValidationError
from starlette.requests import Request

from broker.api.http.request_body import media_type_of, parse_json, read_body, validation_error
from broker.errors import ApiError

M = TypeVar("M", bound=BaseModel)

MAX_HEADER_BYTES: Final = 4096
PIECE_BYTES: Final = 256 * 1024


async def read_related(request: Request, max_bytes: int, model: type[M]) -> tuple[M, AsyncGenerator[bytes, None]]:
    """Return the first part as a model, and the bytes of the second. The body is in memory. Raises `ApiError`."""
    _, options = media_type_of(request)
    boundary = options.get(b"boundary")
    if not boundary:
        raise ApiError("invalid_request", "The body has no boundary: let your client set Content-Type.")
    first, second = split_parts(await read_body(request, max_bytes), boundary)
    try:
        return model.model_validate(parse_json(bytes(first))), _pieces(second)
    except ValidationError as error:
        raise validation_error(error) from error


def split_parts(body: bytes, boundary: bytes) -> tuple[memoryview, memoryview]:
    """Return the contents of both parts. Raises `ApiError` for a body that is not whole."""
    mark, view, parts = b"--" + boundary, memoryview(body), list[memoryview]()
    at = 0 if body.startswith(mark) else body.find(b"\r\n" + mark) + 2
    while body.startswith(mark + b"\r\n", at):
        header_end = body.find(b"\r\n\r\n", at, at + len(mark) + MAX_HEADER_BYTES)
        end = body.find(b"\r\n" + mark, header_end + 4)
        if header_end < 0 or end < 0:
            break
        parts.append(view[header_end + 4 : end])
        at = end + 2
    if len(parts) != 2 or not body.startswith(mark + b"--", at):
        raise ApiError("invalid_request", "The body must have two parts, JSON and the bytes of the file, and an end.")
    return parts[0], parts[1]


async def _pieces(data: memoryview) -> AsyncGenerator[bytes, None]:
    for start in range(0, len(data), PIECE_BYTES):
        yield bytes(data[start : start + PIECE_BYTES])
