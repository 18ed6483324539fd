"""A whole cluster on loopback: Postgres, a bucket, a provider, a balancer, brokers and workers as real processes.

`scripts/cluster.sh` runs it: `up` keeps it until Ctrl-C, `trial` sends orders through it while processes are killed
and paused, and counts what became of them.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from statistics import quantiles
from typing import Any

import asyncpg
import httpx

from tests.support.servers import nginx, postgres
from tests.support.servers.balancer import balancing
from tests.support.servers.ports import free_port
from tests.support.servers.s3 import S3Server, serving_s3

ROOT = Path(__file__).parents[2]
LEASE = 2.0
PAUSE = LEASE * 2.5
AT_ONCE = 24


@dataclass
class Member:
    """One process of the cluster."""

    name: str
    process: asyncio.subprocess.Process
    port: int | None = None

    def send(self, number: signal.Signals) -> None:
        with suppress(ProcessLookupError):
            self.process.send_signal(number)

    @property
    def alive(self) -> bool:
        return self.process.returncode is None


@dataclass
class Cluster:
    """address: of the balancer. provider: the sandbox's. members: by name, like `serve 1` and `worker 2`."""

    folder: Path
    address: str
    provider: str
    database: postgres.Postgres
    database_url: str
    bucket: S3Server
    environment: dict[str, str]
    members: dict[str, Member] = field(default_factory=dict)

    async def start(self, name: str, port: int | None = None) -> Member:
        """Start a process: `serve …` on a port, `worker …` without."""
        env = {**self.environment, **({} if port is None else {"BROKER_PORT": str(port)})}
        command = [sys.executable, "-m", "broker", name.split(maxsplit=1)[0]]
        with (self.folder / "log.txt").open("ab") as log:
            process = await asyncio.create_subprocess_exec(*command, cwd=self.folder, env=env, stdout=log, stderr=log)
        self.members[name] = Member(name, process, port)
        return self.members[name]

    async def ready(self) -> None:
        """Wait until every broker answers."""
        async with httpx.AsyncClient(verify=False) as client, asyncio.timeout(30):
            for member in self.members.values():
                while member.port is not None:
                    assert member.alive, self.log()
                    with suppress(httpx.HTTPError):
                        if (await client.get(f"http://127.0.0.1:{member.port}/health")).status_code == 200:
                            break
                    await asyncio.sleep(0.05)

    async def stop(self) -> None:
        for member in self.members.values():
            member.send(signal.SIGCONT)
            member.send(signal.SIGKILL)
        await asyncio.gather(*(member.process.wait() for member in self.members.values()))

    def log(self) -> str:
        return (self.folder / "log.txt").read_text("utf-8", "replace")[-4000:]

    def kept(self) -> set[str]:
        """Return the names of all blobs in the bucket."""
        bucket, prefix = self.environment["BROKER_BLOB_URL"].removeprefix("s3://").split("/")
        return {key.removeprefix(f"{prefix}/") for key in self.bucket.keys(bucket)}

    async def jobs(self) -> list[dict[str, Any]]:
        """Return every submission that the provider accepted, and would bill."""
        async with httpx.AsyncClient(timeout=60, verify=False) as client:
            jobs: list[dict[str, Any]] = (await client.get(f"{self.provider}/sandbox/jobs")).json()["jobs"]
        return jobs


@contextmanager
def _folder() -> Iterator[Path]:
    folder = Path(tempfile.mkdtemp(prefix="cluster-"))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@asynccontextmanager
