"""Child processes: their messages, their environment, and every way in which they end."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

from storage.children import parent
from storage.children.child import ParentMessages
from storage.children.messages import MAX_MESSAGE_BYTES, Unframer, frame
from storage.children.parent import Child

pytestmark = pytest.mark.anyio


class Echo:
    """A child of `echoing_child`, its messages, and how often it was lost."""

    def __init__(self, module: str = "tests.support.echoing_child", **limits: int) -> None:
        self.messages: asyncio.Queue[bytes] = asyncio.Queue()
        self.losses = 0
        self.child = Child(module, on_message=self.messages.put_nowait, on_loss=self._count, **limits)

    def _count(self) -> None:
        self.losses += 1

    async def next(self) -> bytes:
        async with asyncio.timeout(20):
            return await self.messages.get()

    async def __aenter__(self) -> Echo:
        await self.child.start(b"first")
        assert await self.next() == b"again: first"
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.child.stop()


async def eventually(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.005)


def kill_and_wait(pid: int) -> None:
    """Kill a child, and wait until it has ended, without reaping it."""
    os.kill(pid, signal.SIGKILL)
    os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)


def is_running(pid: int) -> bool:
    """Return whether there is a process with this id, a zombie included."""
    with suppress(ProcessLookupError):
        os.kill(pid, 0)
        return True
    return False


async def test_messages_arrive_whole_and_in_order() -> None:
    async with Echo() as echo:
        sent = [b"", b"x" * 3, b"y" * 3_000_000, b"z"]
        for message in sent:
            echo.child.send(message[:1], message[1:])
        assert [await echo.next() for _ in sent] == [b"again: " + message for message in sent]


async def test_child_has_no_secret_in_its_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET_KEY", "of the house")
    monkeypatch.setenv("NANO_BANANA_API_KEY", "of the house")
    monkeypatch.setenv("LC_TEST", "passed")
    async with Echo() as echo:
        echo.child.send(b"environment")
        environment = (await echo.next()).decode()
    assert "of the house" not in environment
    assert "LC_TEST=passed" in environment


async def test_child_does_not_import_from_the_working_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A user may have anything in the folder in which the broker is started, like a folder `storage`."""
    (tmp_path / "storage").mkdir()
    (tmp_path / "storage" / "__init__.py").write_text("raise SystemExit(1)")
    monkeypatch.chdir(tmp_path)
    async with Echo() as echo:
        echo.child.send(b"path")
        assert str(tmp_path) not in (await echo.next()).decode().splitlines()


async def test_stopped_child_does_what_it_was_sent_and_is_gone() -> None:
    async with Echo() as echo:
        pid = echo.child.pid
        echo.child.send(b"sleep 0.2")
        echo.child.send(b"last")
    assert [await echo.next(), await echo.next()] == [b"again: last", b"the end"]
    assert echo.losses == 0
    assert echo.child.pid is None
    assert pid is not None
    assert not is_running(pid)


async def test_child_that_does_not_end_is_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parent, "STOP_SECONDS", 0.2)
    async with Echo() as echo:
        pid = echo.child.pid
        echo.child.send(b"sleep 60")
    assert pid is not None
    assert not is_running(pid)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSEGV])
async def test_killed_child_is_reported_once_and_can_be_started_again(number: signal.Signals) -> None:
    async with Echo() as echo:
        pid = echo.child.pid
        assert pid is not None
        os.kill(pid, number)
        await eventually(lambda: echo.losses == 1)
        await eventually(lambda: not is_running(pid))  # no zombie either
        echo.child.send(b"to nobody")
        await echo.child.start(b"second")
        assert await echo.next() == b"again: second"
    assert echo.losses == 1


async def test_child_that_ends_unasked_is_reported() -> None:
    async with Echo() as echo:
        echo.child.send(b"end")
        await eventually(lambda: echo.losses == 1)


async def test_module_that_cannot_be_loaded_is_reported(capfd: pytest.CaptureFixture[str]) -> None:
    echo = Echo("tests.support.no_such_child")
    await echo.child.start()
    await eventually(lambda: echo.losses == 1)
    assert "no_such_child" in capfd.readouterr().err


async def test_signals_for_all_processes_of_a_terminal_do_not_end_a_child() -> None:
    async with Echo() as echo:
        assert echo.child.pid is not None
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            os.kill(echo.child.pid, number)
        echo.child.send(b"alive")
        assert await echo.next() == b"again: alive"


async def test_child_waits_for_a_message_as_long_as_it_wants() -> None:
    async with Echo() as echo:
        echo.child.send(b"wait 0.05")
        assert await echo.next() == b"nothing came"
        echo.child.send(b"wait 30")
        echo.child.send(b"this")
        assert await echo.next() == b"this"


async def test_message_after_a_wait_is_sent_whole_however_late_it_is_read() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        child = ParentMessages(theirs)
        with pytest.raises(TimeoutError):
            child.receive(0.01)
        sending = asyncio.create_task(asyncio.to_thread(child.send, b"x" * 3_000_000))
        await asyncio.sleep(0.1)
        unframer, messages = Unframer(), list[bytes]()
        while not messages:
            messages += unframer.messages(await asyncio.wait_for(asyncio.to_thread(ours.recv, 2**20), 5))
        await sending
    assert [len(message) for message in messages] == [3_000_000]


async def test_nothing_is_sent_to_a_child_whose_connection_is_closing() -> None:
    """Transports of Python 3.12 and 3.13 raise for that."""
    async with Echo() as echo:
        pid = echo.child.pid
        assert pid is not None
        kill_and_wait(pid)
        while not echo.losses:
            echo.child.send(b"x")
            await asyncio.sleep(0)


async def test_child_that_was_spawned_and_not_started_ends() -> None:
    echo = Echo()
    echo.child.spawn()
    pid = echo.child.pid
    await echo.child.stop()
    assert pid is not None
    assert not is_running(pid)


def test_unframer_finds_messages_in_pieces_of_any_size() -> None:
    sent = [b"", b"a", b"b" * 1000, b"c"]
    stream = b"".join(b"".join(frame((message,))) for message in sent)
    for size in (1, 3, 7, 500, len(stream)):
        unframer = Unframer()
        pieces = [stream[start : start + size] for start in range(0, len(stream), size)]
        assert [message for piece in pieces for message in unframer.messages(piece)] == sent


def test_message_of_two_gib_is_refused() -> None:
    class Long(bytes):
        def __len__(self) -> int:
            return MAX_MESSAGE_BYTES

    with pytest.raises(ValueError, match="two GiB"):
        frame((Long(),))


async def test_killed_child_reports_nothing_more_and_another_one_can_start() -> None:
    async with Echo() as echo:
        pid = echo.child.pid
        echo.child.send(b"sleep 60")
        echo.child.kill()
        await echo.child.start(b"first")
        assert await echo.next() == b"again: first"
        await eventually(lambda: pid is not None and not is_running(pid))
        assert echo.losses == 0


async def test_child_that_announces_too_large_a_message_is_lost() -> None:
    async with Echo(max_message_bytes=1000) as echo:
        echo.child.send(b"x" * 900)
        assert len(await echo.next()) == 907
        echo.child.send(b"x" * 1000)
        await eventually(lambda: echo.losses == 1)
        assert echo.child.pid is None
