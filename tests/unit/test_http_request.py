"""Heads of outgoing requests."""

from __future__ import annotations

import pytest

from broker.net.http_request import BASE_HEADERS, InvalidHeader, build_request
from broker.net.url_policy import parse_url

URL = parse_url("http://example.com:8080/a?b=c")


def test_request_has_the_basic_headers_and_its_own() -> None:
    lines = build_request("GET", URL, {"X-Key": "1"}).head.decode().split("\r\n")
    assert lines[:2] == ["GET /a?b=c HTTP/1.1", "Host: example.com:8080"]
    assert sorted(lines[2:-2]) == sorted([*(f"{name}: {value}" for name, value in BASE_HEADERS.items()), "X-Key: 1"])


def test_header_replaces_the_basic_one_of_the_same_name() -> None:
    head = build_request("GET", URL, {"User-Agent": "tests"}).head.decode()
    assert head.count("User-Agent") == 1
    assert "User-Agent: tests\r\n" in head
    assert "Accept-Encoding: identity\r\n" in head


@pytest.mark.parametrize("name, value", [("A b", "1"), ("A", "1\r\nB: 2"), ("A", "ä")])
def test_unsound_header_is_refused(name: str, value: str) -> None:
    with pytest.raises(InvalidHeader):
        build_request("GET", URL, {name: value})
