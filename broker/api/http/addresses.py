"""Absolute URLs of the broker, for answers of APIs whose clients follow them."""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Final

from starlette.requests import HTTPConnection

from broker.api.http.auth import is_forwarded
from broker.api.http.identity import header_value, header_values

_HOST: Final = re.compile(r"([A-Za-z0-9._-]{1,255}|\[[0-9A-Fa-f:.]{2,45}\])(:[0-9]{1,5})?")


def own_base_url(request: HTTPConnection, public: str | None) -> str:
    """Return the URL at which the client reaches the broker, without a trailing slash.

    It has TLS if the client's own connection has: a client must not be sent to a place where its key is read.

    public: our public URL, if there is one. A request that a proxy or a tunnel sent on has come to that: what the proxy
    writes into `Host`, and the scheme that it uses to reach us, say nothing about the client's side. A direct request
    has come to its `Host`. Clients of such a URL send their key to it, so it is used in the answer to this request
    alone, never for another caller.
    """
    host, scheme = reached_host(request), request.scope["scheme"]
    if header_value(request, "x-forwarded-proto").partition(",")[0].strip().lower() == "https":
        scheme = "https"
    if public and (host is None or is_forwarded(request)) and (public.startswith("https:") or scheme == "http"):
        return public
    return f"{scheme}://{host or 'localhost'}"


def reached_host(request: HTTPConnection) -> str | None:
    """Return the `Host` of a request, with its port; None without a plain one. A caller can send any."""
    hosts = header_values(request.scope, "host")
    return hosts[0] if len(hosts) == 1 and _is_plain(hosts[0]) else None


@lru_cache(maxsize=64)  # clients send the same one with each request
def _is_plain(host: str) -> bool:
    return _HOST.fullmatch(host) is not None
