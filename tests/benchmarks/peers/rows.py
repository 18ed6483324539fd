"""The rows of the peers, each beside the broker in the same run."""

from __future__ import annotations

import asyncio
import secrets
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final

from anyio import to_thread

from tests.benchmarks.engines.postgres_paths import lives_on_sqlite
from tests.benchmarks.paths.p03_create import LIKE_KIE, PROMPTS, create_requests
from tests.benchmarks.results import Measured, Row, ratio_at_least
from tests.benchmarks.support.bench import Bench, Provider, call
from tests.benchmarks.support.client import wait_until
from tests.benchmarks.support.lives import Lives, live, lives_per_second
from tests.benchmarks.support.load import counted_load, full_load, http_request, p99s, rates, write_requests
from tests.benchmarks.support.processes import ROOT, Subject, environment, serving
from tests.support.servers.ports import free_port

PROGRAMS: Final = ROOT / "build" / "peers" / "bin"
LITELLM_CONFIG: Final = """model_list:
  - model_name: image
    litellm_params: {{model: openai/gpt-image-1, api_base: "http://127.0.0.1:{port}/v1", api_key: the-key}}
    model_info: {{mode: image_generation}}
litellm_settings: {{telemetry: false, set_verbose: false}}
"""
LITELLM_SECONDS: Final = 5.0
"""At 64 connections its first answers take seconds."""
FIRST: Final = 50
MAX_SECONDS: Final = 120.0


# -- LiteLLM


async def litellm(bench: Bench) -> list[Row]:
    """LiteLLM's image route against a mock upstream, one worker, beside durable creates."""
    folder, seconds = bench.folder("litellm"), max(LITELLM_SECONDS, bench.options.seconds)
    image = {"model": "image", "prompt": "a red bicycle", "n": 1}
    key = f"sk-{secrets.token_hex(32)}"
    access = {"Authorization": f"Bearer {key}"}
    route = write_requests(folder / "route", [http_request("POST", "/v1/images/generations", image, access)])
    models = write_requests(folder / "models", [http_request("GET", "/v1/models", headers=access)])
    creates = write_requests(folder / "creates", create_requests(PROMPTS))
    async with (
        bench.provider(delay=None) as provider,
        bench.broker(provider, variables=LIKE_KIE) as broker,
        _litellm(folder, key) as proxy,
    ):
        idle = (proxy.rss_mib(), broker.subject.rss_mib())
        await counted_load(proxy, route, FIRST, connections=4)
        await counted_load(broker.subject, creates, FIRST, connections=4)
        loads = await bench.interleave(
            {
                "LiteLLM": partial(full_load, proxy, route, seconds),
                "ours": partial(full_load, broker.subject, creates, seconds),
                "models": partial(full_load, proxy, models, seconds),
            }
        )
        starts = (proxy.ready_seconds, broker.subject.ready_seconds)

    def pair(what: str, unit: str, values: tuple[float, float]) -> Row:
        theirs, ours = (Measured(unit=unit, values=(value,)) for value in values)
        reference = Measured(name="LiteLLM", unit=unit, values=theirs.values)
        return Row(path="peers", what=what, reference=reference, ours=ours, is_timed=unit == "s")

    return [
        Row(
            path="P3",
            what="create, beside LiteLLM's image route",
            reference=rates(loads["LiteLLM"], "LiteLLM"),
            ours=rates(loads["ours"]),
            goal=ratio_at_least(50),
            on_disk=True,
        ),
        Row(
            path="P3",
            what="create, p99, beside LiteLLM's image route",
            reference=p99s(loads["LiteLLM"], "LiteLLM"),
            ours=p99s(loads["ours"]),
            on_disk=True,
        ),
        Row(
            path="peers",
            what="LiteLLM's list of models",
            reference=rates(loads["models"], "LiteLLM"),
            ours=rates(loads["ours"]),
            note="ours: creates, as above",
        ),
        pair("idle memory", "MiB", idle),
        pair("start", "s", starts),
    ]


@asynccontextmanager
async def _litellm(folder: Path, key: str) -> AsyncIterator[Subject]:
    upstream, port = free_port(), free_port()
    config = folder / "config.yaml"
    config.write_text(LITELLM_CONFIG.format(port=upstream), "ascii")
    env = environment(
        LITELLM_LOCAL_MODEL_COST_MAP="True", LITELLM_LOG="ERROR", HOME=str(folder), LITELLM_MASTER_KEY=key
    )
    command = (str(PROGRAMS / "litellm"), "--config", str(config), "--host", "127.0.0.1", "--port", str(port))
    module = (sys.executable, "-m", "tests.benchmarks.peers.upstream", str(upstream))
    async with (
        serving(module, upstream, folder=folder, env=environment()),
        serving(
            (*command, "--num_workers", "1"), port, folder=folder, env=env, probe="/health/liveliness", seconds=120
        ) as subject,
    ):
        yield subject


