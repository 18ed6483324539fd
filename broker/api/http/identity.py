"""Headers of a request, and those that identify it, or a repeated one."""

from __future__ import annotations

import re
import secrets
from collections.abc import Collection, Mapping, Sequence
from typing import Final

from starlette.requests import HTTPConnection, Request
from starlette.types import Scope

from broker.errors import ApiError

_HEADERS: Final = "broker.headers"
_KEY: Final = re.compile(r"[\x21-\x7e]{1,255}")
_REQUEST_ID: Final = re.compile(rb"[A-Za-z0-9._-]{1,64}")
_ID_CHARACTERS: Final = 16
_IDS_AT_ONCE: Final = 256


def header_table(scope: Scope) -> Mapping[str, Sequence[str]]:
    """Return the values of the headers by their names in lower case.

    They are decoded once per request: a dozen of them are asked for, and Starlette searches its list each time.
    """
    try:
        table: Mapping[str, Sequence[str]] = scope[_HEADERS]
    except KeyError:
        table = scope[_HEADERS] = _decode(scope["headers"])
    return table


def _decode(headers: Collection[tuple[bytes, bytes]]) -> dict[str, list[str]]:
    table = {name.decode("latin-1"): [value.decode("latin-1")] for name, value in headers}
    if len(table) < len(headers):  # rare: a header is repeated
        table = {name: [] for name in table}
        for name, value in headers:
            table[name.decode("latin-1")].append(value.decode("latin-1"))
    return table


def header_values(scope: Scope, name: str) -> Sequence[str]:
    """Return all values of a header. name: in lower case."""
    table: Mapping[str, Sequence[str]] = scope.get(_HEADERS) or header_table(scope)
    return table.get(name, ())


def header_value(request: HTTPConnection, name: str, default: str = "") -> str:
    """Return the first value of a header. name: in lower case."""
    values = header_values(request.scope, name)
    return values[0] if values else default


class RequestIds:
    """Ids of requests."""

    def __init__(self) -> None:
        self._unused: list[bytes] = []

    def choose(self, given: bytes | None) -> bytes:
        """Return the id that a client or proxy gave, if it is one plain token, or a new one."""
        if given is not None and _REQUEST_ID.fullmatch(given):
            return given
        if not self._unused:  # many at once: a call of the kernel costs as much as the rest of a ready response
            text = secrets.token_hex(_ID_CHARACTERS // 2 * _IDS_AT_ONCE).encode()
            self._unused = [text[start : start + _ID_CHARACTERS] for start in range(0, len(text), _ID_CHARACTERS)]
        return self._unused.pop()


def idempotency_key(request: Request) -> str | None:
    """Return the Idempotency-Key. Raises `ApiError` for one that is not a plain token."""
    keys = header_values(request.scope, "idempotency-key")
    if not keys:
        return None
    if len(keys) > 1 or not _KEY.fullmatch(keys[0]):
        raise ApiError(
            "invalid_request", "Idempotency-Key must be 1 to 255 visible ASCII characters.", field="Idempotency-Key"
        )
    return keys[0]


def retry_count(request: Request) -> int | None:
    """Return how often a Stainless SDK has already sent this request; None for other clients."""
    count = header_value(request, "x-stainless-retry-count")
    return int(count) if count and re.fullmatch(r"[0-9]{1,3}", count) else None
