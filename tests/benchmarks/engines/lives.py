"""Whole lives without a network: the real broker, its real worker and steps, beside a provider that answers at once.

Left out are HTTP and the bytes of the image; its row is written. So this is what the engine and its database can do.
"""

from __future__ import annotations

import asyncio
import json
import random
import secrets
import tempfile
import time
from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, ClassVar, Final
from urllib.parse import parse_qsl, urlsplit

from broker.bootstrap import load_settings, open_services
from broker.callbacks.receive import CallbackReceiver
from broker.orders import ImageParams, Order, OrderRequest
from broker.providers.base import ProviderPackage, ResultSink
from broker.reports import Finished, Pending, Report
from broker.services import Services
from broker.settings import Settings
from broker.settings.types import PackageSettings
from broker.tasks.lifecycle import DownloadFailure
from broker.tasks.steps.download import DownloadStep
from storage.ids import new_image_name
from storage.images import StoredImage
from storage.sql.database import Database, Outcome, Row, Statement
from storage.sql.postgres import PostgresDatabase
from storage.sql.sqlite import SqliteDatabase, sqlite_path
from storage.states import TaskState
from storage.tasks import Task
from tests.benchmarks.engines.measuring import Side
from webhooks.verification import IncomingCallback

AT_ONCE: Final = 32


@dataclass(frozen=True, kw_only=True)
class Upstream:
    """Limits and duration of the simulated provider. jitter: half to one and a half of that."""

    creates_per_10s: int = 1_000_000
    places: int = 1_000_000
    seconds: float = 0.05
    jitter: bool = False


@dataclass
class Counts:
    """Database calls of one process. writes: transactions; statements: in them. cpu: seconds."""

    reads: int = 0
    writes: int = 0
    statements: int = 0
    cpu: float = 0.0


class CountingPostgres(PostgresDatabase):
    counts = Counts()

    async def fetch(self, sql: str, **params: Any) -> list[Row]:
        self.counts.reads += 1
        return await super().fetch(sql, **params)

    async def transact(self, *statements: Statement, wake: Sequence[str] = ()) -> list[Outcome]:
        self.counts.writes += bool(statements)
        self.counts.statements += len(statements)
        return await super().transact(*statements, wake=wake)


class Prompt:
    """A provider without a network: it takes every order, and calls back a moment later."""

    name = "prompt"
    key_id = "default"
    base_url = ""
    api_name = "prompt"
    callback_path = "/api/webhook/prompt"

    holds_submit = False
    keeps_history = False

    def __init__(self, upstream: Upstream) -> None:
        self.creates_per_10s = upstream.creates_per_10s
        self.concurrency = upstream.places
        self._upstream = upstream
        self.receiver: CallbackReceiver
        self._calling: set[asyncio.Task[None]] = set()

    def supports(self, model: str) -> bool:
        return True

    def build_request(self, order: Order, callback_url: str | None) -> dict[str, Any]:
        return {}

    def price(self, order: Order) -> None:
        return None

    def find_obstacle(self, order: Order, references: int) -> None:
        return None

    def expects_callback(self, order: Order) -> bool:
        return True

    def ignored(self, order: Order) -> tuple[str, ...]:
        return ()

    async def upload_references(self, order: Order) -> Order:
        return order

    async def submit(self, order: Order, callback_url: str | None, sink: ResultSink) -> Report:
        job = secrets.token_hex(16)
        calling = asyncio.create_task(self._call(job, callback_url or ""))
        self._calling.add(calling)
        calling.add_done_callback(self._calling.discard)
        return Pending(job_id=job)

    async def _call(self, job: str, callback_url: str) -> None:
        share = random.uniform(0.5, 1.5) if self._upstream.jitter else 1.0
        await asyncio.sleep(self._upstream.seconds * share)
        query = dict(parse_qsl(urlsplit(callback_url).query))
        body = json.dumps({"job": job}).encode()
        await self.receiver.receive(
            IncomingCallback(provider=self.name, query=query, headers={}, body=body, trusted=False)
        )

    async def check(self, job_id: str, sink: ResultSink) -> Report:
        return self._finished(job_id)

    def parse_callback(self, body: Any) -> Report:
        return self._finished(body["job"])

    @staticmethod
    def _finished(job: str) -> Report:
        return Finished(outputs=(f"https://files.example.com/{job}.png",), job_id=job, cost=4.0)

    def job_ids(self, body: Any) -> tuple[str, ...]:
        return (body["job"],)

    async def cancel(self, job_id: str) -> bool:
        return False

    async def refresh_url(self, url: str) -> str | None:
        return None

    async def balance(self) -> float | None:
        return None


