"""Garbage collections of a process that serves: what it imported is not looked at again."""

from __future__ import annotations

import gc

from broker.cli.running import run_lasting


def test_a_full_collection_leaves_out_what_was_imported() -> None:
    """It would stop the event loop for tens of milliseconds, and comes sooner the more traffic there is."""
    imported = [[number] for number in range(1000)]
    before = gc.get_freeze_count()

    async def serve() -> int:
        return gc.get_freeze_count()

    assert run_lasting(serve) - before >= len(imported)


def test_requests_in_progress_are_collected_rarely() -> None:
    """The objects of a request are needed until its response: to look at them before that finds nothing."""
    thresholds = gc.get_threshold()

    async def serve() -> int:
        before = gc.get_stats()[0]["collections"]
        objects = [[number] for number in range(8000)]
        return gc.get_stats()[0]["collections"] - before if objects else 0

    try:
        assert run_lasting(serve) <= 1
    finally:
        gc.set_threshold(*thresholds)