async def running(
    *,
    serves: int = 2,
    workers: int = 2,
    database: postgres.Postgres | None = None,
    bucket: S3Server | None = None,
    **environment: str,
) -> AsyncIterator[Cluster]:
    """Run a whole cluster; delete everything of it afterwards.

    database, bucket: servers that run already; by default it has its own.
    """
    async with AsyncExitStack() as stack:
        folder = stack.enter_context(_folder())
        database = database or stack.enter_context(postgres.running())
        bucket = bucket or stack.enter_context(serving_s3())
        provider = await stack.enter_async_context(_provider(folder))
        ports = [free_port() for _ in range(serves)]
        front = nginx.balancing if nginx.installed() else balancing
        address = await stack.enter_async_context(front(free_port(), ports))
        url = await database.fresh()
        cluster = Cluster(
            folder=folder,
            address=address,
            provider=provider,
            database=database,
            database_url=url,
            bucket=bucket,
            environment={**_environment(folder, address, provider, url, bucket), **environment},
        )
        stack.push_async_callback(cluster.stop)
        for number, port in enumerate(ports, 1):
            await cluster.start(f"serve {number}", port)
        for number in range(1, workers + 1):
            await cluster.start(f"worker {number}")
        await cluster.ready()
        yield cluster


@asynccontextmanager
async def _provider(folder: Path) -> AsyncIterator[str]:
    port = free_port()
    with (folder / "provider.txt").open("ab") as log:
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "tests.support.servers.sandbox", str(port), cwd=ROOT, stdout=log, stderr=log
        )
    try:
        async with httpx.AsyncClient(verify=False) as client, asyncio.timeout(20):
            while True:
                with suppress(httpx.HTTPError):
                    await client.get(f"http://127.0.0.1:{port}/sandbox/jobs")
                    break
                await asyncio.sleep(0.05)
        yield f"http://127.0.0.1:{port}"
    finally:
        with suppress(ProcessLookupError):
            process.kill()
        await process.wait()


def _environment(folder: Path, address: str, provider: str, url: str, bucket: S3Server) -> dict[str, str]:
    return {
        "PATH": os.environ["PATH"],
        "HOME": str(folder),
        "PYTHONPATH": str(ROOT),
        "NANO_BANANA_API_KEY": "test-key",
        "NANO_BANANA_API_URL": provider,
        "NANO_BANANA_UPLOAD_URL": provider,
        "BROKER_DOWNLOAD_ALLOW": provider.removeprefix("http://"),
        "WEBHOOK_BASE_URL": address,
        "DATABASE_URL": url,
        "BROKER_BLOB_URL": f"s3://{bucket.new_bucket()}/images",
        "AWS_ENDPOINT_URL": bucket.url,
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "BROKER_API_KEYS": "cluster-key",
        "BROKER_DATA_DIR": str(folder / "data"),
        "SECRET_KEY": "the same for all of them",
        "BROKER_CHECK_AFTER_SECONDS": "3",
        "BROKER_RETRY_SECONDS": "0.2",
        "BROKER_LEASE_SECONDS": str(LEASE),
        "BROKER_TASK_DEADLINE_SECONDS": "20",
        # what was killed between the intent and the first byte was never ordered; its callback never comes, so it is
        # ordered when that is certain, and ends right
        "BROKER_RESUBMIT_UNKNOWN": "true",
        "NANO_BANANA_CREATES_PER_10S": "100000",
        "RATE_LIMIT_PER_MINUTE": "10000000",
        "LOG_LEVEL": "WARNING",
    }


# -- the trial


@dataclass(kw_only=True)
class Verdict:
    """Result of a trial. seconds: its whole duration."""

    ordered: int
    ends: Counter[str] = field(default_factory=Counter)
    submissions: int = 0
    twice: int = 0
    unreadable: int = 0
    hollow: int = 0
    duplicates: int = 0
    reordered: int = 0
    answers: list[float] = field(default_factory=list)
    lives: list[float] = field(default_factory=list)
    events: list[str] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def right(self) -> bool:
        """Return whether every acknowledged task was submitted once and its image can be read."""
        one_each = self.submissions == self.ordered and not self.twice
        return (
            one_each
            and self.ends["completed"] == self.ordered
            and not (self.unreadable or self.hollow or self.duplicates)
        )

    def summary(self) -> str:
        """For people to read."""
        cuts, lives = quantiles(self.answers, n=100), quantiles(self.lives, n=100)
        return "\n".join(
            [
                *self.events,
                f"orders acknowledged   {self.ordered}",
                f"right ends            {self.ends['completed']}   ({dict(self.ends)})",
                f"submissions           {self.submissions}   (twice for one order: {self.twice})",
                f"images unreadable     {self.unreadable}   (rows without bytes: {self.hollow})",
                f"duplicate results     {self.duplicates}",
                f"ordered again         {self.reordered}   (killed before the first byte had left)",
                f"order answered in     p50 {cuts[49] * 1000:.0f} ms, p99 {cuts[98] * 1000:.0f} ms",
                f"from order to end     p50 {lives[49]:.1f} s, p99 {lives[98]:.1f} s (the provider takes 1 s)",
                f"all in                {self.seconds:.1f} s, {self.ordered / self.seconds:.0f} tasks/s",
                "RIGHT" if self.right else "WRONG",
            ]
        )


