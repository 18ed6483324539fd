"""Absolute URLs of the broker, as clients in front of and behind a proxy need them."""

from __future__ import annotations

import pytest
from starlette.requests import HTTPConnection

from broker.api.http.addresses import own_base_url

PUBLIC = "https://broker.example.com/images"


def base(public: str | None, **headers: str) -> str:
    raw = [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()]
    return own_base_url(HTTPConnection({"type": "http", "scheme": "http", "headers": raw}), public)


@pytest.mark.parametrize(
    ("public", "headers", "expected"),
    [
        (None, {"host": "127.0.0.1:8000"}, "http://127.0.0.1:8000"),
        (PUBLIC, {"host": "127.0.0.1:8000"}, "http://127.0.0.1:8000"),
        (PUBLIC, {"host": "127.0.0.1:8000", "x_forwarded_for": "1.2.3.4"}, PUBLIC),
        (None, {"host": "broker.example.com", "x_forwarded_proto": "https"}, "https://broker.example.com"),
        (None, {"host": "[::1]:8000"}, "http://[::1]:8000"),
        ("http://10.0.0.1", {"host": "a.example", "x_forwarded_proto": "https"}, "https://a.example"),
        (PUBLIC, {"host": 'evil"host'}, PUBLIC),
        (None, {"host": "evil host/path"}, "http://localhost"),
        (None, {}, "http://localhost"),
    ],
)
def test_address_is_the_one_that_the_client_reached(public: str | None, headers: dict[str, str], expected: str) -> None:
    assert base(public, **headers) == expected
