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
