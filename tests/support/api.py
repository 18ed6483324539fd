"""The HTTP API of a broker whose provider cannot be reached: an order stays queued."""

from __future__ import annotations

import asyncio
import io
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing
from copy import copy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import httpx
from PIL import Image
from starlette.types import ASGIApp, Receive, Scope, Send

from broker.api.native.completed_tasks import CompletedTasks
from broker.api.native.task_cache import TaskCache
from broker.app import build_app
from broker.bootstrap import load_settings, open_services
from broker.clock import Clock, iso
from broker.server.deadlines import ConnectionLimits
from broker.server.sockets import bind_socket, socket_port
from broker.server.uvicorn import running_server
from broker.services import Services
from storage.deliveries import Delivery, DeliveryStatus
from storage.images import StoredImage
from storage.states import TaskState
from storage.tasks import Task
from tests.support.brokers import QUICK_STOP
from tests.support.listeners import Listeners
from tests.support.planted_secrets import EVERYWHERE, assert_no_secrets
from webhooks.events import Event, event_body

PORT = 8000
"""Part of the client's base URL; nothing listens on it."""
NEVER = 9e9
"""A time after the end of every test."""


async def _unmounted(scope: Scope, receive: Receive, send: Send) -> None:
    raise AssertionError("the server of this test has an application of its own")


@dataclass(kw_only=True)
class MountedApp:
    """The application behind the client, and the services that it was built from."""

    services: Services
    app: ASGIApp = _unmounted

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self.app(scope, receive, send)


