"""Strict parsing of untrusted JSON."""

from __future__ import annotations

import pytest

from webhooks.strict_json import read_json


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
