"""Absolute addresses in answers."""

from __future__ import annotations

import pytest
from starlette.requests import HTTPConnection

from broker.api.shared.addresses import AnswerAddresses


def base(public: str | None = None, **headers: str) -> str:
    raw = [(name.replace("_", "-").encode(), value.encode("latin-1")) for name, value in headers.items()]
    request = HTTPConnection({"type": "http", "scheme": "http", "headers": raw})
    return AnswerAddresses(public_base=lambda: public).base_for(request)


def test_public_url_is_preferred() -> None:
    assert base("https://broker.example.com", host="10.0.0.1:8000") == "https://broker.example.com"


@pytest.mark.parametrize("host", ["10.0.0.1:8000", "broker.example.com", "[::1]:8000", "localhost"])
def test_without_it_the_address_is_that_of_the_request(host: str) -> None:
    assert base(host=host) == f"http://{host}"
    assert base(host=host, x_forwarded_proto="https") == f"https://{host}"


@pytest.mark.parametrize("host", ["a b", "a/b", "user@host", "host:port", "", "a?b", "a\\b"])
def test_a_host_that_is_none_is_not_repeated(host: str) -> None:
    assert base(host=host) == "http://localhost"