Disaster = Callable[[Cluster], Any]


async def trial(cluster: Cluster, tasks: int, disasters: Sequence[tuple[float, Disaster]] = ()) -> Verdict:
    """Create tasks from many callers, with a fault at each fraction of them; wait for all ends and count."""
    verdict, begun = Verdict(ordered=tasks), time.monotonic()
    happening: list[asyncio.Task[Any]] = []
    left = iter(sorted(disasters, key=lambda one: one[0]))
    moment = next(left, None)
    places = asyncio.Semaphore(AT_ONCE)
    headers = {"Authorization": "Bearer cluster-key"}
    async with httpx.AsyncClient(base_url=cluster.address, timeout=20, headers=headers, verify=False) as client:

        async def order(number: int) -> str:
            nonlocal moment
            async with places:
                while moment is not None and number >= moment[0] * tasks:
                    verdict.events.append(f"{time.monotonic() - begun:6.1f} s  {moment[1].__doc__}")
                    happening.append(asyncio.ensure_future(moment[1](cluster)))
                    moment = next(left, None)
                return await _order(client, number, verdict)

        ids = await asyncio.gather(*(order(number) for number in range(tasks)))
        await asyncio.gather(*happening)
        await _quiet(client)
        for data in await asyncio.gather(*(_end(client, places, task_id) for task_id in ids)):
            verdict.ends[data["status"]] += 1
            verdict.unreadable += data["status"] == "completed" and not await _readable(client, data)
    verdict.seconds = time.monotonic() - begun
    await _count(cluster, verdict)
    return verdict


async def _order(client: httpx.AsyncClient, number: int, verdict: Verdict) -> str:
    """Create a task like a careful caller: the same key until a response arrives."""
    begun = time.monotonic()
    while True:
        with suppress(httpx.HTTPError):
            answer = await client.post(
                "/api/generate/image",
                json={"prompt": f"picture {number}"},
                headers={"Idempotency-Key": f"order-{number}"},
            )
            if answer.status_code == 202:
                verdict.answers.append(time.monotonic() - begun)
                task_id: str = answer.json()["taskId"]
                return task_id
            assert _is_temporary(answer), f"{answer.status_code} {answer.text}"
        await asyncio.sleep(0.2)


def _is_temporary(answer: httpx.Response) -> bool:
    """Return whether a broker shed the request, or nginx found none; any other answer to an order is a defect."""
    if answer.headers.get("content-type", "").startswith("application/json"):
        return answer.status_code == 503 and answer.json()["code"] == "unavailable" and "retry-after" in answer.headers
    return answer.status_code == 502


async def _quiet(client: httpx.AsyncClient) -> None:
    """Wait until no task is active, with one poller: thousands would be a load of their own."""
    async with asyncio.timeout(600):
        for status in ("pending", "processing"):
            while True:
                with suppress(httpx.HTTPError):
                    answer = await client.get("/api/tasks", params={"status": status, "limit": 1})
                    if answer.status_code == 200 and not answer.json()["data"]:
                        break
                await asyncio.sleep(0.5)


