"""Hostile traffic in tiny pieces, of every kind: polls are answered. The benchmark measures how fast."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.benchmarks.engines import hostile

pytestmark = [pytest.mark.anyio, pytest.mark.faults]


@pytest.mark.parametrize("kind", [*hostile.REQUESTS, *hostile.RESPONSES])
async def test_polls_are_answered_under_hostile_traffic(tmp_path: Path, kind: str) -> None:
    """A poll that is not answered with 200 ends the measurement."""
    outcome = await hostile.measure(kind, tmp_path, seconds=1.0)
    assert outcome.latencies
    assert outcome.hostile_bytes > 0
