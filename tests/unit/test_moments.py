"""The end of a job in every spelling of a provider: kie.ai's callbacks mix seconds and milliseconds."""

from __future__ import annotations

import math
from typing import Any

import pytest

from broker.providers.parsing import ParsedResponse, moment

AT = 1_786_413_282.0


@pytest.mark.parametrize(
    "value",
    [
        AT,
        int(AT),
        int(AT) * 1000,
        str(int(AT)),
        f" {int(AT) * 1000} ",
        "2026-08-11T01:54:42Z",
        "2026-08-11T01:54:42.000+00:00",
        "2026-08-11T03:54:42+02:00",
    ],
    ids=repr,
)
def test_every_spelling_of_a_moment_is_parsed(value: Any) -> None:
    assert moment(value) == AT


@pytest.mark.parametrize(
    "value",
    [
        None, True, "", "yesterday", 0, -1, 1, 60, 999_999_999_999_999_999_999, 10**400, math.nan, math.inf, -math.inf,
        "NaN", "1e999", [], {}, [AT], "2026-08-11T02:34:42", "0001-01-01T00:00:00+14:00", "9999-12-31T23:59:59-14:00",
        "9" * 5000, "1999-12-31T23:59:59Z", "\x00", "２０２６-08-11T02:34:42Z",
    ],
    ids=lambda value: repr(value)[:30],
)  # fmt: skip
def test_value_outside_this_century_is_none(value: Any) -> None:
    """A local time without a zone is also None."""
    assert moment(value) is None


@pytest.mark.parametrize("name", ["completeTime", "complete_time", "completedAt", "completed_at"])
def test_end_of_a_job_is_read_from_every_field(name: str) -> None:
    assert ParsedResponse({"data": {"taskId": "x", name: AT * 1000}}).ended_at == AT
    assert ParsedResponse({"taskId": "x", name: "soon"}).ended_at is None
