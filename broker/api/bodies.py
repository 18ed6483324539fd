"""Request bodies: counted while they are read, parsed by one function each, never trusted."""

from __future__ import annotations

import errno
import re
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from typing import Any, Final

from python_multipart.multipart import parse_options_header
from starlette.datastructures import FormData
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import Request

from broker.errors import Refusal
from webhooks.strict_json import read_json

MOST_PARTS: Final = 100
MOST_TEXT_BYTES: Final = 256 * 1024
"""Of one text part; the longest prompt is a quarter of it."""

_NO_SPACE: Final = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


class Counted(Request):
    """A request whose body ends in a refusal as soon as it is larger than allowed.

    Starlette's own limit is not used: it answers in plain text, and with 413 where we would say 401.
    """

    def __init__(self, request: Request, most: int) -> None:
        super().__init__(request.scope, request.receive)
        self._most = most

    async def stream(self) -> AsyncGenerator[bytes, None]:
        length = self.headers.get("content-length", "0")
        read = int(length) if re.fullmatch(r"[0-9]{1,20}", length) else 0
        self._check(read)
        read = 0
        async with aclosing(super().stream()) as chunks:
            async for chunk in chunks:
                read += len(chunk)
                self._check(read)
                yield chunk

    def _check(self, size: int) -> None:
        if size > self._most:
            raise Refusal("payload_too_large", f"The request is larger than {self._most:,} bytes: send less.")


def kind(request: Request) -> tuple[str, Mapping[bytes, bytes]]:
    """The media type and its parameters."""
    refuse_encoding(request)
    media_type, options = parse_options_header(request.headers.get("content-type", ""))
    charset = options.get(b"charset", b"utf-8").lower()
    if charset not in {b"utf-8", b"utf8"}:  # some codecs of Python make what is no text at all
        raise Refusal("invalid_request", "Send text as UTF-8: no other charset is read.", field="Content-Type")
    return media_type.decode("latin-1").strip().lower(), options


def is_encoded(request: Request) -> bool:
    return request.headers.get("content-encoding", "identity").strip().lower() not in {"identity", ""}


def refuse_encoding(request: Request) -> None:
    """Nothing is inflated: a small body must not become a large one in here."""
    if is_encoded(request):
        raise Refusal("invalid_request", "Send the body as it is, without Content-Encoding.", field="Content-Encoding")


# -- JSON


async def read_object(request: Request, most: int) -> dict[str, Any]:
    """The JSON object of a request. Raises `Refusal`."""
    document = parse(await Counted(request, most).body())
    if not isinstance(document, dict):
        raise Refusal("invalid_request", 'The body is not a JSON object: send {"prompt": "…"}.')
    return document


def parse(body: bytes) -> Any:
    """JSON that we would store. Raises `Refusal`."""
    try:
        return read_json(body)
    except ValueError as error:
        raise Refusal(
            "invalid_request", "The body is not readable JSON: check its syntax and that it is UTF-8."
        ) from error


# -- forms


class _Form(MultiPartParser):
    """Starlette's parser, which does not mind when the end is missing. We do: half an upload is none."""

    _ended = False

    async def parse(self) -> FormData:
        async with aclosing(self._to_its_end(self.stream)) as chunks:
            self.stream = chunks
            return await super().parse()

    async def _to_its_end(self, chunks: AsyncGenerator[bytes, None]) -> AsyncGenerator[bytes, None]:
        """Complains from within the stream, so that the parser closes its files, finished or not."""
        async for chunk in chunks:
            yield chunk
        if not self._ended:
            raise MultiPartException("Its end is missing.")

    def on_end(self) -> None:
        self._ended = True


async def read_form(request: Request, options: Mapping[bytes, bytes], most: int) -> FormData:
    """The parts of a form, files spooled; whoever gets it closes it. Raises `Refusal`."""
    if not options.get(b"boundary"):
        raise Refusal("invalid_request", "The form has no boundary: let your HTTP client set Content-Type.")
    async with aclosing(Counted(request, most).stream()) as chunks:
        parser = _Form(
            request.headers, chunks, max_files=MOST_PARTS, max_fields=MOST_PARTS, max_part_size=MOST_TEXT_BYTES
        )
        try:
            return await parser.parse()
        except MultiPartException as error:
            raise _malformed(error.message) from error
        except OSError as error:
            raise _no_room(error) from error


def _malformed(why: str) -> Refusal:
    if why.startswith("Part exceeded"):
        return Refusal("payload_too_large", f"A text field is larger than {MOST_TEXT_BYTES:,} bytes: send less.")
    return Refusal("invalid_request", f"The form cannot be read. {why.rstrip('.')}: let your HTTP client write it.")


def _no_room(error: OSError) -> Exception:
    if error.errno in _NO_SPACE:
        return Refusal("storage_full", "There is no space left for uploads. Try again later.", retryable=True)
    return error
