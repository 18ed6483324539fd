"""The public URL is discovered, verified from outside, and replaced when it changes or fails."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import httpx
import pytest

from broker.bootstrap import load_settings, open_services
from broker.callbacks.url_monitor import REFRESH_SECONDS, REVERIFY_SECONDS
from broker.server.sockets import bind_socket, socket_port
from broker.server.uvicorn import running_server
from broker.services import Services
from storage.attempts import Attempt
from storage.errors import StorageError
from storage.sql.scope import EVERYTHING
from storage.states import TaskState
from storage.tasks import Task
from tests.support.api import a_task
from tests.support.brokers import open_broker
from tests.support.clock import ManualClock
from tests.support.faulty_http import answers, serve
from tests.support.log_lines import captured_lines
from tests.support.servers.postgres import Postgres
from tests.support.servers.tunnels import Agent, Tunnel, an_agent, tunnelling

pytestmark = pytest.mark.anyio

GONE = b"HTTP/1.1 404 Not Found\r\nContent-Length: 14\r\n\r\nERR_NGROK_3200"
"""The answer of ngrok's edge for a tunnel that does not exist."""


@dataclass(frozen=True, kw_only=True)
class Place:
    """A broker with a manual clock, and the tunnels and agents around it."""

    services: Services
    port: int
    client: httpx.AsyncClient
    agent: Agent
    clock: ManualClock
    stack: AsyncExitStack

    async def tunnel(self, target: int | None = None) -> Tunnel:
        return await self.stack.enter_async_context(tunnelling(target or self.port))

    async def refresh(self, after: float = REFRESH_SECONDS) -> None:
        self.clock.advance(after)
        await self.services.url_monitor.refresh()

    def base(self) -> str | None:
        return self.services.address.base

    async def callback_address(self) -> str | None:
        """Return the URL that an order would pass to its provider now."""
        answer = await self.client.post("/api/generate/image", json={"prompt": "a fox", "dryRun": True})
        address: str | None = answer.json()["data"]["json"].get("callBackUrl") if "data" in answer.json() else None
        return address

    async def waiting(self, number: int = 1, *, sent: float = 0.0, **changes: Any) -> Task:
        """An order of `sent` seconds ago whose callback is expected."""
        now = self.clock.now()
        task = a_task(now, number=number, job_id="job", due_at=now + 30, deadline_at=now + 900, **changes)
        attempt = Attempt(task_id=task.id, number=1, provider="kie", key_id="default", job_id="job", sent_at=now - sent)
        columns = ", ".join(vars(attempt))
        await self.services.database.transact(self.services.tables.tasks.insert_task(task))
        await self.services.database.execute(
            f"INSERT INTO attempts ({columns}) VALUES ({', '.join(':' + name for name in vars(attempt))})",
            **vars(attempt),
        )
        return task

    async def now(self, task: Task) -> Task:
        fresh = await self.services.tables.tasks.get(task.id)
        assert fresh is not None
        return fresh

    def metric(self, name: str, **labels: str) -> float:
        return self.services.metrics.registry.get_sample_value(name, labels) or 0.0


@asynccontextmanager
async def place(folder: Path, clock: ManualClock, **settings: Any) -> AsyncIterator[Place]:
    """The agent reports no tunnel, unless a test adds one before it opens the broker."""
    async with AsyncExitStack() as stack:
        agent = settings.pop("agent", None) or await stack.enter_async_context(an_agent())
        sock = stack.enter_context(closing(settings.pop("sock", None) or bind_socket("127.0.0.1", 0)))
        chosen: dict[str, Any] = {"kie_keys": "a-key-of-the-tests", "api_url": "http://127.0.0.1:9", "data_dir": folder}
        loaded = load_settings(env_file=None, **{**chosen, "tunnel_api": agent.url, **settings})
        services = await stack.enter_async_context(open_services(loaded, clock=clock, port=socket_port(sock)))
        services.url_monitor.agents = replace(services.url_monitor.agents, cloudflared=[agent.url])
        base = await stack.enter_async_context(running_server(services, sock))
        client = await stack.enter_async_context(httpx.AsyncClient(base_url=base, timeout=10, verify=False))
        yield Place(services=services, port=socket_port(sock), client=client, agent=agent, clock=clock, stack=stack)


def logged_actions(logs: list[Any]) -> list[str]:
    return [entry["action"] for entry in logs if entry.get("action", "").startswith(("public_url_", "switched_to"))]


# -- found


