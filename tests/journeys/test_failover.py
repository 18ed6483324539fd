"""Failover and key pools over real HTTP: the emulators of two providers, one of which is down for a while."""

from __future__ import annotations

import asyncio
import base64
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest

from broker.sandbox.engine import Options
from broker.sandbox.server import serve_sandbox
from tests.support.brokers import RunningBroker, open_broker
from tests.support.samples import PNG

pytestmark = pytest.mark.anyio

KEYS = ("first", "second", "third")
IMAGE = f"data:image/png;base64,{base64.b64encode(PNG).decode()}"


@dataclass
class RestartableKie:
    """An emulator of kie.ai on one port, that can be down; its jobs are kept in a folder.

    It runs in a task of its own, because its server may end before the broker that is opened inside it.
    """

    folder: Path
    port: int = 0
    _stop: asyncio.Event = field(default_factory=asyncio.Event)
    _task: asyncio.Task[None] | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    async def start(self) -> None:
        self._stop, started = asyncio.Event(), asyncio.Event()
        self._task = asyncio.create_task(self._serve(started))
        await started.wait()

    async def stop(self) -> None:
        self._stop.set()
        if self._task is not None:
            await self._task

    async def _serve(self, started: asyncio.Event) -> None:
        async with serve_sandbox(port=self.port, options=options(self.folder)) as url:
            self.port = urlsplit(url).port or 0
            started.set()
            await self._stop.wait()


@dataclass
class TwoProviders:
    """kie.ai, preferred, and WaveSpeed."""

    broker: RunningBroker
    kie: RestartableKie
    wavespeed: str

    async def jobs(self) -> dict[str, list[str]]:
        """Return the prompts of every job that was ever made, by provider."""
        urls = {"kie": self.kie.url, "wavespeed": self.wavespeed}
        async with httpx.AsyncClient(verify=False) as client:
            return {
                name: [job["prompt"] for job in (await client.get(f"{url}/sandbox/jobs")).json()["jobs"]]
                for name, url in urls.items()
            }


def options(folder: Path | None = None, **chosen: Any) -> Options:
    return Options(
        **{"duration": 0.05, "callback_spacing": 0.05, "creates_per_window": 1000, "data_dir": folder, **chosen}
    )


@asynccontextmanager
async def two_providers(folder: Path) -> AsyncIterator[TwoProviders]:
    kie = RestartableKie(folder / "kie")
    await kie.start()
    try:
        async with (
            serve_sandbox(options=options(dialect="wavespeed")) as wavespeed,
            open_broker(
                folder / "broker",
                sandbox=kie.url,
                wavespeed_keys="key",
                wavespeed_url=wavespeed,
                download_allow=tuple(urlsplit(url).netloc for url in (kie.url, wavespeed)),
            ) as broker,
        ):
            yield TwoProviders(broker, kie, wavespeed)
    finally:
        await kie.stop()


async def order_steadily(broker: RunningBroker, count: int, seconds: float, prefix: str) -> list[str]:
    """Order `count` images, evenly over `seconds`; return the ids."""
    ids = []
    for number in range(count):
        ids.append(await broker.create_task(f"{prefix} {number}", model="nano-banana-2"))
        await asyncio.sleep(seconds / count)
    return ids


async def check_outage(folder: Path, *, down_seconds: float, count: int) -> None:
    """The preferred provider is down for a while under load: the other one takes over, and gives back."""
    async with two_providers(folder) as providers:
        broker = providers.broker
        before = await order_steadily(broker, 3, 0.1, "before")
        await asyncio.gather(*(broker.wait_end(task, 60) for task in before))
        await providers.kie.stop()
        during = await order_steadily(broker, count, down_seconds, "during")
        ended = await asyncio.gather(*(broker.wait_end(task, 60) for task in during))
        assert {(data["status"], data["provider"]) for data in ended} == {("completed", "wavespeed")}
        await providers.kie.start()
        after = await _order_until_kie_answers(broker)
        jobs = await providers.jobs()
    made = Counter(jobs["kie"] + jobs["wavespeed"])
    assert made == Counter({f"before {n}": 1 for n in range(3)}) + Counter(
        {f"during {n}": 1 for n in range(count)}
    ) + Counter(dict.fromkeys(after, 1)), "each order was submitted once"
    assert after[-1] in jobs["kie"]


