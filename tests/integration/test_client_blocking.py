"""Synchronous client: threads, notebooks, interrupts and finalization, without leaked threads."""

from __future__ import annotations

import asyncio
import gc
import inspect
import json
import os
import subprocess
import sys
import textwrap
import threading
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import assert_type

import pytest

from broker.client import AsyncClient, BrokerApiError, Client, Image, Task
from tests.integration.test_client import (
    ACCEPT_ORDER,
    ID,
    KEY,
    PNG,
    broker_of,
    completed_task,
    event,
    respond_json,
    task_document,
)
from tests.support.faulty_http import Script, Visit, head, serve

ROOT = Path(__file__).parent.parent.parent
SECONDS = 20.0
STREAM_HEAD = head("200 OK", "Content-Type: text/event-stream")


class BrokerThread:
    """Broker in a thread, like one in another process."""

    def __init__(self, script: Script) -> None:
        self._script = script
        self._ready = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve()))

    async def _serve(self) -> None:
        self._loop, self._stopped = asyncio.get_running_loop(), asyncio.Event()
        async with serve(self._script) as self._server:
            self._ready.set()
            await self._stopped.wait()

    def __enter__(self) -> BrokerThread:
        self._thread.start()
        assert self._ready.wait(SECONDS)
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._stopped.set)
        self._thread.join()

    def url(self) -> str:
        return self._server.url()

    def wait_until_called(self) -> None:
        asyncio.run_coroutine_threadsafe(self._server.called.wait(), self._loop).result(SECONDS)

    def wait_until_left(self) -> None:
        asyncio.run_coroutine_threadsafe(self._server.left.wait(), self._loop).result(SECONDS)


def client_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "broker-client"]


@pytest.fixture(autouse=True)
def no_thread_is_left() -> Iterator[None]:
    yield
    gc.collect()
    for thread in client_threads():
        thread.join(SECONDS)
    assert client_threads() == []


async def never_answer(visit: Visit) -> None:
    await visit.reader.readexactly(1)


async def endless_stream(visit: Visit) -> None:
    await visit.send(STREAM_HEAD, event(1, "pending"))
    await visit.reader.readexactly(1)


def test_generate_returns_an_image() -> None:
    with BrokerThread(broker_of(completed_task(0))) as server, Client(server.url(), key=KEY) as client:
        image = client.generate("a red fox")[0]
        assert isinstance(image, Image)
        assert image.content == PNG
        assert client.base == server.url().rstrip("/")
        assert KEY not in repr(client)


def test_every_method_has_a_synchronous_form() -> None:
    """With the same signature and docstring, which notebooks show."""
    blocking = {name for name in vars(Client) if not name.startswith("_")} - {"close"}
    awaited = {name for name in vars(AsyncClient) if not name.startswith("_")} - {"aclose"}
    assert blocking == awaited
    for name in awaited:
        async_method, sync_method = getattr(AsyncClient, name), getattr(Client, name)
        assert (inspect.signature(sync_method), sync_method.__doc__) == (
            inspect.signature(async_method),
            async_method.__doc__,
        )
        assert not inspect.iscoroutinefunction(sync_method)
    options = inspect.signature(AsyncClient).parameters.keys() - inspect.signature(Client).parameters.keys()
    assert options == {"sleep", "app"}


def test_client_works_inside_a_running_loop() -> None:
    """A notebook runs its cells inside an event loop."""

    async def cell(server: BrokerThread) -> list[Image]:
        with Client(server.url()) as client:
            return client.generate("a red fox")

    with BrokerThread(broker_of(completed_task(0))) as server:
        assert len(asyncio.run(cell(server))) == 1


def test_threads_share_one_client() -> None:
    with (
        BrokerThread(broker_of(completed_task(0))) as server,
        Client(server.url()) as client,
        ThreadPoolExecutor(8) as threads,
    ):
        images = list(threads.map(lambda _: client.generate("a red fox")[0], range(24)))
    assert {image.content for image in images} == {PNG}
    assert len(images) == 24


def test_events_are_iterated_and_raise_errors() -> None:
    async def script(visit: Visit) -> None:
        if visit.path.startswith(f"/api/task/{ID}/"):
            await visit.send(STREAM_HEAD, event(1, "pending"), event(2, "completed"))
        else:
            await respond_json({"error": "No.", "code": "task_not_found", "retryable": False}, "404 Not Found")(visit)

    with BrokerThread(script) as server, Client(server.url()) as client:
        assert [task.status for task in client.events(ID)] == ["pending", "completed"]
        nothing = client.events("task_0")
        with pytest.raises(BrokerApiError, match="No"):
            next(nothing)


