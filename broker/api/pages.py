"""Lists page by page: how long a page is, and where the next one begins."""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Sequence
from typing import Final, TypeVar

from starlette.requests import Request

from broker.errors import Refusal

PAGE: Final = 20
LONGEST_PAGE: Final = 100

_POSITION: Final = re.compile(r"([0-9]{1,12}\.[0-9]{1,12}) ([a-z]+_[0-9a-f]{1,64})")

_NAME: Final = re.compile(r"[\x21-\x7e]{1,100}")

T = TypeVar("T")


def limit_of(text: str | None) -> int:
    """The length of a page, from a query."""
    if not text:
        return PAGE
    if not re.fullmatch(r"[0-9]{1,9}", text) or int(text) == 0:
        raise Refusal("invalid_request", f"limit must be a whole number from 1 to {LONGEST_PAGE}.", field="limit")
    return min(int(text), LONGEST_PAGE)


def cursor_after(moment: float, row_id: str) -> str:
    """Where the next page begins, in a form that nobody is tempted to read."""
    return base64.urlsafe_b64encode(f"{moment!r} {row_id}".encode()).decode().rstrip("=")


def cursor_of(text: str | None, kind: str) -> tuple[float, str] | None:
    """The moment and the id of the last row of the page before. kind: what its id begins with, like `task`."""
    if not text:
        return None
    match = _POSITION.fullmatch(_decoded(text))
    if match is None or not match[2].startswith(f"{kind}_"):
        raise Refusal("invalid_request", "cursor must be the nextCursor of an earlier page.", field="cursor")
    return float(match[1]), match[2]


def page_of(rows: Sequence[T], limit: int) -> tuple[Sequence[T], bool]:
    """A page out of `limit` + 1 rows, and whether another one follows."""
    return rows[:limit], len(rows) > limit


def _decoded(text: str) -> str:
    """Empty for what is no base64 of ASCII."""
    try:
        padded = text[:200].encode("ascii") + b"=" * (-len(text[:200]) % 4)
        return base64.b64decode(padded, altchars=b"-_", validate=True).decode("ascii")
    except (binascii.Error, ValueError):
        return ""


def name_of(request: Request, field: str) -> str | None:
    """What a page is filtered by; an empty value is none."""
    text = request.query_params.get(field) or None
    if text is not None and not _NAME.fullmatch(text):
        raise Refusal("invalid_request", f"{field} must be 1 to 100 visible ASCII characters.", field=field)
    return text
