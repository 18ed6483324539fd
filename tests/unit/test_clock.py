"""Moments as text."""

from __future__ import annotations

import random
from datetime import UTC, datetime

from broker.clock import iso

FRACTIONS = (0.0, 0.0005, 0.0009999, 0.9995, 0.9996, 0.9999996, 0.00000049)


def test_iso_is_the_text_of_datetime() -> None:
    rng = random.Random(14)
    moments = [-0.5, -1e6, *(rng.random() * 4e9 for _ in range(2000))]
    moments += [rng.randrange(4 * 10**9) + fraction for fraction in FRACTIONS for _ in range(200)]
    for moment in moments:
        expected = datetime.fromtimestamp(moment, UTC).isoformat(timespec="milliseconds")
        assert iso(moment) == expected.replace("+00:00", "Z")
