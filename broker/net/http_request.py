"""Outgoing HTTP/1.1 requests: heads and bodies as they are sent, without I/O."""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Final, NamedTuple
from urllib.parse import quote, urlencode

from broker.net.url_policy import ParsedUrl

USER_AGENT: Final = "nano-banana-broker"
BASE_HEADERS: Final[Mapping[str, str]] = {"User-Agent": USER_AGENT, "Accept": "*/*", "Accept-Encoding": "identity"}
"""Of every request."""

_encode_json: Final = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"), allow_nan=False).encode
_TOKENS: Final = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]*")
_LINES: Final = re.compile(r"(?:[^:\s]++: [ -~]*+\r\n)*+")
_VISIBLE_ASCII: Final = "".join(map(chr, range(0x21, 0x7F)))
_METHODS_WITH_BODY: Final = frozenset({"POST", "PUT", "PATCH"})
_FORM_ESCAPES: Final = {
    **{code: f"%{code:02X}" for code in range(0x20) if code != 0x1B},
    ord('"'): "%22",
    ord("\\"): "\\\\",
}
"""Characters that would end the quotes around a name of a form, as browsers escape them."""


@dataclass(frozen=True, kw_only=True)
class StreamedBody:
    """A request body that is sent while it is produced."""

    size: int
    """Bytes of all chunks together."""
    chunks: AsyncIterator[bytes]
    """Raises `NotSent` if it cannot be completed: a server ignores half a body."""
    media_type: str = "application/json"


@dataclass(frozen=True, kw_only=True)
class FilePart:
    """One file of a multipart form."""

    name: str
    filename: str
    media_type: str
    read: Callable[[], AsyncIterator[bytes]]
    """Streams the content; called when an upload slot is free."""


class HttpRequest(NamedTuple):
    """A request as it is sent."""

    head: bytes
    body: bytes | StreamedBody = b""


class InvalidHeader(ValueError):
    """A header that cannot be sent. The message names it without its value, which may be a key."""


def build_request(
    method: str, url: ParsedUrl, headers: Mapping[str, str], body: bytes | StreamedBody = b""
) -> HttpRequest:
    """Return a request with `BASE_HEADERS`, further ones, its Host and Content-Length. Raises `InvalidHeader`.

    headers: one replaces the basic one of the same name.
    """
    fields = "".join([f"{name}: {value}\r\n" for name, value in headers.items()])
    # all at once, as long as they are sound: in the lines of two headers a third one could hide
    if headers and (
        fields.count("\n") != len(headers) or not (_TOKENS.fullmatch("".join(headers)) and _LINES.fullmatch(fields))
    ):
        raise InvalidHeader(f"the header {_find_invalid(headers)} has characters that headers cannot have")
    fields = _base_fields(frozenset(BASE_HEADERS.keys() & headers.keys())) + fields
    size = len(body) if isinstance(body, bytes) else body.size
    if size or method in _METHODS_WITH_BODY:
        fields += f"Content-Length: {size}\r\n"
    head = f"{method} {url.target} HTTP/1.1\r\nHost: {url.authority}\r\n{fields}\r\n"
    return HttpRequest(head.encode("ascii"), body)


@lru_cache(maxsize=16)
def _base_fields(replaced: frozenset[str]) -> str:
    return "".join([f"{name}: {value}\r\n" for name, value in BASE_HEADERS.items() if name not in replaced])


def _find_invalid(headers: Mapping[str, str]) -> str:
    lines = {name: value for name, value in headers.items() if name and _TOKENS.fullmatch(name) and value.isascii()}
    return next(name for name in headers if name not in lines or not lines[name].isprintable())


def quote_unsafe(url: str) -> str:
    """Return an address with spaces, control characters and non-ASCII escaped; unreadable ones stay so."""
    try:
        return quote(url, safe=_VISIBLE_ASCII)
    except UnicodeEncodeError:
        return url


def with_params(target: str, params: Mapping[str, str]) -> str:
    """Return a path and query with further parameters."""
    if not params:
        return target
    return f"{target}{'&' if '?' in target else '?'}{urlencode(params)}"


def encode_json(document: Any) -> bytes:
    """Return the JSON of a document in UTF-8. Raises ValueError for NaN and for text that is not Unicode."""
    return _encode_json(document).encode()


def encode_form(form: Mapping[str, str], files: Iterable[tuple[FilePart, bytes]]) -> tuple[str, bytes]:
    """Return the Content-Type and the body of a multipart form. files: parts and their content."""
    boundary = secrets.token_hex(16)
    parts: list[bytes] = []
    for name, text in form.items():
        parts += [_part_head(boundary, name), text.encode("utf-8", "replace"), b"\r\n"]
    for file, content in files:
        parts += [_part_head(boundary, file.name, file), content, b"\r\n"]
    return f"multipart/form-data; boundary={boundary}", b"".join([*parts, f"--{boundary}--\r\n".encode()])


def _part_head(boundary: str, name: str, file: FilePart | None = None) -> bytes:
    head = f'--{boundary}\r\nContent-Disposition: form-data; name="{name.translate(_FORM_ESCAPES)}"'
    if file is not None:
        head += f'; filename="{file.filename.translate(_FORM_ESCAPES)}"\r\nContent-Type: {file.media_type}'
    return f"{head}\r\n\r\n".encode("utf-8", "replace")
