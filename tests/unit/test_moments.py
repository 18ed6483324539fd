"""When a job ended, in whatever way a provider says it: kie.ai's callbacks mix seconds and milliseconds."""

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
        int(AT) * 1_000_000,
        str(int(AT)),
        f" {int(AT) * 1000} ",
        "2026-08-11T01:54:42Z",
        "2026-08-11T01:54:42.000+00:00",
        "2026-08-11T03:54:42+02:00",
    ],
    ids=repr,
)
def test_the_same_moment_in_every_spelling(value: Any) -> None:
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
def test_what_is_no_moment_of_this_century_is_none(value: Any) -> None:
    """Neither are local times of an unknown place."""
    assert moment(value) is None


@pytest.mark.parametrize("name", ["completeTime", "complete_time", "completedAt", "completed_at"])
def test_the_end_of_a_job_under_all_its_names(name: str) -> None:
    assert ParsedResponse.from_body({"data": {"taskId": "x", name: AT * 1000}}).ended_at == AT
    assert ParsedResponse.from_body({"taskId": "x", name: "soon"}).ended_at is None
