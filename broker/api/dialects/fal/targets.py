"""What a request is meant for: by its own path, or through the proxy of fal's JavaScript client by an address at fal.

No request leaves the broker: an address of fal is read as one of our own functions, and any other is refused.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Literal
from urllib.parse import parse_qsl, urlsplit

from starlette.requests import Request

TARGET_URL: Final = "x-fal-target-url"
MAX_QUERY_FIELDS: Final = 20
Kind = Literal["run", "submit", "status", "stream", "result", "cancel", "upload"]

_APP: Final = r"(?P<app>[A-Za-z0-9][A-Za-z0-9._-]*(?:/[A-Za-z0-9][A-Za-z0-9._-]*)*)"
_REQUEST: Final = rf"/{_APP}/requests/(?P<id>[A-Za-z0-9_-]{{1,64}})"
_ADDRESSES: Final[tuple[tuple[Kind, str, str, str], ...]] = (
    ("status", "GET", "queue.fal.run", rf"{_REQUEST}/status"),
    ("stream", "GET", "queue.fal.run", rf"{_REQUEST}/status/stream"),
    ("result", "GET", "queue.fal.run", _REQUEST),
    ("cancel", "PUT", "queue.fal.run", rf"{_REQUEST}/cancel"),
    ("submit", "POST", "queue.fal.run", rf"/{_APP}"),
    ("run", "POST", "fal.run", rf"/{_APP}"),
    ("upload", "POST", "rest.fal.ai", r"/storage/upload/initiate"),
)
"""What is done here, and its method, host and path at fal."""


@dataclass(frozen=True, kw_only=True)
class FalTarget:
    """What a request is meant for."""

    app: str
    """With its sub-path, for an order."""
    request_id: str = ""
    """Of an earlier order."""
    query: Mapping[str, str]

    @classmethod
    def from_path(cls, request: Request) -> FalTarget:
        """Return the target of a request that was sent to its own path."""
        path = request.path_params
        names = [path[name] for name in ("app", "owner", "alias", "endpoint") if name in path]
        return cls(app="/".join(names), request_id=path.get("id", ""), query=request.query_params)


def read_target(method: str, url: str) -> tuple[Kind, FalTarget] | None:
    """Return what an address of fal stands for; None for any other address."""
    try:
        parts = urlsplit(url)
        port, query = parts.port, dict(parse_qsl(parts.query, max_num_fields=MAX_QUERY_FIELDS))
    except ValueError:
        return None
    if parts.scheme != "https" or port not in {None, 443} or "@" in parts.netloc:
        return None
    for kind, expected, host, pattern in _ADDRESSES:
        match = re.fullmatch(pattern, parts.path)
        if match and (parts.hostname, method) == (host, expected):
            named = match.groupdict()
            return kind, FalTarget(app=named.get("app", ""), request_id=named.get("id", ""), query=query)
    return None
