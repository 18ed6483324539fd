"""URLs of results: only those that lead to a host are taken."""

from __future__ import annotations

from urllib.parse import urlsplit

import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker.providers.parsing import is_link

HOST = "https://files.example.com"


@pytest.mark.parametrize(
    "url",
    [
        f"{HOST}/a.png",
        f"{HOST}:8443/a%20b.png",
        f"{HOST}?name=a",
        HOST,
        "HTTP://EXAMPLE.COM/A.PNG",
        "http://[2001:db8::1]/a.png",
        "https://bücher.example/ä.png",
        "https://user@example.com/a.png",
    ],
)
def test_url_with_a_host_is_a_link(url: str) -> None:
    assert is_link(url)


@pytest.mark.parametrize(
    "url",
    ["", "a.png", "//example.com/a.png", "ftp://example.com/a.png", "https:///a.png", f"{HOST}/a b", f"{HOST}/\n"],
)
def test_anything_else_is_none(url: str) -> None:
    assert not is_link(url)


@given(st.text("htps:/?#[]@.-_a0 \n%é", max_size=20).map("http".__add__))
def test_short_cut_decides_as_the_standard_library_does(url: str) -> None:
    try:
        parts = urlsplit(url)
        has_host = parts.scheme in {"http", "https"} and bool(parts.hostname)
    except ValueError:
        has_host = False
    assert is_link(url) == (has_host and url.isprintable() and " " not in url)