@pytest.mark.parametrize("old", [False, True])
async def test_running_tunnel_is_found_and_verified_at_start(tmp_path: Path, clock: ManualClock, old: bool) -> None:
    async with AsyncExitStack() as stack:
        sock = bind_socket("127.0.0.1", 0)
        agent = await stack.enter_async_context(an_agent(old=old))
        tunnel = await stack.enter_async_context(tunnelling(socket_port(sock)))
        agent.names(tunnel.url, port=socket_port(sock))
        broker = await stack.enter_async_context(place(tmp_path, clock, agent=agent, sock=sock))
        assert broker.base() == tunnel.url
        assert broker.metric("broker_public_address", source="ngrok") == 1
        assert tunnel.requests[0].startswith(b"GET /api/webhook/nano-banana?probe=")
        assert b"ngrok-skip-browser-warning" in tunnel.requests[0]


async def test_tunnel_started_after_the_broker_is_found(tmp_path: Path, clock: ManualClock) -> None:
    """The next order carries its URL, without a restart."""
    async with place(tmp_path, clock) as broker:
        assert broker.base() is None
        assert await broker.callback_address() is None
        tunnel = await broker.tunnel()
        broker.agent.names(tunnel.url, port=broker.port)
        with captured_lines() as logs:
            await broker.refresh()
            await broker.refresh()
        assert logged_actions(logs) == ["public_url_verified", "public_url_found"]
        assert broker.base() == tunnel.url
        assert broker.metric("broker_public_address_changes_total", change="found") == 1
        assert await broker.callback_address() == f"{tunnel.url}/api/webhook/nano-banana"


async def test_quick_tunnel_is_used_once_verified(tmp_path: Path, clock: ManualClock) -> None:
    """cloudflared does not report its port; another program's tunnel would receive our callbacks."""
    async with place(tmp_path, clock) as broker, serve(answers("200 OK", b'{"status": "ok"}')) as other:
        theirs, ours = await broker.tunnel(other.port), await broker.tunnel()
        broker.agent.quick = theirs.url
        await broker.refresh()
        assert broker.base() is None
        assert theirs.requests
        broker.agent.quick = ours.url
        await broker.refresh()
        assert broker.base() == ours.url
        assert broker.metric("broker_public_address", source="cloudflared") == 1


async def test_quick_tunnel_that_does_not_answer_is_not_used(tmp_path: Path, clock: ManualClock) -> None:
    """Unlike ngrok's agent, cloudflared does not report that it leads to our port."""
    async with place(tmp_path, clock) as broker:
        broker.agent.quick = "http://127.0.0.1:9"
        await broker.refresh()
        assert broker.base() is None


async def test_broker_with_another_secret_is_not_verified(tmp_path: Path, clock: ManualClock) -> None:
    async with place(tmp_path / "one", clock) as broker, place(tmp_path / "two", ManualClock()) as other:
        broker.agent.quick = (await broker.tunnel(other.port)).url
        await broker.refresh()
        assert broker.base() is None


async def test_unreachable_ngrok_url_is_trusted(tmp_path: Path, clock: ManualClock) -> None:
    """Its agent may use a proxy that the broker does not know; it reports the port it leads to."""
    async with place(tmp_path, clock) as broker:
        broker.agent.names("http://127.0.0.1:9", port=broker.port)
        for _ in range(4):
            await broker.refresh()
            assert broker.base() == "http://127.0.0.1:9"
        assert broker.metric("broker_public_address", source="ngrok") == 0


async def test_url_answered_by_another_server_is_not_used(tmp_path: Path, clock: ManualClock) -> None:
    async with place(tmp_path, clock) as broker:
        tunnel = await broker.tunnel()
        tunnel.edge = b"HTTP/1.1 401 Unauthorized\r\nContent-Length: 0\r\n\r\n"
        broker.agent.names(tunnel.url, port=broker.port)
        await broker.refresh()
        assert broker.base() is None


async def test_failing_url_is_not_probed_at_every_refresh(tmp_path: Path, clock: ManualClock) -> None:
    """Free tunnels have a monthly quota of requests."""
    async with place(tmp_path, clock) as broker:
        tunnel = await broker.tunnel()
        broker.agent.names(tunnel.url, port=broker.port)
        await broker.refresh()
        for _ in range(int(REVERIFY_SECONDS / REFRESH_SECONDS) - 1):
            await broker.refresh()
        assert len(tunnel.requests) == 1
        tunnel.edge = GONE
        for _ in range(100):
            await broker.refresh()
        assert len(tunnel.requests) < 12


# -- changed