class InstantDownload(DownloadStep):
    """A download step whose downloads end as soon as they begin."""

    async def _download(self, task: Task, position: int) -> StoredImage | DownloadFailure:
        return StoredImage(
            name=new_image_name("generated", self.transitions.clock.now(), "png"),
            owner=task.id,
            kind="result",
            position=position,
            blob=f"{task.id}/{secrets.token_hex(32)}",
            media_type="image/png",
            size=2_000_000,
            width=1024,
            height=1024,
            sha256=secrets.token_hex(32),
            created_at=self.transitions.clock.now(),
        )


class PromptSettings(PackageSettings):
    """Without variables: the provider is always in use."""

    is_configured: ClassVar[bool] = True


def _package(provider: Prompt, folder: Path) -> ProviderPackage:
    """Return the simulated provider as the registry takes it. folder: for its catalog."""
    catalog = folder / "catalog.toml"
    catalog.write_text(f'unit = "credits"\ncreates_per_10s = {provider.creates_per_10s}\nconcurrency = 1\n[models]\n')
    return ProviderPackage(name=provider.name, settings=PromptSettings, factory=lambda _: provider, catalog=catalog)


def _settings(url: str, folder: Path, package: ProviderPackage) -> Settings:
    return load_settings(
        env_file=None,
        extra_providers=[package],
        database_url=url,
        data_dir=folder,
        webhook_base_url="https://broker.example.com",
        secret_key="the same for all of them",
        rate_per_minute=10_000_000,
    )


def _database(settings: Settings) -> AbstractAsyncContextManager[Database]:
    url = settings.database
    if url.startswith("sqlite:"):
        return SqliteDatabase(sqlite_path(url), own_process=True)  # as `broker serve` does
    return CountingPostgres(url)


def _skip_downloads(services: Services) -> None:
    steps = services.worker.steps
    parts = {part.name: getattr(steps.download, part.name) for part in fields(steps.download)}
    services.worker.steps = replace(steps, download=InstantDownload(**parts))


async def live(side: Side, url: str, upstream: Upstream, arrivals: Sequence[float]) -> Counts:
    """One process, `broker serve` without HTTP: it accepts orders, and works until all are done.

    arrivals: seconds from the start, of each order; no more than `AT_ONCE` are taken at a time.
    """
    with tempfile.TemporaryDirectory() as folder:
        provider = Prompt(upstream)
        package = _package(provider, Path(folder))
        settings = _settings(url, Path(folder), package)
        # no cluster: its processes would have to share a folder of images
        async with open_services(settings, open_database=_database, extra_providers=[package], joins=False) as services:
            _skip_downloads(services)
            provider.receiver, orders = services.receiver, services.orders
            await side.wait_for_go()
            counts = CountingPostgres.counts = Counts()
            begun, cpu = time.monotonic(), time.process_time()
            working = asyncio.create_task(services.worker.run())
            places = asyncio.Semaphore(AT_ONCE)

            async def order(number: int, at: float) -> None:
                await asyncio.sleep(begun + at - time.monotonic())
                async with places:
                    request = OrderRequest(params=ImageParams(prompt=f"picture {number}"))
                    await orders.create("house:local", request, await orders.plan("house:local", request))

            await asyncio.gather(*(order(number, at) for number, at in enumerate(arrivals)))
            await _all_ended(services.database)
            services.worker.stop()
            await working
            counts.cpu = time.process_time() - cpu
            return counts


async def _all_ended(database: Database) -> None:
    """Wait for all tasks; few queries, so that the measured work is not disturbed."""
    while True:
        if not await database.fetch_one(
            f"SELECT 1 AS open FROM tasks WHERE state <> '{TaskState.SUCCEEDED.value}' LIMIT 1"
        ):
            return
        await asyncio.sleep(0.25)
