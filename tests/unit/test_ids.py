"""Ids: their form, their order, and what is random in them."""

from __future__ import annotations

import re
import subprocess
import sys
import threading
from collections.abc import Callable

import pytest

from storage.ids import (
    BATCH_ID,
    CALLBACK_ID,
    CONVERSATION_ID,
    IMAGE_NAME,
    SHOWN_DIGITS,
    TASK_ID,
    TIME_DIGITS,
    TURN_ID,
    new_batch_id,
    new_callback_id,
    new_conversation_id,
    new_image_name,
    new_task_id,
    new_turn_id,
    random_digits,
    reference_owner,
    shorten_id,
    time_digits,
)

KINDS: dict[str, tuple[Callable[[float], str], re.Pattern[str]]] = {
    "task": (new_task_id, TASK_ID),
    "batch": (new_batch_id, BATCH_ID),
    "callback": (new_callback_id, CALLBACK_ID),
    "conversation": (new_conversation_id, CONVERSATION_ID),
    "turn": (new_turn_id, TURN_ID),
    "image": (lambda at: new_image_name("generated", at, "png"), IMAGE_NAME),
}


@pytest.mark.parametrize("kind", KINDS)
def test_ids_are_unique_and_ordered_by_their_moment(kind: str) -> None:
    new, pattern = KINDS[kind]
    moments = [0.0, 0.001, 1_786_413_282.0, 1_786_413_282.5, 17_592_186_044.4]
    ids = [new(at) for at in moments]
    assert ids == sorted(ids)
    assert all(pattern.fullmatch(one) for one in ids)
    assert len({new(1.0) for _ in range(1000)}) == 1000


@pytest.mark.parametrize("kind", ["task", "batch", "image"])
def test_ids_that_give_access_have_128_random_bits(kind: str) -> None:
    new, _ = KINDS[kind]
    columns = zip(*(new(1_786_413_282.0).partition(".")[0].rpartition("_")[2] for _ in range(1000)), strict=True)
    values = [len(set(column)) for column in columns]
    assert values == [1] * TIME_DIGITS + [16] * 32  # a digit that took 15 values: once in 10^26 runs


def test_id_of_any_clock_has_its_form() -> None:
    assert all(TASK_ID.fullmatch(new_task_id(at)) for at in (-1.0, 1e12))


def test_shortened_id_tells_tasks_of_a_millisecond_apart_and_hides_at_least_96_bits() -> None:
    ids = [new_task_id(1.0) for _ in range(20)]
    assert len({shorten_id(one) for one in ids}) == 20
    assert (len(ids[0]) - len(shorten_id(ids[0]))) * 4 >= 96
    assert len(shorten_id(ids[0]).partition("_")[2]) == SHOWN_DIGITS


def test_owner_of_references_begins_with_the_moment_of_its_batch() -> None:
    batch = new_batch_id(1_786_413_282.0)
    assert time_digits(batch) == time_digits(reference_owner(batch)) == f"{1_786_413_282_000:011x}"


def test_random_digits_are_used_once_by_all_threads() -> None:
    found: list[str] = []

    def take() -> None:
        found.extend([random_digits(32) for _ in range(5000)])

    threads = [threading.Thread(target=take) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(found)) == len(found) == 20_000


FORKING = """
import os
from storage.ids import random_digits
random_digits(32)  # others are left over
for _ in range(2):
    if (child := os.fork()) == 0:
        print(random_digits(32), flush=True)
        os._exit(0)
    os.waitpid(child, 0)
print(random_digits(32))
"""


def test_forked_processes_take_other_random_digits() -> None:
    lines = subprocess.run([sys.executable, "-c", FORKING], capture_output=True, text=True, check=True).stdout.split()
    assert len(set(lines)) == len(lines) == 3
