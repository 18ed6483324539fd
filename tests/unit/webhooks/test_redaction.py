"""Redaction of secrets in what is stored of a callback."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Final
from urllib.parse import quote, quote_plus

import pytest
from hypothesis import given
from hypothesis import strategies as st

from webhooks.redaction import MASK, Redactor

SECRET = 'kie-key/with+odd="chars"&m\\ore\nénd 🍌'


def nested(times: int) -> Callable[[str], str]:
    def encode(text: str) -> str:
        for _ in range(times):
            text = json.dumps(text)
        return text

    return encode


@pytest.mark.parametrize(
    "encode",
    [
        str,
        nested(1),
        nested(2),
        nested(3),
        lambda text: json.dumps(text, ensure_ascii=False),
        lambda text: json.dumps(text).replace("/", "\\/"),
        lambda text: json.dumps(text).replace("&", "\\u0026").replace("=", "\\u003D").replace("+", "\\u002b"),
        quote,
        quote_plus,
        lambda text: quote(text, safe=""),
        lambda text: quote(quote(text, safe=""), safe="").replace("%253D", "%253d"),
        lambda text: json.dumps(f"https://a.example/?key={quote(text, safe='')}"),
    ],
)
def test_secret_is_masked_in_every_spelling(encode: Callable[[str], str]) -> None:
    text = f"Bearer {encode(SECRET)} end"
    kept = Redactor([SECRET]).redact(text)
    assert "kie" not in kept
    assert "ore" not in kept
    assert kept.startswith("Bearer ")
    assert MASK in kept
    assert kept.endswith(" end")


@pytest.mark.parametrize("secret", ["nabcdefgh", "uabcdefgh", "babcdefgh", '"quoted-secret', "\\backslashed"])
@pytest.mark.parametrize("before", ["", "\n", "\\", '"', "\b", "\\n", "\\\\"])
def test_json_stays_json_at_every_level(secret: str, before: str) -> None:
    """What looks like the beginning of a secret may be the end of an escape sequence."""
    inner = json.dumps({"text": before + secret, "url": "https://a.example/x.png"})
    kept = json.loads(Redactor([secret]).redact(json.dumps({"inner": inner, "next": 1})))
    assert kept["next"] == 1
    assert json.loads(kept["inner"])["url"] == "https://a.example/x.png"
    assert secret not in json.loads(kept["inner"])["text"]


def test_text_that_only_looks_like_a_secret_behind_a_backslash_stays_json() -> None:
    body = json.dumps({"a": "\nabcdefgh", "b": "\uabcdefgh"})
    assert json.loads(Redactor(["nabcdefgh", "uabcdefgh"]).redact(body)) == {"a": f"\n{MASK}", "b": f"\uabcd{MASK}"}


def test_short_values_are_no_secrets() -> None:
    assert Redactor(["", "success"]).redact('{"state": "success"}') == '{"state": "success"}'


def test_secret_that_contains_another_is_masked_as_a_whole() -> None:
    assert Redactor(["password", "whsec_password_long"]).redact("whsec_password_long password") == f"{MASK} {MASK}"


AMBIGUOUS: Final = 'abnu0\\/"%25+ я'
"""Characters that escape sequences consist of."""


@given(st.text(AMBIGUOUS), st.text(AMBIGUOUS, min_size=8, max_size=12))
def test_no_secret_is_left(text: str, secret: str) -> None:
    kept = Redactor([secret]).redact(text + secret)
    assert MASK in kept
    assert secret not in kept
