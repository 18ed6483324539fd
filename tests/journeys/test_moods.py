"""Journeys of one task through every behaviour of the sandbox: expected end, images, and accepted submissions."""

from __future__ import annotations

import asyncio
import io
import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from PIL import Image

from broker.sandbox.dialects.kie import KIE
from broker.sandbox.engine import Options
from tests.support.brokers import RunningBroker, open_broker
from tests.support.servers.postgres import Postgres
from tests.support.servers.s3 import S3Server

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


# mood → end, with callbacks and without
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
    # the status reads
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
CALLBACKS_ONLY = {"silent": COMPLETED, "silent_lost": End("unknown_outcome", jobs=1, images=0), "early": COMPLETED}
POLLING_ONLY = {
    "silent": End("unknown_outcome", jobs=1, images=0),
    "silent_lost": End("unknown_outcome", jobs=1, images=0),
}


SIGNED = ("good", "unsigned", "badsign", "stale", "forged", "early", "twice:3")

END_BY_WAY: dict[str, dict[str, End]] = {
    "callbacks": {**MOODS, **CALLBACKS_ONLY},
    "polling": {**MOODS, **POLLING_ONLY},
    "signed": dict.fromkeys(SIGNED, COMPLETED),
}
"""How a result becomes known: by callback, by checks alone, by signed callback."""

STORES = ("sqlite", "postgres")
"""SQLite with files, or Postgres with a bucket."""

POLLED = (
    "good code:500 down limited slow:60 failed internal lost][mood:grace lost][mood:unknown_state lost][mood:backwards "
    "noresult:1 multi:3 late:2 contradiction gone silent silent_lost"
).split()
"""Moods whose course differs without callbacks: an unknown outcome, the checks, the deadline."""

STORED = "good multi:3 big:3 gone_once:2 truncated:2 corrupt twice:4 early internal flagged slow:60 silent_lost".split()
"""Moods whose course writes something else to the stores: images, attempts, late callbacks, each kind of end."""

CHOSEN = {
    ("sqlite", "callbacks"): set(END_BY_WAY["callbacks"]),
    ("sqlite", "polling"): set(POLLED),
    ("sqlite", "signed"): set(SIGNED),
    ("postgres", "callbacks"): set(STORED),
    ("postgres", "polling"): {"good"},
    ("postgres", "signed"): {"good"},
}
"""The journeys of every test run; the other combinations belong to the fault runs."""

JOURNEYS = [(store, way, mood) for store in STORES for way, ends in END_BY_WAY.items() for mood in ends]
CASES = [
    pytest.param(store, way, mood, marks=() if mood in CHOSEN[store, way] else pytest.mark.faults)
    for store, way, mood in JOURNEYS
]
AT_ONCE = 10
Journeys = dict[tuple[str, str, str], "asyncio.Task[Journey]"]


class Journey(NamedTuple):
    """The task at its end as a front end sees it, and the submissions that the provider accepted."""

    data: dict[str, Any]
    jobs: list[dict[str, Any]]


@pytest.fixture(scope="module")
async def journeys(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Journeys]:
    """Start the selected journeys, each with a broker of its own, several at once: they mostly wait."""
    slots = asyncio.Semaphore(AT_ONCE)

    async def start_journey(store: str, way: str, mood: str) -> Journey:
        async with slots:
            shared = await _shared(request) if store == "postgres" else {}
            return await _run_journey(tmp_path_factory.mktemp("broker"), way, mood, shared)

    selected = {
        (item.callspec.params["store"], item.callspec.params["way"], item.callspec.params["mood"])
        for item in request.session.items
        if isinstance(item, pytest.Function) and item.path == request.path and item.originalname == TEST
    }
    # not a task group: one that goes wrong must not end the others
    running = {journey: asyncio.create_task(start_journey(*journey)) for journey in JOURNEYS if journey in selected}
    yield running
    await asyncio.gather(*running.values(), return_exceptions=True)


async def _shared(request: pytest.FixtureRequest) -> dict[str, Any]:
    postgres: Postgres = request.getfixturevalue("postgres")
    s3_server: S3Server = request.getfixturevalue("s3_server")
    return {
        "database_url": await postgres.fresh(),
        "blob_url": f"s3://{s3_server.new_bucket()}/images",
        "s3_endpoint": s3_server.url,
        "s3_access_key": "test",
        "s3_secret_key": "test",
    }


async def _run_journey(folder: Path, way: str, mood: str, shared: dict[str, Any]) -> Journey:
    key = "hmac-key" if way == "signed" else None
    # the deadline ends some journeys; the others must not reach it on a busy machine
    deadline = 20.0 if END_BY_WAY[way][mood].code is None else 2.5
    options = Options(duration=0.1, callback_spacing=0.05, creates_per_window=10_000, webhook_key=key)
    settings = {"webhook_key": key, "task_deadline": deadline, **shared}
    async with open_broker(folder, with_callbacks=way != "polling", options=options, **settings) as broker:
        data = await broker.wait_end(await broker.create_task(f"a red bicycle [mood:{mood}]"), seconds=40)
        await _check_images(broker, data)
        return Journey(data, await broker.provider_jobs())


@pytest.mark.parametrize(("store", "way", "mood"), CASES)
async def test_task_ends_as_expected_for_every_provider_behaviour(
    journeys: Journeys, store: str, way: str, mood: str
) -> None:
    expected = END_BY_WAY[way][mood]
    data, jobs = await journeys[store, way, mood]
    detail = data["errorDetail"] or {}
    assert (detail.get("code"), len(data["results"]), len(jobs)) == (expected.code, expected.images, expected.jobs)
    assert (data["status"], bool(data["error"])) == (("failed", True) if expected.code else ("completed", False))
    if way == "polling":
        assert all(job["callbacks"] == [] for job in jobs)


def test_every_fault_of_the_sandbox_has_a_journey() -> None:
    names = {re.split(r"[:\]]", mood)[0] for mood in END_BY_WAY["callbacks"]}
    names |= set(re.findall(r"\[mood:(\w+)", " ".join(END_BY_WAY["callbacks"])))
    assert names == set(KIE.faults)


TEST = test_task_ends_as_expected_for_every_provider_behaviour.__name__


async def _check_images(broker: RunningBroker, data: dict[str, Any]) -> None:
    for result in data["results"]:
        answer = await broker.client.get(result["url"])
        assert answer.status_code == 200
        assert len(answer.content) == result["bytes"]
        with Image.open(io.BytesIO(answer.content)) as image:
            image.load()
            assert image.size == (result["width"], result["height"])
    if data["status"] == "completed":
        assert data["result"] == data["results"][0]["url"] == data["generation"]["url"]
