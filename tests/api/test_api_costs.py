"""GET /api/costs: the costs of live and purged attempts, in each grouping, as JSON and CSV."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from storage.attempts import Attempt
from storage.ledger import SECONDS_PER_DAY
from storage.states import TaskState
from storage.tasks import Task
from tests.support.api import ApiBroker, open_api
from tests.support.clock import ManualClock

pytestmark = pytest.mark.anyio

NOON = 20_000.5 * SECONDS_PER_DAY
TODAY, YESTERDAY = "2024-10-04", "2024-10-03"


@pytest.fixture
async def broker(tmp_path: Path) -> AsyncIterator[ApiBroker]:
    """A broker with a purged task of yesterday, and three attempts of today at two providers."""
    async with open_api(tmp_path, clock=ManualClock(NOON), daily_budget=1.0) as broker:
        purged = await add_attempt(broker, 1, state=TaskState.EXPIRED, leased_by="me", sent_at=NOON - SECONDS_PER_DAY)
        retention = broker.services.tables.task_retention
        await broker.services.database.transact(*retention.delete_all([purged]))
        await add_attempt(broker, 2, caller="ann", duplicate_result="{}", duplicate_cost=4.0)
        await add_attempt(broker, 3, billed="unknown", cost=None)
        await add_attempt(
            broker, 4, model="nano-banana-pro", provider="legacy", usd_per_unit=None, billed="no", cost=None
        )
        yield broker


async def add_attempt(broker: ApiBroker, number: int, **changes: Any) -> Task:
    of_task = {name: changes.pop(name) for name in ("state", "leased_by", "caller", "model") if name in changes}
    task = await broker.add_task(number=number, **of_task)
    values: dict[str, Any] = {"provider": "kie", "key_id": "key", "sent_at": NOON, "billed": "yes", "cost": 4.0}
    row = vars(Attempt(task_id=task.id, number=1, **{**values, "price": 4.0, "usd_per_unit": 0.005, **changes}))
    names = ", ".join(row), ", ".join(f":{name}" for name in row)
    await broker.services.database.execute(f"INSERT INTO attempts ({names[0]}) VALUES ({names[1]})", **row)
    return task


async def get_costs(broker: ApiBroker, **query: str) -> dict[str, Any]:
    answer = await broker.client.get("/api/costs", params=query)
    assert answer.status_code == 200, answer.text
    data: dict[str, Any] = answer.json()["data"]
    return data


async def test_costs_by_day_are_the_default(broker: ApiBroker) -> None:
    data = await get_costs(broker)
    assert (data["by"], data["since"]) == ("day", "2024-09-04")
    assert data["rows"] == [
        {
            "name": YESTERDAY,
            "attempts": 1,
            "billed": {"yes": 1, "no": 0, "unknown": 0},
            "duplicates": 0,
            "cost": 4.0,
            "unit": "credits",
            "usdEstimated": 0.02,
            "usd": 0.02,
            "usdUnknown": 0.0,
            "unpriced": 0,
        },
        {
            "name": TODAY,
            "attempts": 3,
            "billed": {"yes": 1, "no": 1, "unknown": 1},
            "duplicates": 1,
            "cost": None,
            "unit": None,
            "usdEstimated": 0.04,
            "usd": 0.04,
            "usdUnknown": 0.02,
            "unpriced": 0,
        },
    ]
    assert (data["total"]["attempts"], data["total"]["usd"], data["total"]["usdEstimated"]) == (4, 0.06, 0.06)
    assert data["budget"] == {"limitUsd": 1.0, "usedUsd": 0.0, "resetsAt": "2024-10-05T00:00:00.000Z"}


@pytest.mark.parametrize(
    ("by", "rows"),
    [
        ("model", [("nano-banana", 3, 0.06, "credits"), ("nano-banana-pro", 1, 0.0, None)]),
        ("provider", [("kie", 3, 0.06, "credits"), ("legacy", 1, 0.0, None)]),
        ("user", [("ann", 1, 0.04, "credits"), ("house:local", 3, 0.02, None)]),
    ],
)
async def test_costs_by_model_provider_and_user(broker: ApiBroker, by: str, rows: list[Any]) -> None:
    """The amount in the provider's unit only where there is one unit."""
    data = await get_costs(broker, by=by)
    assert [(row["name"], row["attempts"], row["usd"], row["unit"]) for row in data["rows"]] == rows


