"""A whole broker for one journey, over real HTTP, with the sandbox as its provider."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import httpx

from broker.api.http.endpoint import Dialect
from broker.bootstrap import database_for, load_settings, open_services
from broker.clock import Clock
from broker.orders import OrderRequest
from broker.providers.pool import ProviderPool
from broker.sandbox.engine import Options
from broker.sandbox.server import serve_sandbox
from broker.server.deadlines import ConnectionLimits
from broker.server.sockets import bind_socket, socket_port
from broker.server.uvicorn import running_server
from broker.services import Services
from broker.settings import Settings
from broker.tasks.accounts.pools import ProviderAccounts
from storage.sql.database import Database
from storage.tasks import Task
from tests.support.planted_secrets import EVERYWHERE, assert_no_secrets

QUICK: dict[str, Any] = {
    "check_after": 0.3,
    "poll_every": 0.1,
    "retry_after": 0.05,
    "task_deadline": 2.5,
    "creates_per_10s": 1000,
    "rate_per_minute": 10_000,
    "request_timeout": 2.0,
}
QUICK_STOP = ConnectionLimits(last_request_seconds=0.01)
"""No request is on its way when the server of a test stops."""


@dataclass(frozen=True, kw_only=True)
class RunningBroker:
    """A broker that serves. client: for its API. sandbox: base URL of its provider."""

    services: Services
    client: httpx.AsyncClient
    sandbox: str

    async def create_task(self, prompt: str, **fields: Any) -> str:
        """Create a task and return its id."""
        answer = await self.client.post("/api/generate/image", json={"prompt": prompt, **fields})
        assert answer.status_code == 202, answer.text
        task_id: str = answer.json()["taskId"]
        return task_id

    async def get_task(self, task_id: str) -> dict[str, Any]:
        answer = await self.client.get(f"/api/task/{task_id}")
        assert answer.status_code == 200, answer.text
        data: dict[str, Any] = answer.json()["data"]
        return data

    async def wait_end(self, task_id: str, seconds: float = 20) -> dict[str, Any]:
        """Return the task when it has ended; assert that its status never went back."""
        async with asyncio.timeout(seconds):
            seen = ["pending"]
            while seen[-1] not in {"completed", "failed", "canceled"}:
                answer = await self.client.get(f"/api/task/{task_id}", params={"wait": "1"})
                assert answer.status_code == 200, answer.text
                seen.append(answer.json()["data"]["status"])
                assert _forward(seen[-2], seen[-1]), seen
        data: dict[str, Any] = answer.json()["data"]
        return data

    async def poll_task(self, task_id: str) -> AsyncIterator[dict[str, Any]]:
        """Poll the task like a front end."""
        while True:
            yield await self.get_task(task_id)
            await asyncio.sleep(0.02)

    async def provider_jobs(self) -> list[dict[str, Any]]:
        """Return every submission that the provider accepted, and would bill."""
        async with httpx.AsyncClient(verify=False) as client:  # plain HTTP: loading the certificates takes 50 ms
            answer = await client.get(f"{self.sandbox}/sandbox/jobs")
        jobs: list[dict[str, Any]] = answer.json()["jobs"]
        return jobs


def _forward(was: str, now: str) -> bool:
    order = ["pending", "processing", "failed", "completed"]
    return now == "canceled" or order.index(now) >= order.index(was)


@asynccontextmanager
async def open_broker(
    folder: Path,
    *,
    with_callbacks: bool = True,
    port: int = 0,
    sandbox: str | None = None,
    options: Options | None = None,
    open_database: Callable[[Settings], AbstractAsyncContextManager[Database]] = database_for,
    extra_dialects: Sequence[Callable[[Services], Dialect]] = (),
    limits: ConnectionLimits = QUICK_STOP,
    isolates_images: bool = False,
    **settings: Any,
) -> AsyncIterator[RunningBroker]:
    """Run a broker over real HTTP, with the sandbox as its provider.

    with_callbacks: the broker knows its public URL, so the provider calls back; otherwise tasks are polled.

    sandbox: the base URL of one that runs already. port: ours, where it must be the same after a restart.
    isolates_images: see `open_services`.
    """
    async with AsyncExitStack() as stack:
        if sandbox is None:
            options = options or Options(duration=0.1, callback_spacing=0.05, creates_per_window=10_000)
            sandbox = await stack.enter_async_context(serve_sandbox(options=options))
        sock = bind_socket("127.0.0.1", port)
        stack.callback(sock.close)
        address = f"http://127.0.0.1:{socket_port(sock)}"
        chosen = load_settings(
            env_file=None,
            **{
                **QUICK,
                **EVERYWHERE,
                "api_url": sandbox,
                "upload_url": sandbox,
                "webhook_base_url": address if with_callbacks else "",
                "tunnel_api": "http://127.0.0.1:9",
                "download_allow": (sandbox.removeprefix("http://"),),
                "data_dir": folder,
                **settings,
            },
        )
        services = await stack.enter_async_context(
            open_services(
                chosen,
                port=socket_port(sock),
                open_database=open_database,
                extra_dialects=extra_dialects,
                isolates_images=isolates_images,
            )
        )
        await stack.enter_async_context(running_server(services, sock, limits=limits))
        client = await stack.enter_async_context(httpx.AsyncClient(base_url=address, timeout=35, verify=False))
        yield RunningBroker(services=services, client=client, sandbox=sandbox)
        assert_no_secrets(folder)


@asynccontextmanager
async def still(
    folder: Path,
    clock: Clock,
    *,
    open_database: Callable[[Settings], AbstractAsyncContextManager[Database]] = database_for,
    **settings: Any,
) -> AsyncIterator[Services]:
    """Open the services without a server; their worker does nothing by itself."""
    nowhere = "http://127.0.0.1:9"
    fixed = {**EVERYWHERE, "api_url": nowhere, "tunnel_api": nowhere, "data_dir": folder}
    chosen = load_settings(env_file=None, **{**fixed, **settings})
    async with open_services(chosen, clock=clock, open_database=open_database) as services:
        yield services
        assert_no_secrets(folder)


def one_account(accounts: ProviderAccounts, name: str, provider: Any) -> ProviderAccounts:
    """Return the accounts with one key at one provider as the operator's only ones."""
    return replace(accounts, house={name: ProviderPool(name=name, accounts={provider.key_id: provider})})


async def create_tasks(services: Services, request: OrderRequest, caller: str = "house:local") -> tuple[Task, ...]:
    return (await services.orders.create(caller, request, await services.orders.plan(caller, request))).tasks
