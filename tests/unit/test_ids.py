"""Ids: their form, and the order of those that have one."""

from __future__ import annotations

from storage.ids import CALLBACK_ID, new_callback_id


def test_ids_of_callbacks_are_unique_and_ordered_by_arrival() -> None:
    moments = [0.0, 0.001, 1_786_413_282.0, 1_786_413_282.5, 17_592_186_044.4]
    ids = [new_callback_id(at) for at in moments]
    assert ids == sorted(ids)
    assert all(CALLBACK_ID.fullmatch(one) for one in ids)
    assert len({new_callback_id(1.0) for _ in range(1000)}) == 1000