async def test_billed_attempts_of_unknown_price_are_counted_apart(broker: ApiBroker) -> None:
    """The cost of a provider without prices is unknown, not 0."""
    await add_attempt(broker, 5, provider="wavespeed", price=None, cost=None)
    rows = {row["name"]: row for row in (await get_costs(broker, by="provider"))["rows"]}
    assert {name: row["unpriced"] for name, row in rows.items()} == {"kie": 0, "legacy": 0, "wavespeed": 1}
    assert (rows["wavespeed"]["cost"], rows["kie"]["cost"]) == (None, 12.0)


async def test_since_leaves_earlier_days_out(broker: ApiBroker) -> None:
    assert [row["name"] for row in (await get_costs(broker, since=TODAY))["rows"]] == [TODAY]
    data = await get_costs(broker, since="2024-10-05")
    assert (data["rows"], data["total"]["attempts"], data["total"]["cost"]) == ([], 0, None)


async def test_csv_has_a_line_for_each_row(broker: ApiBroker) -> None:
    await add_attempt(broker, 6, provider="kie@0123456789abcdef", cost=4.0)
    answer = await broker.client.get("/api/costs", params={"format": "csv", "by": "provider"})
    assert answer.headers["content-type"] == "text/csv; charset=utf-8"
    assert answer.text.splitlines() == [
        "provider,attempts,billed_yes,billed_no,billed_unknown,duplicates,cost,unit,usd_estimated,usd,usd_unknown,unpriced"
        ",keys_of",
        "kie,3,2,0,1,1,12.0,credits,0.060000,0.060000,0.020000,0,operator",
        "legacy,1,0,1,0,0,,,0.000000,0.000000,0.000000,0,operator",
        "kie,1,1,0,0,0,4.0,credits,0.020000,0.020000,0.000000,0,users",
    ]


async def test_costs_of_keys_of_users_are_apart(broker: ApiBroker) -> None:
    before = await get_costs(broker, by="provider")
    assert (before["ownRows"], before["ownTotal"]["attempts"]) == ([], 0)
    for number, provider in enumerate(("kie@0123456789abcdef", "kie@123456789abcdef0", "legacy@23456789abcdef01"), 6):
        await add_attempt(broker, number, provider=provider, cost=4.0)
    for by in ("day", "model", "provider", "user"):
        data = await get_costs(broker, by=by)
        assert (data["total"], data["budget"]) == (before["total"], before["budget"])
        assert data["ownTotal"]["attempts"] == sum(row["attempts"] for row in data["ownRows"]) == 3
        assert "@" not in str(data)
    rows = (await get_costs(broker, by="provider"))["ownRows"]
    assert [(row["name"], row["attempts"], row["usd"]) for row in rows] == [("kie", 2, 0.04), ("legacy", 1, 0.02)]


@pytest.mark.parametrize(
    ("query", "reason"),
    [
        ({"by": "key"}, "by must be one of day, model, provider, user."),
        ({"since": "yesterday"}, "since must be a date like 2026-11-20."),
        ({"since": "2026-02-30"}, "since must be a date like 2026-11-20."),
        ({"format": "xml"}, "format must be one of json, csv."),
    ],
)
async def test_wrong_query_is_rejected(tmp_path: Path, query: dict[str, str], reason: str) -> None:
    async with open_api(tmp_path) as broker:
        answer = await broker.client.get("/api/costs", params=query)
        assert (answer.status_code, answer.json()["error"]) == (400, reason)
