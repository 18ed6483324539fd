"""Request bodies: counted while they are read, then parsed."""

from __future__ import annotations

import errno
import re
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import aclosing
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any, Final, TypeVar
from urllib.parse import parse_qsl

from pydantic import BaseModel, ConfigDict, ValidationError
from python_multipart.multipart import parse_options_header
from starlette.datastructures import FormData, UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import ClientDisconnect, Request

from broker.api.http.identity import header_table, header_value, header_values
from broker.catalog import Catalog
from broker.errors import ApiError, FieldError
from broker.net.documents import MAX_INLINE_BYTES, parse_off_loop
from storage.errors import StorageFull
from webhooks.strict_json import DuplicateName, TooManyValues, read_json

MAX_JSON_BYTES: Final = 48 * 2**20
"""Of an order with its images."""
FORM_OVERHEAD_BYTES: Final = 2 * 2**20
URLENCODED: Final = "application/x-www-form-urlencoded"
FORM_TYPES: Final = (URLENCODED, "multipart/form-data")
MAX_PARTS: Final = 100
MAX_TEXT_BYTES: Final = 256 * 1024
"""Of one text part; the longest prompt is a quarter of it."""
MAX_WRONG_FIELDS: Final = 50
"""Named in an error: the answer must not be much larger than the request."""
FILE_CHUNK_BYTES: Final = 256 * 1024


class RequestModel(BaseModel):
    """Base of what callers send. A model is built when it is first used."""

    model_config = ConfigDict(defer_build=True)


T = TypeVar("T")
M = TypeVar("M", bound=BaseModel)

_NO_VALUES: Final = ("",)
_UTF8: Final = frozenset({b"utf-8", b"utf8"})
_LENGTH: Final = re.compile(r"[0-9]{1,20}")
_SECRET_LENGTH: Final = re.compile(r"Value should have (at least|at most) (\d+) items? after validation, not .*")
"""Pydantic's words for a `SecretStr` that is too short or too long."""
_DISK_FULL: Final = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


class BoundedRequest(Request):
    """A request whose body raises `ApiError("payload_too_large")` as soon as it is larger than allowed.

    Starlette's own limit is not used: it answers in plain text, and before the access is checked.
    """

    def __init__(self, request: Request, max_bytes: int) -> None:
        super().__init__(request.scope, request.receive)
        self._max_bytes = max_bytes

    async def stream(self) -> AsyncGenerator[bytes, None]:
        _check_length(self, self._max_bytes)
        read = 0
        async with aclosing(super().stream()) as chunks:
            async for chunk in chunks:
                read += len(chunk)
                if read > self._max_bytes:
                    raise _too_large(self._max_bytes)
                yield chunk


async def read_body(request: Request, max_bytes: int) -> bytes:
    """Return the body of a request, without the generators of `stream`, which take longer than a small one.

    Raises `ApiError("payload_too_large")` as soon as it is larger than allowed.
    """
    _check_length(request, max_bytes)
    receive, chunks, read = request.receive, list[bytes](), 0
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientDisconnect
        chunk = message.get("body", b"")
        read += len(chunk)
        if read > max_bytes:
            raise _too_large(max_bytes)
        chunks.append(chunk)
        if not message.get("more_body", False):
            return b"".join(chunks) if len(chunks) > 1 else chunk


def _check_length(request: Request, max_bytes: int) -> None:
    length = header_value(request, "content-length", "0")
    if _LENGTH.fullmatch(length) and int(length) > max_bytes:
        raise _too_large(max_bytes)


def _too_large(max_bytes: int) -> ApiError:
    return ApiError("payload_too_large", f"The request is larger than {max_bytes:,} bytes: send less.")


def media_type_of(request: Request) -> tuple[str, Mapping[bytes, bytes]]:
    """Return the media type and its parameters. Raises `ApiError` for an encoded body or a charset other than UTF-8."""
    headers = header_table(request.scope)
    if "content-encoding" in headers and is_encoded(
        request
    ):  # not inflated: a small body must not become a large one in memory
        raise ApiError("invalid_request", "Send the body as it is, without Content-Encoding.", field="Content-Encoding")
    media_type, options = _parse_media_type(headers.get("content-type", _NO_VALUES)[0])
    if options.get(b"charset", b"utf-8").lower() not in _UTF8:  # some codecs of Python decode to invalid text
        raise ApiError("invalid_request", "Send text as UTF-8: no other charset is read.", field="Content-Type")
    return media_type, options


@lru_cache(maxsize=64)  # most clients send one of a few
def _parse_media_type(header: str) -> tuple[str, Mapping[bytes, bytes]]:
    media_type, options = parse_options_header(header)
    return media_type.decode("latin-1").strip().lower(), options


def has_body(request: Request) -> bool:
    """Return whether a request has a body, without reading it."""
    is_chunked = bool(header_values(request.scope, "transfer-encoding"))
    return is_chunked or header_value(request, "content-length", "0").strip("0") != ""


def is_encoded(request: Request) -> bool:
    codings = header_table(request.scope).get("content-encoding")
    return codings is not None and codings[0].strip().lower() not in {"identity", ""}


# -- JSON


async def read_json_object(request: Request, max_bytes: int, build: Callable[[dict[str, Any]], T]) -> T:
    """Return what `build` makes of the JSON object of a request. Raises `ApiError`, and the errors of `build`."""
    body = await read_body(request, max_bytes)
    if len(body) <= MAX_INLINE_BYTES:
        return _parse_object(body, build)
    return await parse_off_loop(len(body), partial(_parse_object, body, build))


