"""The search for secrets finds them, however they are written."""

from __future__ import annotations

import base64
from pathlib import Path

import pytest

from broker.accounts.secret_texts import PREFIXES, new_secret
from tests.support.planted_secrets import PLANTED, assert_no_secrets, find_secrets


def test_every_planted_secret_is_found_also_inside_base64() -> None:
    assert len(PLANTED) == len(set(PLANTED.values())) == 20
    for secret in PLANTED.values():
        assert find_secrets(f"a line with {secret} in it".encode())
        for before in ("", "x", "xy"):
            assert find_secrets(base64.b64encode(f"{before}{secret}".encode()))
    assert find_secrets(b"a line without any, with a plant and nbk_short") == []


@pytest.mark.parametrize("use", PREFIXES)
def test_every_secret_that_the_broker_makes_is_found(use: str, tmp_path: Path) -> None:
    (tmp_path / "broker.db-wal").write_bytes(b"\0" * 5000 + new_secret(use).encode() + b"\0")  # type: ignore[arg-type]
    with pytest.raises(AssertionError):
        assert_no_secrets(tmp_path)