@dataclass(frozen=True, kw_only=True)
class ApiBroker:
    mounted: MountedApp
    listeners: Listeners
    client: httpx.AsyncClient
    port: int
    folder: Path

    @property
    def services(self) -> Services:
        return self.mounted.services

    def mount(self, **parts: Any) -> None:
        """Build the application again from the same services with other parts."""
        self.mounted.services = with_parts(self.services, **parts)
        self.mounted.app = build_app(self.services)

    async def add_task(self, **changes: Any) -> Task:
        """Insert a task that no worker touches."""
        task = a_task(self.services.clock.now(), **changes)
        await self.services.database.transact(self.services.tables.tasks.insert_task(task))
        return task

    async def change_task(self, task: Task, **changes: Any) -> None:
        """Change a task like a worker."""
        fresh = await self.services.tables.tasks.get(task.id)
        assert fresh is not None
        saving = self.services.tables.tasks.update_task(fresh, **changes)
        await self.services.database.transact(saving, wake=(f"task:{task.id}",))

    @property
    def waiters(self) -> int:
        """Number of requests that wait for a change of a task."""
        return sum(count for channel, count in self.listeners.counts.items() if channel.startswith("task:"))

    async def wait_until_queued(self, task_id: str) -> None:
        """Wait until a new order waits in the queue: at first it is submitted, and that fails."""
        while (task := await self.services.tables.tasks.get(task_id)) is None or task.state != TaskState.QUEUED:  # noqa: ASYNC110
            await asyncio.sleep(0.002)

    async def wait_for_listener(self, task: Task) -> None:
        """Wait until a request waits for a change of the task."""
        while not self.listeners.counts[f"task:{task.id}"]:  # noqa: ASYNC110
            await asyncio.sleep(0.002)

    async def wait_for_no_listener(self, task: Task) -> None:
        while self.listeners.counts[f"task:{task.id}"]:  # noqa: ASYNC110
            await asyncio.sleep(0.002)

    async def add_image(
        self, owner: str, data: bytes, *, kind: Any = "result", position: int = 0, **changes: Any
    ) -> StoredImage:
        async with self.services.blobs.new_draft(owner) as draft:
            await draft.write(data)
            blob = await draft.commit()
        prefix = "generated" if kind == "result" else "reference"
        image = StoredImage(
            name=f"{prefix}_{blob.sha256[:42]}{position}.png",
            owner=owner,
            kind=kind,
            position=position,
            blob=blob.name,
            media_type="image/png",
            size=blob.size,
            width=4,
            height=4,
            sha256=blob.sha256,
            created_at=self.services.clock.now(),
        )
        image = replace(image, **changes)
        row = {**vars(image), "caller": "local"}  # inserted without the checks of `insert_image`
        columns, values = ", ".join(row), ", ".join(f":{name}" for name in row)
        await self.services.database.execute(f"INSERT INTO images ({columns}) VALUES ({values})", **row)
        return image

    async def add_delivery(self, task: Task, **changes: Any) -> Delivery:
        """Insert a delivered webhook of the task; `changes` override its fields."""
        now = self.services.clock.now()
        values: dict[str, Any] = {
            "id": f"evt_{task.id[-32:]}",
            "caller": task.caller,
            "task_id": task.id,
            "type": "task.completed",
            "url": "https://hooks.example.com/x?secret=of-the-receiver",
            "host": "hooks.example.com",
            "body": event_body(
                Event.COMPLETED, iso(now) or "", self.services.presenter.task(task, [], "en").to_document()
            ),
            "outcome": DeliveryStatus.DELIVERED,
            "due_at": None,
            "created_at": now,
            "ended_at": now,
        }
        delivery = Delivery(**{**values, **changes})
        await self.services.database.transact(self.services.tables.deliveries.insert_delivery(delivery))
        return delivery

    async def stored_counts(self) -> tuple[int, int, int, int]:
        """Return the number of tasks, images, idempotency keys and files."""
        counts = []
        for table in ("tasks", "images", "idempotency"):
            rows = await self.services.database.fetch(f"SELECT count(*) AS n FROM {table}")
            counts.append(rows[0]["n"])
        files = sum(path.is_file() for path in (self.folder / "blobs").rglob("*"))
        return counts[0], counts[1], counts[2], files

    async def send_raw(self, data: bytes, *, timeout_seconds: float = 5.0) -> bytes:
        """Send bytes on a new connection; return the response up to the end of the connection."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        try:
            writer.write(data)
            async with asyncio.timeout(timeout_seconds):
                return await reader.read()
        finally:
            writer.close()


@asynccontextmanager
async def open_api(
    folder: Path,
    *,
    sockets: bool = False,
    limits: ConnectionLimits | None = None,
    clock: Clock | None = None,
    blobs: Any = None,
    **settings: Any,
) -> AsyncIterator[ApiBroker]:
    """Open a broker and a client of its API.

    sockets: over real HTTP, where the test concerns connections or a response that does not end; otherwise the client
    calls the application directly, which takes a fifth of the time. Time limits of connections (`limits`) imply it.
    blobs: what the application uses instead of the services' own store.
    """
    defaults: dict[str, Any] = {
        **EVERYWHERE,
        "api_url": "http://127.0.0.1:9",
        "webhook_base_url": "https://broker.example",
        "tunnel_api": "http://127.0.0.1:9",
        "data_dir": folder,
        "rate_per_minute": 100_000,
    }
    chosen = load_settings(env_file=None, **{**defaults, **settings})
    listeners = Listeners()
    parts = {"blobs": blobs} if blobs else {}
    if sockets or limits is not None:
        with closing(bind_socket("127.0.0.1", 0)) as sock:
            port = socket_port(sock)
            async with (
                open_services(chosen, clock=clock, port=port, open_database=listeners.open_database) as services,
                running_server(with_parts(services, **parts), sock, limits=limits or QUICK_STOP) as base,
                httpx.AsyncClient(base_url=base, timeout=35, verify=False) as client,
            ):
                await _started(services)
                mounted = MountedApp(services=services)
                yield ApiBroker(mounted=mounted, listeners=listeners, client=client, port=port, folder=folder)
                assert_no_secrets(folder)
        return
    async with (
        open_services(chosen, clock=clock, port=PORT, open_database=listeners.open_database) as services,
        _running_worker(services),
    ):
        mounted = MountedApp(services=services, app=build_app(with_parts(services, **parts)))
        transport = httpx.ASGITransport(mounted, raise_app_exceptions=False, client=("127.0.0.1", 50_000))
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{PORT}", transport=transport) as client:
            await _started(services)
            yield ApiBroker(mounted=mounted, listeners=listeners, client=client, port=PORT, folder=folder)
            assert_no_secrets(folder)


def with_parts(services: Services, **parts: Any) -> Services:
    """Return a copy in which these parts are others, or the services themselves; parts made before are shared."""
    changed = copy(services) if parts else services
    vars(changed).update(parts)
    return changed


def task_cache(services: Services, **limits: Any) -> TaskCache:
    return TaskCache(
        clock=services.clock,
        queries=services.queries,
        eta=services.eta,
        presenter=services.presenter,
        completed=CompletedTasks(database=services.database, presenter=services.presenter),
        changes=services.task_changes,
        **limits,
    )


@asynccontextmanager
async def _running_worker(services: Services) -> AsyncIterator[None]:
    """Run the worker, as the server does."""
    working = asyncio.create_task(services.worker.run())
    try:
        async with services.url_monitor.run(), services.conversation_parts.keeper.run():
            yield
    finally:
        services.queries.closing = True
        services.worker.stop()
        await working


async def _started(services: Services) -> None:
    """Wait for the worker's first retention pass, which would delete the tasks of a test."""
    known = "SELECT 1 FROM cluster_state WHERE name = 'retention' AND value <> 'inf'"
    while await services.database.fetch_one(known) is None:  # noqa: ASYNC110
        await asyncio.sleep(0.005)


def a_task(now: float, **changes: Any) -> Task:
    task_id = changes.pop("id", None) or f"task_{changes.pop('number', 1):043x}"
    values: dict[str, Any] = {
        "id": task_id,
        "batch": task_id.replace("task_", "batch_"),
        "caller": "house:local",
        "state": TaskState.WAITING,
        "due_at": NEVER,
        "provider": "kie",
        "model": "nano-banana",
        "mode": "text-to-image",
        "prompt": "a banana",
        "deadline_at": NEVER,
        "attempt": 1,
        "expects_callback": True,
        "job_id": None,
        "created_at": now,
        "updated_at": now,
        "entered_at": now,
    }
    return Task(**{**values, **changes})


def png(color: str = "yellow") -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (4, 4), color).save(out, "PNG")
    return out.getvalue()