def _parse_object(body: bytes, build: Callable[[dict[str, Any]], T]) -> T:
    document = parse_json(body)
    if not isinstance(document, dict):
        raise ApiError("invalid_request", 'The body is not a JSON object: send {"prompt": "…"}.')
    return build(document)


async def read_json_model(request: Request, max_bytes: int, model: type[M]) -> M:
    """Return the JSON object of a request as a model. Raises `ApiError` naming the fields that are wrong."""

    def build(document: dict[str, Any]) -> M:
        try:
            return model.model_validate(document)
        except ValidationError as error:
            raise validation_error(error) from error

    return await read_json_object(request, max_bytes, build)


def validation_error(error: ValidationError) -> ApiError:
    """Return the error of the API for fields of a wrong type or range, the first ones, each named once."""
    messages: dict[str, str] = {}
    for one in error.errors(include_url=False, include_input=False, include_context=False)[:MAX_WRONG_FIELDS]:
        name = ".".join(str(part) for part in one["loc"])[:100] or "body"
        if name.isprintable():
            message = _SECRET_LENGTH.sub(r"should have \1 \2 characters", one["msg"])
            messages.setdefault(name, f"{name}: {message[:1].lower()}{message[1:]}.")
    details = [FieldError(field=name, message=message) for name, message in messages.items()]
    first = details[0] if details else FieldError(field="body", message="The body has a field that is wrong.")
    return ApiError("invalid_request", first.message, field=first.field, details=details)


def parse_json(body: bytes) -> Any:
    """Return strict JSON. Raises `ApiError`."""
    try:
        return read_json(body)
    except DuplicateName as error:
        name = error.name[:64] if error.name.isprintable() else None
        message = f"{name or 'A field'} was given more than once: send one value."
        raise ApiError("invalid_request", message, field=name) from error
    except TooManyValues as error:
        raise ApiError("invalid_request", f"The body has {error}: send less.") from error
    except ValueError as error:
        raise ApiError(
            "invalid_request", "The body is not readable JSON: check its syntax and that it is UTF-8."
        ) from error


# -- forms


async def read_form_model(request: Request, max_bytes: int, model: type[M]) -> M:
    """Return the text fields of a form of one of `FORM_TYPES` as a model. Raises `ApiError` as for JSON."""
    media_type, options = media_type_of(request)
    if media_type == URLENCODED:
        pairs = _parse_urlencoded(await read_body(request, max_bytes))
    else:
        form = await read_form(request, options, max_bytes)
        try:
            pairs = [(name, value) for name, value in form.multi_items() if isinstance(value, str)]
        finally:
            await form.close()
    fields = dict(pairs)
    if len(fields) < len(pairs):
        raise ApiError("invalid_request", "A field was given more than once: send one value.")
    try:
        return model.model_validate(fields)
    except ValidationError as error:
        raise validation_error(error) from error


def _parse_urlencoded(body: bytes) -> list[tuple[str, str]]:
    try:
        return parse_qsl(body.decode("ascii"), keep_blank_values=True, errors="strict", max_num_fields=MAX_PARTS)
    except ValueError as error:
        raise ApiError("invalid_request", "The form cannot be read: let your HTTP client write it.") from error


def max_form_bytes(catalog: Catalog, max_file_size_bytes: int) -> int:
    """Return the size limit of a form: the references of the model that takes most, and the other fields."""
    return max(model.max_references for model in catalog.models) * max_file_size_bytes + FORM_OVERHEAD_BYTES


class _CompleteFormParser(MultiPartParser):
    """Starlette's parser, but a form without its end is an error: half an upload must not pass for a whole one."""

    _ended = False

    async def parse(self) -> FormData:
        async with aclosing(self._until_end(self.stream)) as chunks:
            self.stream = chunks
            return await super().parse()

    async def _until_end(self, chunks: AsyncGenerator[bytes, None]) -> AsyncGenerator[bytes, None]:
        """Raise from within the stream, so that the parser closes its files, finished or not."""
        async for chunk in chunks:
            yield chunk
        if not self._ended:
            raise MultiPartException("Its end is missing.")

    def on_end(self) -> None:
        self._ended = True


async def read_form(request: Request, options: Mapping[bytes, bytes], max_bytes: int) -> FormData:
    """Return the parts of a form, files spooled; the caller closes it. Raises `ApiError`."""
    if not options.get(b"boundary"):
        raise ApiError("invalid_request", "The form has no boundary: let your HTTP client set Content-Type.")
    async with aclosing(BoundedRequest(request, max_bytes).stream()) as chunks:
        parser = _CompleteFormParser(
            request.headers, chunks, max_files=MAX_PARTS, max_fields=MAX_PARTS, max_part_size=MAX_TEXT_BYTES
        )
        try:
            return await parser.parse()
        except MultiPartException as error:
            if error.message.startswith("Part exceeded"):
                message = f"A text field is larger than {MAX_TEXT_BYTES:,} bytes: send less."
                raise ApiError("payload_too_large", message) from error
            message = f"The form cannot be read. {error.message.rstrip('.')}: let your HTTP client write it."
            raise ApiError("invalid_request", message) from error
        except OSError as error:
            if error.errno in _DISK_FULL:
                raise StorageFull("the disk for temporary files is full") from error
            raise


@dataclass
class UploadedChunks:
    """The bytes of an uploaded file, from its beginning in each iteration.

    A class, because a generator that is left half-way has to be closed by its caller.
    """

    file: UploadFile
    _begun: bool = False

    def __aiter__(self) -> UploadedChunks:
        self._begun = False
        return self

    async def __anext__(self) -> bytes:
        if not self._begun:
            await self.file.seek(0)
            self._begun = True
        chunk = await self.file.read(FILE_CHUNK_BYTES)
        if not chunk:
            raise StopAsyncIteration
        return chunk