async def _end(client: httpx.AsyncClient, places: asyncio.Semaphore, task_id: str) -> dict[str, Any]:
    async with asyncio.timeout(300):
        while True:
            async with places:
                with suppress(httpx.HTTPError):
                    answer = await client.get(f"/api/task/{task_id}")
                    if answer.status_code == 200 and answer.json()["data"]["status"] not in {"pending", "processing"}:
                        data: dict[str, Any] = answer.json()["data"]
                        return data
            await asyncio.sleep(1)


async def _readable(client: httpx.AsyncClient, data: dict[str, Any]) -> bool:
    answer = await client.get(data["result"])
    return answer.status_code == 200 and len(answer.content) == data["results"][0]["bytes"]


async def _count(cluster: Cluster, verdict: Verdict) -> None:
    prompts = Counter(job["request"]["input"]["prompt"] for job in await cluster.jobs())
    verdict.submissions = sum(prompts.values())
    verdict.twice = sum(count > 1 for count in prompts.values())
    connection = await asyncpg.connect(cluster.database_url)
    try:
        blobs = {row["blob"] for row in await connection.fetch("SELECT blob FROM images")}
        verdict.hollow = len(blobs - cluster.kept())
        verdict.duplicates = await connection.fetchval(
            "SELECT count(*) FROM attempts WHERE duplicate_result IS NOT NULL"
        )
        rows = await connection.fetch("SELECT ended_at - created_at AS life FROM tasks WHERE ended_at IS NOT NULL")
        verdict.lives = [row["life"] for row in rows]
        verdict.reordered = await connection.fetchval("SELECT count(*) FROM attempts WHERE number > 1")
    finally:
        await connection.close()


def kill(name: str) -> Disaster:
    async def happen(cluster: Cluster) -> None:
        cluster.members[name].send(signal.SIGKILL)

    happen.__doc__ = f"kill -9 of {name}"
    return happen


def revive(name: str) -> Disaster:
    async def happen(cluster: Cluster) -> None:
        await cluster.start(name, cluster.members[name].port)

    happen.__doc__ = f"{name} is started again"
    return happen


def pause(name: str) -> Disaster:
    async def happen(cluster: Cluster) -> None:
        cluster.members[name].send(signal.SIGSTOP)
        await asyncio.sleep(PAUSE)
        cluster.members[name].send(signal.SIGCONT)

    happen.__doc__ = f"{name} is stopped for {PAUSE:.0f} s, its leases end after {LEASE:.0f}"
    return happen


DISASTERS = ((0.2, kill("worker 1")), (0.4, pause("worker 2")), (0.6, kill("serve 1")))
"""Two of four are killed and one is paused; for a while a single process does everything."""


async def keep_up() -> int:
    stopping = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stopping.set)
    async with running() as cluster:
        say(f"brokers    {cluster.address}   (Authorization: Bearer cluster-key)")
        say(f"provider   {cluster.provider}/sandbox/jobs")
        say(f"database   {cluster.database_url}")
        say(f"bucket     {cluster.environment['BROKER_BLOB_URL']} at {cluster.bucket.url}")
        say(f"processes  {', '.join(f'{m.name}: {m.process.pid}' for m in cluster.members.values())}")
        await stopping.wait()
    return 0


async def try_out(tasks: int) -> int:
    async with running() as cluster:
        names = ", ".join(cluster.members)
        say(f"{tasks} orders through {names}, behind {'nginx' if nginx.installed() else 'a small balancer'}")
        verdict = await trial(cluster, tasks, DISASTERS)
    say(verdict.summary())
    return 0 if verdict.right else 1


def say(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def main() -> int:
    parser = argparse.ArgumentParser(prog="scripts/cluster.sh", description=(__doc__ or "").splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("up", help="start it and keep it until Ctrl-C")
    trying = commands.add_parser("trial", help="orders, disasters, and a verdict")
    trying.add_argument("tasks", type=int, nargs="?", default=2000)
    chosen = parser.parse_args()
    return asyncio.run(keep_up() if chosen.command == "up" else try_out(chosen.tasks))


if __name__ == "__main__":
    sys.exit(main())
