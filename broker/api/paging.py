"""Pages of what is listed newest first: how long one is, and where the next one begins."""

from __future__ import annotations

import base64
import binascii
import re
from typing import Final, Protocol

from starlette.requests import Request

from broker.errors import Refusal

PAGE: Final = 20
LONGEST_PAGE: Final = 100


class Listed(Protocol):
    """What stands in a list."""

    @property
    def id(self) -> str: ...

    @property
    def created_at(self) -> float: ...


def limit(request: Request) -> int:
    """How many the caller wants. Raises `Refusal`."""
    text = request.query_params.get("limit")
    if not text:
        return PAGE
    if not re.fullmatch(r"[0-9]{1,9}", text) or int(text) == 0:
        raise Refusal("invalid_request", f"limit must be a whole number from 1 to {LONGEST_PAGE}.", field="limit")
    return min(int(text), LONGEST_PAGE)


def after(last: Listed) -> str:
    """Where the next page begins, in a form that nobody is tempted to read."""
    return base64.urlsafe_b64encode(f"{last.created_at!r} {last.id}".encode()).decode().rstrip("=")


def before(request: Request, kind: str) -> tuple[float, str] | None:
    """Where the page begins: moment and id of the last one before it. kind: how its ids begin. Raises `Refusal`."""
    text = request.query_params.get("cursor")
    if not text:
        return None
    match = re.fullmatch(rf"([0-9]{{1,12}}\.[0-9]{{1,12}}) ({kind}_[0-9a-f]{{32}})", _decoded(text))
    if match is None:
        raise Refusal("invalid_request", "cursor must be the nextCursor of an earlier page.", field="cursor")
    return float(match[1]), match[2]


def _decoded(text: str) -> str:
    """Empty for what is no base64 of ASCII."""
    try:
        padded = text[:200].encode("ascii") + b"=" * (-len(text[:200]) % 4)
        return base64.b64decode(padded, altchars=b"-_", validate=True).decode("ascii")
    except (binascii.Error, ValueError):
        return ""