async def test_new_url_replaces_a_dead_one_at_once(tmp_path: Path, clock: ManualClock) -> None:
    async with place(tmp_path, clock) as broker:
        first, second = await broker.tunnel(), await broker.tunnel()
        broker.agent.names(first.url, port=broker.port)
        await broker.refresh()
        clock.advance(1)
        task = await broker.waiting()
        first.edge = GONE
        broker.agent.names(second.url, port=broker.port)
        with captured_lines() as logs:
            await broker.refresh(after=1)
        assert logged_actions(logs) == [
            "public_url_unreachable",
            "public_url_verified",
            "public_url_changed",
            "switched_to_polling",
        ]
        assert broker.base() == second.url
        assert broker.metric("broker_public_address_changes_total", change="changed") == 1
        row = await broker.now(task)
        assert (row.expects_callback, row.due_at) == (False, clock.now() + 3)


async def test_order_sent_with_the_new_url_keeps_waiting(tmp_path: Path, clock: ManualClock) -> None:
    async with place(tmp_path, clock) as broker:
        broker.agent.names((await broker.tunnel()).url, port=broker.port)
        await broker.refresh()
        clock.advance(1)
        task = await broker.waiting()
        await broker.refresh(after=1)
        assert await broker.now(task) == task


async def test_order_submitted_during_the_change_is_switched_to_polling(tmp_path: Path, clock: ManualClock) -> None:
    """Its row starts waiting after the change, for a callback to the previous URL."""
    async with place(tmp_path, clock) as broker:
        broker.agent.names((await broker.tunnel()).url, port=broker.port)
        await broker.refresh()
        task = await broker.waiting(sent=5)
        await broker.refresh(after=1)
        assert not (await broker.now(task)).expects_callback


# -- lost


async def test_tunnel_that_ends_with_its_agent_is_lost_at_once(tmp_path: Path, clock: ManualClock) -> None:
    async with place(tmp_path, clock) as broker:
        tunnel = await broker.tunnel()
        broker.agent.names(tunnel.url, port=broker.port)
        await broker.refresh()
        tasks = [await broker.waiting(number) for number in range(1, 121)]
        silent = await broker.waiting(999, state=TaskState.SUBMITTING)
        await tunnel.kill()
        broker.agent.silent = True
        with captured_lines() as logs:
            await broker.refresh()
        assert logged_actions(logs) == ["public_url_unreachable", "public_url_lost", "switched_to_polling"]
        assert broker.base() is None
        assert await broker.callback_address() is None
        assert broker.metric("broker_public_address", source="ngrok") == 0
        assert not any([(await broker.now(task)).expects_callback for task in tasks])
        assert (await broker.now(silent)).expects_callback, "an order of unknown outcome has nothing but its callback"


async def test_reported_tunnel_may_fail_once(tmp_path: Path, clock: ManualClock) -> None:
    async with place(tmp_path, clock) as broker:
        tunnel = await broker.tunnel()
        broker.agent.names(tunnel.url, port=broker.port)
        await broker.refresh()
        tunnel.edge = GONE
        await broker.refresh(after=REVERIFY_SECONDS)
        assert broker.base() == tunnel.url
        tunnel.edge = None
        await broker.refresh()
        tunnel.edge = GONE
        await broker.refresh(after=REVERIFY_SECONDS)
        assert broker.base() == tunnel.url
        await broker.refresh()
        assert broker.base() is None


async def test_verified_url_that_stops_answering_is_lost(tmp_path: Path, clock: ManualClock) -> None:
    async with place(tmp_path, clock) as broker:
        tunnel = await broker.tunnel()
        broker.agent.names(tunnel.url, port=broker.port)
        await broker.refresh()
        await tunnel.kill()
        await broker.refresh(after=REVERIFY_SECONDS)
        await broker.refresh()
        assert broker.base() is None


async def test_silent_agent_does_not_end_a_working_tunnel(tmp_path: Path, clock: ManualClock) -> None:
    async with place(tmp_path, clock) as broker:
        tunnel = await broker.tunnel()
        broker.agent.names(tunnel.url, port=broker.port)
        await broker.refresh()
        broker.agent.silent = True
        with captured_lines() as logs:
            for _ in range(3):
                await broker.refresh()
        assert broker.base() == tunnel.url
        assert logged_actions(logs) == []


async def test_late_callbacks_arrive_when_the_url_returns(tmp_path: Path, clock: ManualClock) -> None:
    """Tokens outlive the URL: ngrok assigns the same name again."""
    async with place(tmp_path, clock) as broker:
        tunnel = await broker.tunnel()
        broker.agent.names(tunnel.url, port=broker.port)
        await broker.refresh()
        task = await broker.waiting()
        callback = broker.services.worker.steps.submit.callback_url("kie", task.id, 1)
        assert callback is not None
        tunnel.edge, broker.agent.silent = GONE, True
        await broker.refresh()
        assert not (await broker.now(task)).expects_callback
        tunnel.edge, broker.agent.silent = None, False
        await broker.refresh(after=REVERIFY_SECONDS)
        assert broker.base() == tunnel.url
        async with httpx.AsyncClient(verify=False) as provider:
            answer = await provider.post(callback, json={"data": {"taskId": "job", "state": "waiting"}})
        assert answer.status_code == 200


