"""Secrets that every broker of the tests is given, and the search for them where no secret may be.

Searched after each test: its captured output, and the database files and log files of its brokers.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final

from broker.accounts.secret_texts import PREFIXES

_MARK: Final = "planted-"

NAMES: Final = (
    *("kie", "kie-webhook", "gemini", "replicate", "fal", "wavespeed", "openrouter", "nanobananaapi"),
    *("secret-key", "old-secret-key", "caller", "client", "s3-id", "s3-secret", "s3-session", "database"),
    *("password", "wrong-password", "new-password", "own-replicate"),
)
PLANTED: Final = {name: f"{_MARK}{name}-0123456789abcdef" for name in NAMES}

EVERYWHERE: Final[dict[str, Any]] = {
    "kie_keys": PLANTED["kie"],
    "broker_key": PLANTED["client"],
    "s3_access_key": PLANTED["s3-id"],
    "s3_secret_key": PLANTED["s3-secret"],
    "s3_session_token": PLANTED["s3-session"],
}
"""Settings that change nothing in a broker without a bucket and with a provider of the tests."""

_MINTED: Final = re.compile(rb"(%b)[A-Za-z0-9_-]{43}" % "|".join(PREFIXES.values()).encode())
"""API keys, cookies and tokens, which the broker makes itself."""


def _encodings(text: str) -> tuple[bytes, ...]:
    """Return the text, and what base64 makes of it at each of the three offsets."""
    shifted = (base64.b64encode(b"\0" * offset + text.encode()) for offset in range(3))
    starts = (0, 2, 3)
    return (text.encode(), *(encoded[start:10] for start, encoded in zip(starts, shifted, strict=True)))


_NEEDLES: Final = _encodings(_MARK)


def find_secrets(data: bytes) -> list[str]:
    """Return what surrounds each kind of secret in these bytes; empty if there is none."""
    found = [at for needle in _NEEDLES if (at := data.find(needle)) >= 0]
    found += [match.start() for match in [_MINTED.search(data)] if match]
    return [data[max(0, at - 100) : at + 80].decode("utf-8", "replace") for at in found]


def assert_no_secrets(*folders: Path) -> None:
    """Search the databases and logs of brokers."""
    for path in _files(folders):
        found = find_secrets(path.read_bytes())
        assert found == [], f"{path}: {found}"


def _files(folders: Iterable[Path]) -> list[Path]:
    patterns = ("broker.db*", "log.txt", "logs/app.log*")
    return [path for folder in folders for pattern in patterns for path in folder.glob(pattern) if path.is_file()]