async def _order_until_kie_answers(broker: RunningBroker) -> list[str]:
    """Order until an image comes from kie.ai again; return the prompts."""
    prompts: list[str] = []
    async with asyncio.timeout(120):
        while True:
            prompts.append(f"after {len(prompts)}")
            task = await broker.create_task(prompts[-1], model="nano-banana-2")
            if (await broker.wait_end(task, 60))["provider"] == "kie":
                return prompts
            await asyncio.sleep(0.2)


async def test_orders_go_to_the_second_provider_while_the_first_is_down(tmp_path: Path) -> None:
    await check_outage(tmp_path, down_seconds=1.0, count=8)


@pytest.mark.faults
@pytest.mark.timeout(400)
async def test_orders_go_to_the_second_provider_during_a_minute_of_outage(tmp_path: Path) -> None:
    await check_outage(tmp_path, down_seconds=60.0, count=50)


async def test_limited_key_leaves_the_orders_to_the_other_keys(tmp_path: Path) -> None:
    """One key of three is refused with 429: its orders go to the others, and none is submitted twice."""
    chosen = options(api_key=None, key_windows={"second": 0})
    async with serve_sandbox(options=chosen) as url, open_broker(tmp_path, sandbox=url, kie_keys=KEYS) as broker:
        ids = await order_steadily(broker, 12, 0.1, "number")
        ended = await asyncio.gather(*(broker.wait_end(task, 60) for task in ids))
        assert {data["status"] for data in ended} == {"completed"}
        jobs = await broker.provider_jobs()
        attempts = [attempt for task in ids for attempt in await broker.services.tables.attempts.list_of_task(task)]
    assert Counter(job["prompt"] for job in jobs) == Counter(f"number {n}" for n in range(12))
    by_outcome = Counter((attempt.outcome, attempt.code) for attempt in attempts)
    assert by_outcome["succeeded", None] == 12
    keys = {attempt.key_id for attempt in attempts if attempt.outcome == "succeeded"}
    assert len(keys) == 2


async def test_order_goes_on_if_its_first_provider_cannot_get_the_references(tmp_path: Path) -> None:
    """Without a public URL nanobananaapi.ai cannot fetch a reference, and it takes no uploads; WaveSpeed does."""
    async with (
        serve_sandbox(options=options(dialect="nanobananaapi")) as first,
        serve_sandbox(options=options(dialect="wavespeed")) as second,
        open_broker(
            tmp_path,
            with_callbacks=False,
            sandbox=second,
            providers=("nanobananaapi", "wavespeed"),
            nanobananaapi_keys="key",
            nanobananaapi_url=first,
            wavespeed_keys="key",
            wavespeed_url=second,
        ) as broker,
    ):
        task = await broker.create_task("in a hat", model="nano-banana-2", images=[IMAGE])
        ended = await broker.wait_end(task)
        routes = (await broker.client.get(f"/api/task/{task}/attempts")).json()["data"]["routes"]
        pinned = await broker.create_task("in a hat", model="nano-banana-2", images=[IMAGE], provider="nanobananaapi")
        refused = await broker.wait_end(pinned)
    assert (ended["status"], ended["provider"], ended["attempts"]) == ("completed", "wavespeed", 1), ended
    assert (refused["errorDetail"]["code"], refused["attempts"]) == ("provider_rejected", 0)
    moved = [(route["provider"], route["reason"]) for route in routes if route["movedAt"]]
    assert moved == [("wavespeed", "after provider_rejected at nanobananaapi")]


async def test_order_of_unknown_outcome_is_submitted_to_the_next_provider_if_the_operator_allows_it(
    tmp_path: Path,
) -> None:
    async with (
        serve_sandbox(options=options(mood="silent_lost")) as first,
        serve_sandbox(options=options(dialect="wavespeed")) as second,
        open_broker(
            tmp_path,
            with_callbacks=False,
            sandbox=first,
            resubmit_unknown=True,
            wavespeed_keys="key",
            wavespeed_url=second,
            download_allow=(urlsplit(second).netloc,),
        ) as broker,
    ):
        task = await broker.create_task("a red fox", model="nano-banana-2")
        ended = await broker.wait_end(task)
        detail = (await broker.client.get(f"/api/task/{task}/attempts")).json()["data"]
    assert (ended["status"], ended["provider"]) == ("completed", "wavespeed"), ended["errorDetail"]
    attempts = [(one["provider"], one["outcome"], one["billed"]) for one in detail["attempts"]]
    assert attempts == [("kie", "unknown", "unknown"), ("wavespeed", "succeeded", "yes")]
    assert detail["routes"][-1]["reason"] == "after unknown_outcome at kie"