def test_abandoned_iterator_closes_the_connection() -> None:
    with BrokerThread(endless_stream) as server, Client(server.url()) as client:
        for task in client.events(ID):
            assert isinstance(task, Task)
            break
        gc.collect()
        server.wait_until_left()


def test_iterator_keeps_its_client_alive() -> None:
    """`for task in Client().events(…)` holds no other reference to the client."""

    async def script(visit: Visit) -> None:
        await visit.send(STREAM_HEAD, event(1, "pending"), event(2, "completed"))

    with BrokerThread(script) as server:
        statuses = []
        for task in Client(server.url()).events(ID):
            gc.collect()
            statuses.append(task.status)
    assert statuses == ["pending", "completed"]


def test_closing_cancels_running_calls() -> None:
    with BrokerThread(never_answer) as server, ThreadPoolExecutor(2) as threads:
        client = Client(server.url())
        waiting: list[Future[object]] = [
            threads.submit(client.wait, ID),
            threads.submit(lambda: list(client.events(ID))),
        ]
        server.wait_until_called()
        client.close()
        assert not client_threads()
        client.close()
        for future in waiting:
            with pytest.raises(RuntimeError, match="closed"):
                future.result(SECONDS)
    with pytest.raises(RuntimeError, match="not running"):
        client.get(ID)
    with pytest.raises(RuntimeError, match="not running"):
        next(client.events(ID))


def test_unreferenced_client_closes_itself() -> None:
    with BrokerThread(respond_json(task_document())) as server:
        Client(server.url()).get(ID)


def test_invalid_base_starts_no_thread() -> None:
    with pytest.raises(ValueError, match="like http"):
        Client("127.0.0.1:8000")


@pytest.mark.parametrize(
    "ending",
    ["", "sys.exit(3)", "raise KeyboardInterrupt", "next(client.events(sys.argv[2]))", "open(__file__).close()"],
)
def test_interpreter_exits_silently_with_an_open_client(ending: str) -> None:
    ended = _python(
        f"""
        import sys
        from broker.client import Client
        client = Client(sys.argv[1])
        client.create("a fox", images=[__file__])
        stream = client.events(sys.argv[2])
        try:
            {ending or "pass"}
        except KeyboardInterrupt:
            pass
        """
    )
    assert ended.stderr == ""
    assert ended.returncode == (3 if "exit" in ending else 0)


def test_client_is_usable_after_an_interrupt() -> None:
    ended = _python(
        """
        import os, signal, sys, threading
        from broker.client import Client

        with Client(sys.argv[1]) as client:
            for call in (lambda: client.wait("task_hold"), lambda: list(client.events("task_hold"))):
                threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGINT)).start()
                try:
                    call()
                except KeyboardInterrupt:
                    print("interrupted")
            print(client.get(sys.argv[2]).status)
        """
    )
    assert (ended.stdout, ended.stderr) == ("interrupted\ninterrupted\nprocessing\n", "")


def test_client_imports_nothing_of_the_server() -> None:
    """Its import is quick, and it depends on the HTTP API only."""
    server, heavy = ("broker", "storage", "uploads", "webhooks"), "starlette uvicorn PIL typer".split()
    ended = _python("import sys, broker.client; print(*sys.modules)")
    loaded = ended.stdout.split()
    foreign = {name for name in loaded if name.partition(".")[0] in server and not name.startswith("broker.client")}
    assert foreign == {"broker"}
    assert set(loaded).isdisjoint(heavy)


def use_with_types(client: Client) -> None:
    """Check the types of the synchronous methods, which their decorator must keep: mypy reads this, nothing calls it.

    It would report an unused `type: ignore`, too.
    """
    assert_type(client.generate("a fox", n=2), list[Image])
    assert_type(client.events("task_1"), Iterator[Task])
    client.generate("a fox", sizes=2)  # type: ignore[call-arg]
    client.wait(7)  # type: ignore[arg-type]


def test_types_are_for_users_of_the_package_too() -> None:
    assert (ROOT / "broker" / "py.typed").exists()


def _python(program: str) -> subprocess.CompletedProcess[str]:
    """Run a program against a broker; warnings are errors."""

    async def script(visit: Visit) -> None:
        if visit.head.startswith(b"POST"):
            await ACCEPT_ORDER(visit)
        elif "task_hold" in visit.path:
            await never_answer(visit)
        elif visit.path.endswith("/events"):
            await endless_stream(visit)
        else:
            await respond_json(task_document())(visit)

    with BrokerThread(script) as server:
        return subprocess.run(
            [sys.executable, "-W", "error", "-c", _program(program), server.url(), ID],
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            check=False,
            capture_output=True,
            text=True,
            timeout=SECONDS,
        )


def _program(text: str) -> str:
    return f"__file__ = {json.dumps(__file__)}\n{textwrap.dedent(text)}"
