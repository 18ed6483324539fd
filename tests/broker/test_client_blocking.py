"""The client without awaiting: in threads, in notebooks, interrupted, forgotten – and never a thread left behind."""

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
from typing import Any

import pytest

from broker.client import AsyncClient, Client, Image, Refused, Task
from tests.broker.test_client import ID, KEY, ORDERED, PNG, broker_of, event, made, says_json, told
from tests.faults.faulty_http import Script, Visit, head, serve

ROOT = Path(__file__).parent.parent.parent
SECONDS = 20.0


class Elsewhere:
    """A broker in a thread of its own, as one is that runs elsewhere."""

    def __init__(self, script: Script) -> None:
        self._script = script
        self._ready = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve()))

    async def _serve(self) -> None:
        self._loop, self._told = asyncio.get_running_loop(), asyncio.Event()
        async with serve(self._script) as self._server:
            self._ready.set()
            await self._told.wait()

    def __enter__(self) -> Elsewhere:
        self._thread.start()
        assert self._ready.wait(SECONDS)
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._told.set)
        self._thread.join()

    def url(self) -> str:
        return self._server.url()

    def is_called(self) -> None:
        asyncio.run_coroutine_threadsafe(self._server.called.wait(), self._loop).result(SECONDS)

    def is_left(self) -> None:
        asyncio.run_coroutine_threadsafe(self._server.left.wait(), self._loop).result(SECONDS)


@pytest.fixture(autouse=True)
def no_thread_is_left() -> Iterator[None]:
    yield
    gc.collect()
    assert [thread.name for thread in threading.enumerate() if thread.name == "broker-client"] == []


async def hold(visit: Visit) -> None:
    await visit.reader.readexactly(1)


async def endless(visit: Visit) -> None:
    await visit.say(head("200 OK"), event(1, "pending"))
    await visit.reader.readexactly(1)


def test_one_line_makes_an_image() -> None:
    with Elsewhere(broker_of(made(0))) as server, Client(server.url(), key=KEY) as client:
        image = client.generate("a red fox")[0]
        assert isinstance(image, Image)
        assert image._repr_png_() == PNG
        assert client.base == server.url().rstrip("/")
        assert KEY not in repr(client)


def test_whatever_can_be_awaited_can_be_called() -> None:
    """And is described alike: notebooks show signature and docstring."""
    blocking = {name for name in vars(Client) if not name.startswith("_")} - {"close"}
    awaited = {name for name in vars(AsyncClient) if not name.startswith("_")} - {"aclose"}
    assert blocking == awaited
    for name in awaited - {"base"}:
        theirs, ours = getattr(AsyncClient, name), getattr(Client, name)
        assert (inspect.signature(ours), ours.__doc__) == (inspect.signature(theirs), theirs.__doc__)
        assert not inspect.iscoroutinefunction(ours)
    options = inspect.signature(AsyncClient).parameters.keys() - inspect.signature(Client).parameters.keys()
    assert options == {"sleep"}


def test_it_works_where_a_loop_is_running() -> None:
    """A notebook runs one, and cells are called from within."""

    async def cell(server: Elsewhere) -> list[Image]:
        with Client(server.url()) as client:
            return client.generate("a red fox")

    with Elsewhere(broker_of(made(0))) as server:
        assert len(asyncio.run(cell(server))) == 1


def test_threads_share_one_client() -> None:
    with (
        Elsewhere(broker_of(made(0))) as server,
        Client(server.url()) as client,
        ThreadPoolExecutor(8) as threads,
    ):
        images = list(threads.map(lambda _: client.generate("a red fox")[0], range(24)))
    assert {image.content for image in images} == {PNG}
    assert len(images) == 24


def test_events_come_one_by_one_and_an_error_comes_where_it_is_awaited() -> None:
    async def script(visit: Visit) -> None:
        if visit.path.startswith(f"/api/task/{ID}/"):
            await visit.say(head("200 OK"), event(1, "pending"), event(2, "completed"))
        else:
            await says_json({"error": "No.", "code": "task_not_found"}, "404 Not Found")(visit)

    with Elsewhere(script) as server, Client(server.url()) as client:
        assert [task.status for task in client.events(ID)] == ["pending", "completed"]
        nothing = client.events("task_0")
        with pytest.raises(Refused, match="No"):
            next(nothing)


def test_who_stops_listening_hangs_up() -> None:
    with Elsewhere(endless) as server, Client(server.url()) as client:
        for task in client.events(ID):
            assert isinstance(task, Task)
            break
        gc.collect()
        server.is_left()


def test_a_stream_keeps_its_client() -> None:
    """`for task in Client().events(…)` names no client that could be kept."""

    async def script(visit: Visit) -> None:
        await visit.say(head("200 OK"), event(1, "pending"), event(2, "completed"))

    with Elsewhere(script) as server:
        statuses = []
        for task in Client(server.url()).events(ID):
            gc.collect()
            statuses.append(task.status)
    assert statuses == ["pending", "completed"]


