"""The retry schedule of webhooks to callers, and their events."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from email.utils import format_datetime

import pytest

from storage.deliveries import DeliveryStatus
from webhooks.events import Event, event_between, event_body, event_id
from webhooks.retry_policy import RETRY_SCHEDULE, NextStep, ReceiverResponse, next_step

NOW = 1_790_000_000.0
MINUTE, HOUR = 60, 3600


def step_after(step: int, response: ReceiverResponse, random: float = 0.0, expires_at: float = 1e12) -> NextStep:
    return next_step(step, response, NOW, lambda: random, expires_at)


def pause(step: int, response: ReceiverResponse, random: float = 0.0) -> float:
    following = step_after(step, response, random)
    assert following.due_at is not None
    return following.due_at - NOW


def test_pauses_are_those_of_the_contract() -> None:
    expected = [5, 5 * MINUTE, 30 * MINUTE, 2 * HOUR, 5 * HOUR, 10 * HOUR]
    assert [pause(step, ReceiverResponse(status=500)) for step in range(1, 7)] == expected


def test_delivery_fails_after_six_retries() -> None:
    assert step_after(7, ReceiverResponse(status=500)) == NextStep(outcome=DeliveryStatus.FAILED, reason="HTTP 500")


def test_delivery_fails_when_the_next_retry_would_exceed_retention() -> None:
    response = ReceiverResponse(status=500)
    assert step_after(2, response, expires_at=NOW + 301).due_at == NOW + 300
    assert step_after(2, response, expires_at=NOW + 300) == NextStep(outcome=DeliveryStatus.FAILED, reason="HTTP 500")


@pytest.mark.parametrize("step", range(1, 7))
def test_jitter_adds_up_to_a_tenth(step: int) -> None:
    shortest, longest = pause(step, ReceiverResponse(status=500)), pause(step, ReceiverResponse(status=500), 1.0)
    assert longest == pytest.approx(shortest * 1.1)


@pytest.mark.parametrize("status", [200, 201, 202, 204, 299])
@pytest.mark.parametrize("step", [1, 7])
def test_every_2xx_delivers(status: int, step: int) -> None:
    assert step_after(step, ReceiverResponse(status=status)) == NextStep(outcome=DeliveryStatus.DELIVERED)


def test_gone_ends_the_delivery() -> None:
    assert step_after(1, ReceiverResponse(status=410)) == NextStep(outcome=DeliveryStatus.GONE, reason="HTTP 410")


@pytest.mark.parametrize(
    "status", [100, 301, 302, 307, 308, 400, 401, 403, 404, 405, 409, 418, 429, 500, 502, 503, 599]
)
def test_every_other_status_is_retried(status: int) -> None:
    then = step_after(1, ReceiverResponse(status=status))
    assert (then.outcome, then.due_at) == (DeliveryStatus.PENDING, NOW + 5)
    assert str(status) in (then.reason or "")


def test_missing_response_is_retried_with_a_reason() -> None:
    assert step_after(1, ReceiverResponse(error="too slow")) == NextStep(
        outcome=DeliveryStatus.PENDING, due_at=NOW + 5, reason="too slow"
    )


DATE = format_datetime(datetime.fromtimestamp(NOW + 90, UTC), usegmt=True)


@pytest.mark.parametrize(
    ("header", "step", "seconds"),
    [
        ("120", 1, 120),
        (" 120 ", 1, 120),
        (DATE, 1, 90),
        (DATE.replace("GMT", "-0000"), 1, 90),
        ("3", 1, 5),
        ("120", 2, 300),
        ("999999999", 1, 5 + HOUR),
        ("99999", 6, 11 * HOUR),
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
def test_retry_after_is_a_lower_bound_with_a_limit(status: int, header: str | None, step: int, seconds: float) -> None:
    """Never sooner than scheduled, and at most an hour later."""
    assert pause(step, ReceiverResponse(status=status, retry_after=header)) == seconds


def test_retry_after_counts_only_with_429_and_503() -> None:
    assert pause(1, ReceiverResponse(status=500, retry_after="120")) == 5


def test_whole_schedule_fits_into_the_default_retention() -> None:
    assert sum(RETRY_SCHEDULE) * 1.1 < 24 * HOUR


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
def test_only_a_new_public_end_is_an_event(was: str, now: str, event: Event | None) -> None:
    assert event_between(was, now) == event


def test_event_ids_are_stable_and_distinct() -> None:
    ids = [event_id(task, event) for task in ("task_1", "task_2") for event in Event]
    assert ids == [event_id(task, event) for task in ("task_1", "task_2") for event in Event]
    assert len(set(ids)) == 2 * len(Event)
    assert all(re.fullmatch(r"evt_[0-9a-f]{32}", one) for one in ids)


def test_event_body_is_ascii_for_any_prompt() -> None:
    body = event_body(Event.FAILED, "2026-01-01T00:00:00.000Z", {"prompt": "狐\x00\ud800\u2028"})
    assert body.isascii()
    assert body.isprintable()
