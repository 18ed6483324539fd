"""The ladder: when a caller is told again, and when not any more."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from email.utils import format_datetime

import pytest

from storage.deliveries import Fate
from webhooks.events import Event, event_between, event_body, event_id
from webhooks.retry_policy import RETRY_SCHEDULE, NextStep, ReceiverResponse, next_step

NOW = 1_790_000_000.0
MINUTE, HOUR = 60, 3600


def pause(rung: int, response: ReceiverResponse, random: float = 0.0) -> float:
    then = next_step(rung, response, NOW, lambda: random)
    assert then.due_at is not None
    return then.due_at - NOW


def test_the_pauses_are_those_of_the_contract() -> None:
    trouble = ReceiverResponse(status=500)
    expected = [5, 5 * MINUTE, 30 * MINUTE, 2 * HOUR, 5 * HOUR, 10 * HOUR, 10 * HOUR]
    assert [pause(rung, trouble) for rung in range(1, 8)] == expected
    assert next_step(8, trouble, NOW, lambda: 0.0) == NextStep(fate=Fate.FAILED, reason="HTTP 500")


@pytest.mark.parametrize("rung", range(1, 8))
def test_a_pause_is_spread_by_a_tenth(rung: int) -> None:
    shortest, longest = pause(rung, ReceiverResponse(status=500)), pause(rung, ReceiverResponse(status=500), 1.0)
    assert longest == pytest.approx(shortest * 1.1)


@pytest.mark.parametrize("status", [200, 201, 202, 204, 299])
@pytest.mark.parametrize("rung", [1, 8])
def test_every_success_is_one(status: int, rung: int) -> None:
    assert next_step(rung, ReceiverResponse(status=status), NOW, lambda: 0.0) == NextStep(fate=Fate.DELIVERED)


def test_gone_stops() -> None:
    assert next_step(1, ReceiverResponse(status=410), NOW, lambda: 0.0) == NextStep(fate=Fate.GONE, reason="HTTP 410")


@pytest.mark.parametrize(
    "status", [100, 301, 302, 307, 308, 400, 401, 403, 404, 405, 409, 418, 429, 500, 502, 503, 599]
)
def test_everything_else_is_tried_again(status: int) -> None:
    then = next_step(1, ReceiverResponse(status=status), NOW, lambda: 0.0)
    assert (then.fate, then.due_at) == (Fate.PENDING, NOW + 5)
    assert str(status) in (then.reason or "")


def test_no_answer_is_tried_again_and_says_why() -> None:
    assert next_step(1, ReceiverResponse(error="too slow"), NOW, lambda: 0.0) == NextStep(
        fate=Fate.PENDING, due_at=NOW + 5, reason="too slow"
    )


DATE = format_datetime(datetime.fromtimestamp(NOW + 90, UTC), usegmt=True)


@pytest.mark.parametrize(
    ("wish", "rung", "seconds"),
    [
        ("120", 1, 120),
        (" 120 ", 1, 120),
        (DATE, 1, 90),
        (DATE.replace("GMT", "-0000"), 1, 90),
        ("3", 1, 5),
        ("120", 2, 300),
        ("999999999", 1, 5 + HOUR),
        ("99999", 7, 11 * HOUR),
        (format_datetime(datetime.fromtimestamp(NOW - 90, UTC), usegmt=True), 1, 5),
        (None, 1, 5),
        ("", 1, 5),
        ("soon", 1, 5),
        ("-120", 1, 5),
        ("1e9", 1, 5),
        ("12.5", 1, 12.5),
        ("١٢٠", 1, 5),
        ("9" * 4000, 1, 5),
        ("Fri, 99 Foo 99999999999 99:99:99 GMT", 1, 5),
        ("Mon, 01 Jan 0001 00:00:00 +2359", 1, 5),
        ("\x00", 1, 5),
    ],
)
@pytest.mark.parametrize("status", [429, 503])
def test_a_wish_is_a_lower_bound_and_has_a_limit(status: int, wish: str | None, rung: int, seconds: float) -> None:
    """Never sooner than the ladder, and at most an hour later: a receiver cannot put us off for ever."""
    assert pause(rung, ReceiverResponse(status=status, retry_after=wish)) == seconds


def test_a_wish_counts_only_where_it_has_a_meaning() -> None:
    assert pause(1, ReceiverResponse(status=500, retry_after="120")) == 5


def test_the_whole_ladder_is_a_little_more_than_a_day() -> None:
    assert 27 * HOUR < sum(RETRY_SCHEDULE) < 28 * HOUR


# -- events


@pytest.mark.parametrize(
    ("was", "now", "event"),
    [
        ("processing", "completed", Event.COMPLETED),
        ("processing", "failed", Event.FAILED),
        ("pending", "canceled", Event.CANCELED),
        ("failed", "completed", Event.COMPLETED),
        ("failed", "failed", None),
        ("pending", "processing", None),
        ("completed", "expired", None),
        ("failed", "expired", None),
    ],
)
def test_only_an_end_that_is_new_to_the_caller_is_told(was: str, now: str, event: Event | None) -> None:
    assert event_between(was, now) == event


def test_an_event_has_one_id_and_different_events_have_different_ones() -> None:
    ids = [event_id(task, event) for task in ("task_1", "task_2") for event in Event]
    assert ids == [event_id(task, event) for task in ("task_1", "task_2") for event in Event]
    assert len(set(ids)) == 6
    assert all(re.fullmatch(r"evt_[0-9a-f]{32}", one) for one in ids)


def test_a_body_can_be_stored_and_sent_whatever_the_prompt_is() -> None:
    body = event_body(Event.FAILED, "2026-01-01T00:00:00.000Z", {"prompt": "狐\x00\ud800\u2028"})
    assert body.isascii()
    assert body.isprintable()