def test_a_closed_client_says_so_and_ends_what_is_under_way() -> None:
    with Elsewhere(hold) as server, ThreadPoolExecutor(2) as threads:
        client = Client(server.url())
        waiting: list[Future[object]] = [
            threads.submit(client.wait, ID),
            threads.submit(lambda: list(client.events(ID))),
        ]
        server.is_called()
        client.close()
        assert not client._background._thread.is_alive()
        client.close()
        for future in waiting:
            with pytest.raises(RuntimeError, match="closed"):
                future.result(SECONDS)
    with pytest.raises(RuntimeError, match="make a new one"):
        client.get(ID)
    with pytest.raises(RuntimeError, match="make a new one"):
        next(client.events(ID))


def test_a_forgotten_client_closes_itself() -> None:
    with Elsewhere(says_json(told())) as server:
        Client(server.url()).get(ID)


def test_a_client_that_a_cycle_holds_closes_itself_wherever_it_is_found() -> None:
    """The collector may run in the client's own thread, which cannot wait for itself."""

    async def collect() -> None:
        gc.collect()

    with Elsewhere(says_json(told())) as server:
        for _ in range(2):
            client: Any = Client(server.url())
            background = client._background
            cycle = [client]
            cycle.append(cycle)
            del client, cycle
            background.run(collect())
            background._thread.join(SECONDS)
            assert not background._thread.is_alive()


def test_a_wrong_address_starts_nothing() -> None:
    with pytest.raises(ValueError, match="like http"):
        Client("127.0.0.1:8000")


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
def test_a_fork_does_not_hang() -> None:
    """The thread stays behind in the parent; the child is told, instead of waiting for ever."""
    ended = _python(
        """
        import os, sys
        from broker.client import Client
        client = Client(sys.argv[1])
        client.get(sys.argv[2])
        child = os.fork()
        if child == 0:
            try:
                client.get(sys.argv[2])
            except RuntimeError as error:
                sys.exit(7 if "fork" in str(error) else 1)
        _, status = os.waitpid(child, 0)
        print(os.waitstatus_to_exitcode(status), client.get(sys.argv[2]).status)
        """
    )
    assert (ended.stdout, ended.stderr) == ("7 processing\n", "")


@pytest.mark.parametrize(
    "ending",
    ["", "sys.exit(3)", "raise KeyboardInterrupt", "next(client.events(sys.argv[2]))", "open(__file__).close()"],
)
def test_an_interpreter_ends_in_silence_with_a_client_open(ending: str) -> None:
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


def test_an_interrupted_call_ends_and_the_client_goes_on() -> None:
    ended = _python(
        """
        import asyncio, os, signal, sys, threading
        from broker.client import Client

        async def at_work():
            await asyncio.sleep(0.1)
            return len(asyncio.all_tasks()) - 2

        with Client(sys.argv[1]) as client:
            for call in (lambda: client.wait("task_hold"), lambda: list(client.events("task_hold"))):
                threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGINT)).start()
                try:
                    call()
                except KeyboardInterrupt:
                    print("interrupted", client._background.run(at_work()))
            print(client.get(sys.argv[2]).status)
        """
    )
    assert (ended.stdout, ended.stderr) == ("interrupted 0\ninterrupted 0\nprocessing\n", "")


def test_it_loads_nothing_of_the_server() -> None:
    """It is quick to import, and knows a broker over HTTP only."""
    ours, heavy = ("broker", "storage", "uploads", "webhooks"), "starlette uvicorn pydantic structlog PIL typer".split()
    ended = _python("import sys, broker.client; print(*sys.modules)")
    loaded = ended.stdout.split()
    foreign = {name for name in loaded if name.partition(".")[0] in ours and not name.startswith("broker.client")}
    assert foreign == {"broker", "broker.addresses", "broker.errors", "broker.outgoing"}
    assert set(loaded).isdisjoint(heavy)


def test_it_is_typed_for_those_who_use_it(tmp_path: Path) -> None:
    """The blocking methods are made from the others; a checker must see through that."""
    (tmp_path / "user.py").write_text(
        textwrap.dedent(
            """
            from broker.client import Client
            client = Client()
            reveal_type(client.generate("a fox", n=2))
            reveal_type(client.events("task_1"))
            client.generate("a fox", sizes=2)
            client.wait(7)
            """
        )
    )
    ended = subprocess.run(
        [sys.executable, "-m", "mypy", "--strict", "--no-incremental", "user.py"],
        cwd=tmp_path,
        env={**os.environ, "MYPYPATH": str(ROOT)},
        check=False,
        capture_output=True,
        text=True,
    )
    said = ended.stdout
    assert 'list[broker.client.results.Image]"' in said
    assert 'Iterator[broker.client.results.Task]"' in said
    assert 'user.py:6: error: Unexpected keyword argument "sizes"' in said
    assert "user.py:7: error: Argument 1" in said
    assert "Found 2 errors in 1 file" in said
    assert (ROOT / "broker" / "py.typed").exists()


def _python(program: str) -> subprocess.CompletedProcess[str]:
    """A program of its own beside a broker; all that Python has to complain of comes to standard error."""

    async def script(visit: Visit) -> None:
        if visit.head.startswith(b"POST"):
            await ORDERED(visit)
        elif "task_hold" in visit.path:
            await hold(visit)
        elif visit.path.endswith("/events"):
            await endless(visit)
        else:
            await says_json(told())(visit)

    with Elsewhere(script) as server:
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
