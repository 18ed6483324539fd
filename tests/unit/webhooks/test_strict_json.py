"""Strict parsing of untrusted JSON."""

from __future__ import annotations

import json

import pytest

from webhooks.strict_json import MAX_DIGITS, DuplicateName, read_json


def test_lone_surrogate_is_rejected_or_replaced() -> None:
    body = b'{"a": "\\ud83d", "b": "\\ud83d\\ude00"}'
    with pytest.raises(ValueError, match="surrogate"):
        read_json(body)
    assert read_json(body, repair_surrogates=True) == {"a": "\ufffd", "b": "\U0001f600"}


@pytest.mark.parametrize(("depth", "accepted"), [(3, True), (4, False)])
def test_nesting_beyond_the_limit_is_rejected(depth: int, accepted: bool) -> None:
    body = b"[" * depth + b"]" * depth
    if accepted:
        read_json(body, max_depth=3)
        return
    with pytest.raises(ValueError, match="too deep"):
        read_json(body, max_depth=3)


@pytest.mark.parametrize(
    "body",
    [
        b'{"a": 1, "a": 2}',
        b'{"a": 1, "a": 1}',
        b'{"a": 1, "\\u0061": 2}',
        b'[{"b": [{"a": {}, "x": 1, "a": {}}]}]',
    ],
)
def test_duplicate_name_is_rejected_unless_allowed(body: bytes) -> None:
    """Two readers of one text may pick different values."""
    with pytest.raises(DuplicateName) as caught:
        read_json(body)
    assert caught.value.name == "a"
    assert read_json(body, allow_duplicate_names=True) == json.loads(body)


def test_same_name_in_different_objects_is_no_duplicate() -> None:
    body = b'{"a": {"a": [{"a": 1}, {"a": 2}]}, "b": {"a": 3}}'
    assert read_json(body) == json.loads(body)


@pytest.mark.parametrize(("digits", "accepted"), [(MAX_DIGITS, True), (MAX_DIGITS + 1, False)])
def test_integer_of_too_many_digits_is_rejected(digits: int, accepted: bool) -> None:
    """Eight megabytes of integers of 4,000 digits would hold the interpreter for a sixth of a second."""
    body = b"[" + b"9" * digits + b"]"
    if accepted:
        assert read_json(body) == [10**digits - 1]
    else:
        with pytest.raises(ValueError, match="a number is too long"):
            read_json(body)
