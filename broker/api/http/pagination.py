"""Pages of a list: their length, the cursor of the next one, and the filters of a list."""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Iterable, Sequence
from typing import Final, TypeVar

from starlette.requests import Request

from broker.api.http.endpoint import Parameter
from broker.errors import ApiError

DEFAULT_LIMIT: Final = 20
MAX_LIMIT: Final = 100

_POSITION: Final = re.compile(r"([0-9]{1,12}\.[0-9]{1,12}) ([a-z]+_[0-9a-f]{1,64})")
_NAME: Final = re.compile(r"[\x21-\x7e]{1,100}")
_FLAGS: Final = {"": False, "false": False, "0": False, "true": True, "1": True}

T = TypeVar("T")

EMPTY: Final = {"type": "string", "maxLength": 0}
"""An empty value counts as absent."""
NAME_SCHEMA: Final = {"anyOf": [{"type": "string", "pattern": "^[!-~]{1,100}$"}, EMPTY]}
LIMIT: Final = Parameter(
    name="limit",
    where="query",
    text="length of a page; 100 at most",
    schema={
        "anyOf": [{"type": "integer", "minimum": 1, "maximum": 999_999_999}, EMPTY],
        "default": DEFAULT_LIMIT,
    },
)
CURSOR: Final = Parameter(
    name="cursor", where="query", text="`nextCursor` of the page before", schema={"type": "string"}
)


def name_filter(name: str, text: str) -> Parameter:
    """Describe a query parameter that `read_name` reads."""
    return Parameter(name=name, where="query", text=text, schema=NAME_SCHEMA)


def choice_filter(name: str, text: str, choices: Iterable[str]) -> Parameter:
    """Describe a query parameter that `read_choice` reads."""
    return Parameter(name=name, where="query", text=text, schema={"enum": [*choices, ""]})


def read_limit(request: Request) -> int:
    """Return the length of a page, 1 … `MAX_LIMIT`."""
    text = request.query_params.get("limit")
    if not text:
        return DEFAULT_LIMIT
    if not re.fullmatch(r"[0-9]{1,9}", text) or int(text) == 0:
        raise ApiError("invalid_request", f"limit must be a whole number from 1 to {MAX_LIMIT}.", field="limit")
    return min(int(text), MAX_LIMIT)


def read_cursor(request: Request, prefix: str) -> tuple[float, str] | None:
    """Return moment and id of the last row of the page before. prefix: of the ids in this list, like `task`."""
    text = request.query_params.get("cursor")
    if not text:
        return None
    match = _POSITION.fullmatch(_decode_cursor(text))
    if match is None or not match[2].startswith(f"{prefix}_"):
        raise ApiError("invalid_request", "cursor must be the nextCursor of an earlier page.", field="cursor")
    return float(match[1]), match[2]


def read_name(request: Request, field: str) -> str | None:
    """Return a filter by name, None if it is absent or empty."""
    text = request.query_params.get(field) or None
    if text is not None and not _NAME.fullmatch(text):
        raise ApiError("invalid_request", f"{field} must be 1 to 100 visible ASCII characters.", field=field)
    return text


def read_choice(request: Request, field: str, choices: Sequence[str]) -> str | None:
    """Return a filter by one of `choices`, None if it is absent or empty."""
    text = request.query_params.get(field) or None
    if text is not None and text not in choices:
        raise ApiError("invalid_request", f"{field} must be one of {', '.join(choices)}.", field=field)
    return text


def read_flag(request: Request, field: str) -> bool:
    """Return a boolean of the query, False if it is absent or empty."""
    text = request.query_params.get(field, "").lower()
    if text not in _FLAGS:
        raise ApiError("invalid_request", f"{field} must be true or false.", field=field)
    return _FLAGS[text]


def make_cursor(moment: float, row_id: str) -> str:
    """Return where the next page begins, in a form that discourages reading it."""
    return base64.urlsafe_b64encode(f"{moment!r} {row_id}".encode()).decode().rstrip("=")


def split_page(rows: Sequence[T], limit: int) -> tuple[Sequence[T], bool]:
    """Return a page out of `limit` + 1 rows, and whether another one follows."""
    return rows[:limit], len(rows) > limit


def _decode_cursor(text: str) -> str:
    """Return "" for what is not base64 of ASCII."""
    try:
        padded = text[:200].encode("ascii") + b"=" * (-len(text[:200]) % 4)
        return base64.b64decode(padded, altchars=b"-_", validate=True).decode("ascii")
    except (binascii.Error, ValueError):
        return ""