async def test_task_ends_although_its_callback_cannot_arrive(tmp_path: Path) -> None:
    """End to end: ordered with a callback URL, the tunnel dies, and the provider is polled instead."""
    async with (
        an_agent() as agent,
        open_broker(
            tmp_path, with_callbacks=False, tunnel_api=agent.url, check_after=60.0, task_deadline=60.0
        ) as broker,
    ):
        port = int(str(broker.client.base_url.port))
        async with tunnelling(port) as tunnel:
            agent.names(tunnel.url, port=port)
            await broker.services.url_monitor.refresh()
            task_id = await broker.create_task("a red bicycle [mood:slow:1]")
            async for _ in broker.poll_task(task_id):
                state = (await broker.services.queries.get(task_id, EVERYTHING)).state
                if state not in {TaskState.QUEUED, TaskState.SUBMITTING}:  # a submission keeps waiting for its callback
                    break
            (job,) = await broker.provider_jobs()
            assert job["request"]["callBackUrl"].startswith(tunnel.url)
        agent.silent = True
        await broker.services.url_monitor.refresh()
        assert (await broker.wait_end(task_id, seconds=10))["status"] == "completed"
        assert len(await broker.provider_jobs()) == 1


async def test_machine_without_a_url_does_not_switch_tasks_of_others(tmp_path: Path, postgres: Postgres) -> None:
    """On a shared database another machine may have the tunnel; a machine that had one and lost it does switch."""
    clock = ManualClock(time.time())
    async with place(tmp_path, clock, database_url=await postgres.fresh()) as broker:
        task = await broker.waiting(sent=100)
        await broker.refresh(after=1)
        tunnel = await broker.tunnel()
        broker.agent.names(tunnel.url, port=broker.port)
        await broker.refresh(after=1)
        assert (await broker.now(task)).expects_callback
        await tunnel.kill()
        broker.agent.silent = True
        await broker.refresh(after=1)
        assert not (await broker.now(task)).expects_callback


async def test_restart_switches_tasks_with_an_earlier_url(tmp_path: Path, clock: ManualClock) -> None:
    async with place(tmp_path, clock) as broker:
        task = await broker.waiting(sent=100)
        await broker.refresh(after=1)
        assert not (await broker.now(task)).expects_callback


# -- configured


async def test_configured_url_is_kept_and_its_failure_logged_once(tmp_path: Path, clock: ManualClock) -> None:
    """Many machines cannot reach their own public name although other machines can."""
    async with AsyncExitStack() as stack:
        sock = bind_socket("127.0.0.1", 0)
        tunnel = await stack.enter_async_context(tunnelling(socket_port(sock)))
        broker = await stack.enter_async_context(place(tmp_path, clock, sock=sock, webhook_base_url=tunnel.url))
        broker.agent.names("https://other.example", port=broker.port)
        task = await broker.waiting(sent=100)
        with captured_lines() as logs:
            for edge in (GONE, GONE, None, None):
                tunnel.edge = edge
                await broker.refresh(after=REVERIFY_SECONDS)
        assert logged_actions(logs) == ["public_url_unreachable", "public_url_verified"]
        assert broker.base() == tunnel.url
        assert (await broker.now(task)).expects_callback
        assert broker.metric("broker_public_address", source="configured") == 1


# -- errors


async def test_failed_refresh_is_repeated(tmp_path: Path, clock: ManualClock) -> None:
    class Failing:
        calls = 0
        enough = asyncio.Event()

        async def list_candidates(self) -> list[Any]:
            self.calls += 1
            if self.calls == 1:
                raise StorageError("away")
            if self.calls == 2:
                raise ZeroDivisionError("a bug")
            self.enough.set()
            return []

    async with place(tmp_path, clock) as broker:
        agents: Any = Failing()
        broker.services.url_monitor.agents, broker.services.url_monitor.refresh_seconds = agents, 0.001
        with captured_lines() as logs:
            async with broker.services.url_monitor.run(), asyncio.timeout(5):
                await agents.enough.wait()
        ours = [
            entry["action"]
            for entry in logs
            if entry.get("action") in {"store_unavailable", "public_url_refresh_failed"}
        ]
        assert ours == ["store_unavailable", "public_url_refresh_failed"]