# -- the usual design


@dataclass(frozen=True)
class Usual:
    """The running app of the usual design, with a provider of its own."""

    subject: Subject
    provider: Provider

    async def live(self, creates: Path, count: int) -> Lives:
        """Create so many tasks and wait until all callbacks, which download, have been answered."""
        subject, used = self.subject, self.subject.cpu_seconds()
        before = (await self.provider.control("stats"))["acknowledged"]
        jobs = len(await self.provider.control("jobs"))
        await counted_load(subject, creates, count, connections=32)

        async def acknowledged() -> bool:
            return bool((await self.provider.control("stats"))["acknowledged"] >= before + count)

        await wait_until(acknowledged, every_seconds=0.05, seconds=MAX_SECONDS)
        moments = (await self.provider.control("jobs"))[jobs:]
        seconds = max(moment[3] for moment in moments) - min(moment[1] for moment in moments)
        return Lives(rate=count / seconds, cpu=(subject.cpu_seconds() - used) / count)


async def usual_design(bench: Bench) -> list[Row]:
    """Creates, polls and whole lives of the usual design, which loses everything when it stops, beside ours."""
    folder, seconds = bench.folder("usual"), bench.options.seconds
    creates = write_requests(folder / "creates", create_requests(PROMPTS))
    async with (
        bench.provider(delay=0.0) as provider,
        bench.broker(provider) as broker,
        _usual(bench, folder) as usual,
    ):
        first = await live(broker, creates, FIRST)
        await usual.live(creates, FIRST)
        count = max(FIRST, int(first.rate * seconds * 2))
        lives = await bench.interleave(
            {"usual": lambda: usual.live(creates, count), "ours": lambda: live(broker, creates, count)}
        )
        ours = await broker.create()
        theirs = await to_thread.run_sync(
            call, usual.subject.port, "POST", "/api/generate/image", {"prompt": "a red bicycle"}
        )
        await broker.wait_for(ours, "completed")
        their_poll = write_requests(folder / "theirs", [http_request("GET", f"/api/task/{theirs['taskId']}")])
        our_poll = write_requests(folder / "ours", [http_request("GET", f"/api/task/{ours}")])
        polls = await bench.interleave(
            {
                "usual": partial(full_load, usual.subject, their_poll, seconds),
                "ours": partial(full_load, broker.subject, our_poll, seconds),
            },
            warm_up=True,
        )
    return [
        Row(
            path="peers",
            what="whole lives, beside the usual design",
            reference=lives_per_second(lives["usual"], "usual design"),
            ours=lives_per_second(lives["ours"]),
            note="the usual design keeps tasks in a dict, syncs nothing and checks nothing",
            on_disk=True,
        ),
        Row(
            path="peers",
            what="poll of an ended task, beside the usual design",
            reference=rates(polls["usual"], "usual design"),
            ours=rates(polls["ours"]),
        ),
    ]


@asynccontextmanager
async def _usual(bench: Bench, folder: Path) -> AsyncIterator[Usual]:
    port, images = free_port(), folder / "images"
    images.mkdir()
    app = "tests.benchmarks.peers.usual_design:app"
    flags = ("--loop", "uvloop", "--http", "httptools", "--no-access-log", "--log-level", "warning")
    command = (sys.executable, "-m", "uvicorn", app, "--port", str(port), *flags)
    async with bench.provider(delay=0.0) as provider:
        address = f"http://127.0.0.1:{provider.subject.port}"
        env = environment(PROVIDER=address, ADDRESS=f"http://127.0.0.1:{port}", FOLDER=str(images))
        async with serving(command, port, folder=folder, env=env) as subject:
            yield Usual(subject, provider)


# -- huey


async def huey(bench: Bench) -> list[Row]:
    """Durable tasks that do nothing on huey, beside whole lives of the engine without a network."""
    count, folder = bench.options.size(1000, 5000), bench.folder("huey")
    found = await bench.interleave(
        {"huey": partial(_noops, folder, count), "ours": partial(lives_on_sqlite, count, folder)}
    )
    return [
        Row(
            path="P14",
            what="engine alone, durable lives, SQLite, beside huey's tasks that do nothing",
            reference=Measured(name="huey", unit="/s", values=tuple(found["huey"])),
            ours=Measured(unit="/s", values=tuple(found["ours"])),
            goal=ratio_at_least(2.5),
            on_disk=True,
        )
    ]


async def _noops(folder: Path, count: int) -> float:
    file = folder / f"huey-{free_port()}.db"
    script = Path(__file__).with_name("huey_noop.py")
    process = await asyncio.create_subprocess_exec(
        str(PROGRAMS / "python"), str(script), str(file), str(count), stdout=asyncio.subprocess.PIPE
    )
    out, _ = await process.communicate()
    return float(out)
