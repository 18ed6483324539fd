"""Calls whose result was not delivered yet: a repeated one gets the same order.

A client that gave up waiting sends the same call again. Until the result of an order was delivered, by that call or by
`get_task`, an equal call has the same idempotency key; after that it is a new order.
"""

from __future__ import annotations

import hashlib
import json
import secrets
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

MAX_OPEN_CALLS: Final = 1000
"""The oldest are forgotten."""


def fingerprint_of(arguments: Mapping[str, Any], images: Iterable[str | bytes]) -> str:
    """Return a hash of a call: its arguments and the content of its images."""
    digest = hashlib.sha256(json.dumps(arguments, sort_keys=True, default=str).encode())
    for image in images:
        content = image.encode() if isinstance(image, str) else image
        digest.update(hashlib.sha256(content).digest())
    return digest.hexdigest()


@dataclass
class OpenCalls:
    """Idempotency keys of calls by fingerprint."""

    _keys: dict[str, str] = field(default_factory=dict)
    _fingerprints: dict[str, str] = field(default_factory=dict)
    """By task."""

    def open(self, fingerprint: str) -> str:
        """Return the key of a call: that of an equal open one, or a new one."""
        key = self._keys.setdefault(fingerprint, secrets.token_hex(16))
        while len(self._keys) > MAX_OPEN_CALLS:
            self._forget(next(iter(self._keys)))
        return key

    def add_tasks(self, fingerprint: str, tasks: Iterable[str]) -> None:
        self._fingerprints |= dict.fromkeys(tasks, fingerprint)

    def close(self, fingerprint: str) -> None:
        """The result of the call was delivered, or nothing was ordered."""
        self._forget(fingerprint)

    def close_tasks(self, tasks: Iterable[str]) -> None:
        """The results of these tasks were delivered."""
        for fingerprint in {self._fingerprints[task] for task in tasks if task in self._fingerprints}:
            self._forget(fingerprint)

    def _forget(self, fingerprint: str) -> None:
        self._keys.pop(fingerprint, None)
        for task in [task for task, other in self._fingerprints.items() if other == fingerprint]:
            del self._fingerprints[task]
