"""Whatever the provider does: every task ends, ends right, in time, and is not submitted more often than it should."""

from __future__ import annotations

import asyncio
import io
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from PIL import Image

from broker.sandbox.options import Options
from tests.journeys.house import House, open_house
from tests.servers.postgres import Postgres
from tests.servers.s3 import S3Server

pytestmark = pytest.mark.anyio


class End(NamedTuple):
    """code: None = completed. jobs: accepted by the provider. images: how many the task has in the end."""

    code: str | None = None
    jobs: int = 1
    images: int = 1


COMPLETED = End()
UNKNOWN = End("unknown_outcome", jobs=0, images=0)


def failed(code: str, jobs: int = 1) -> End:
    return End(code, jobs=jobs, images=0)


# mood → how it ends when the provider can call us, and when it cannot
MOODS: dict[str, End] = {
    "good": COMPLETED,
    # the submit
    "code:400": failed("provider_rejected", jobs=0),
    "code:401": failed("provider_auth", jobs=0),
    "code:402": failed("provider_credits", jobs=0),
    "code:422": failed("provider_rejected", jobs=0),
    "code:429": failed("provider_rate_limited", jobs=0),
    "code:433": failed("provider_credits", jobs=0),
    "code:455": failed("provider_unavailable", jobs=0),
    "code:500": UNKNOWN,
    "status:400": failed("provider_rejected", jobs=0),
    "status:500": UNKNOWN,
    "status:503": UNKNOWN,
    "down": UNKNOWN,
    "limited": COMPLETED,
    "limited_bare": failed("provider_rate_limited", jobs=0),
    "slow_answer:0.5": COMPLETED,
    "message": COMPLETED,
    "code_string": COMPLETED,
    # the work
    "slow:1": COMPLETED,
    "slow:60": failed("deadline_exceeded"),
    "failed": failed("no_image"),
    "flagged": failed("safety_input"),
    "internal": End(jobs=2),
    # the questions
    "lost": COMPLETED,
    "lost][mood:grace": COMPLETED,
    "lost][mood:grace_seconds:1": COMPLETED,
    "lost][mood:unknown_state": COMPLETED,
    "lost][mood:backwards": COMPLETED,
    # the results
    "noresult:0": failed("no_image"),
    "noresult:1": failed("no_image"),
    "noresult:2": failed("no_image"),
    "noresult:3": failed("no_image"),
    "multi:3": End(images=3),
    "partial": COMPLETED,
    "private_url": failed("invalid_result"),
    # the callbacks
    "late:2": COMPLETED,
    "twice:4": COMPLETED,
    "disorder": COMPLETED,
    "forged": COMPLETED,
    "unsigned": COMPLETED,
    "badsign": COMPLETED,
    "stale": COMPLETED,
    "contradiction": COMPLETED,
    "toplevel": COMPLETED,
    "snake": COMPLETED,
    # the download
    "big:3": COMPLETED,
    "gone": failed("result_gone"),
    "gone_once:2": COMPLETED,
    "expiring": COMPLETED,
    "html": failed("invalid_result"),
    "truncated:0": failed("download_failed"),
    "truncated:2": COMPLETED,
    "drip:1": COMPLETED,
    "wrongtype": COMPLETED,
    "redirect": COMPLETED,
    "redirect_private": failed("invalid_result"),
    "bomb": failed("invalid_result"),
    "svg": failed("invalid_result"),
    "corrupt": failed("invalid_result"),
}
HOOKED_ONLY = {"silent": COMPLETED, "silent_lost": End("unknown_outcome", jobs=1, images=0), "early": COMPLETED}
POLLED_ONLY = {
    "silent": End("unknown_outcome", jobs=1, images=0),
    "silent_lost": End("unknown_outcome", jobs=1, images=0),
}


SIGNED = ("good", "unsigned", "badsign", "stale", "forged", "early", "twice:3")

WAYS: dict[str, dict[str, End]] = {
    "called": {**MOODS, **HOOKED_ONLY},
    "asking": {**MOODS, **POLLED_ONLY},
    "signed": dict.fromkeys(SIGNED, COMPLETED),
}
"""How results come: the provider calls us, we ask because it cannot, it calls and signs."""

PLACES = ("one machine", "many machines")
"""SQLite and files, or Postgres and a bucket."""

JOURNEYS = [(place, way, mood) for place in PLACES for way, ends in WAYS.items() for mood in ends]
AT_ONCE = 10
Journeys = dict[tuple[str, str, str], "asyncio.Task[Journey]"]


class Journey(NamedTuple):
    """What one front end saw at the end, and what the provider would bill."""

    data: dict[str, Any]
    jobs: list[dict[str, Any]]


@pytest.fixture(scope="module")
async def journeys(
    tmp_path_factory: pytest.TempPathFactory, postgres: Postgres, s3_server: S3Server
) -> AsyncIterator[Journeys]:
    """All of them, each in a house of its own, several at once: they mostly wait."""
    places = asyncio.Semaphore(AT_ONCE)

    async def travel(place: str, way: str, mood: str) -> Journey:
        async with places:
            shared = await _shared(postgres, s3_server) if place == "many machines" else {}
            return await _travel(tmp_path_factory.mktemp("house"), way, mood, shared)

    # not a task group: one that goes wrong must not end the others
    under_way = {journey: asyncio.create_task(travel(*journey)) for journey in JOURNEYS}
    yield under_way
    await asyncio.gather(*under_way.values(), return_exceptions=True)


async def _shared(postgres: Postgres, s3_server: S3Server) -> dict[str, Any]:
    return {
        "database_url": await postgres.fresh(),
        "blob_url": f"s3://{s3_server.new_bucket()}/images",
        "s3_endpoint": s3_server.url,
        "s3_access_key": "test",
        "s3_secret_key": "test",
    }


async def _travel(folder: Path, way: str, mood: str, shared: dict[str, Any]) -> Journey:
    key = "hmac-key" if way == "signed" else None
    options = Options(duration=0.1, callback_spacing=0.05, creates_per_window=10_000, webhook_key=key)
    async with open_house(folder, hooked=way != "asking", options=options, webhook_key=key, **shared) as house:
        data = await house.end(await house.order(f"a red bicycle [mood:{mood}]"))
        await _check_images(house, data)
        return Journey(data, await house.jobs())


@pytest.mark.parametrize(("place", "way", "mood"), JOURNEYS)
async def test_a_task_ends_right_whatever_the_provider_does(
    journeys: Journeys, place: str, way: str, mood: str
) -> None:
    expected = WAYS[way][mood]
    data, jobs = await journeys[place, way, mood]
    detail = data["errorDetail"] or {}
    assert (detail.get("code"), len(data["results"]), len(jobs)) == (expected.code, expected.images, expected.jobs)
    assert (data["status"], bool(data["error"])) == (("failed", True) if expected.code else ("completed", False))
    if way == "asking":
        assert all(job["callbacks"] == [] for job in jobs)


async def _check_images(house: House, data: dict[str, Any]) -> None:
    for result in data["results"]:
        answer = await house.client.get(result["url"])
        assert answer.status_code == 200
        assert len(answer.content) == result["bytes"]
        with Image.open(io.BytesIO(answer.content)) as image:
            image.load()
            assert image.size == (result["width"], result["height"])
    if data["status"] == "completed":
        assert data["result"] == data["results"][0]["url"] == data["generation"]["url"]
