"""Several processes on one port, without a database: their link to the supervisor, and what becomes of their errors."""

from __future__ import annotations

import asyncio
import signal
import socket
import subprocess
import sys
from typing import Final

import pytest
from prometheus_client import CollectorRegistry

from broker.server.processes.link import SupervisorLink

_FAILING: Final = """
from broker.server.processes.supervisor import Supervisor

def run_process(number, link):
    raise LookupError("a defect")

raise SystemExit(Supervisor(1, run_process, print).run())
"""

_REFUSED_ONCE: Final = """
import errno, os, signal
from broker.server.processes.link import READY, encode
from broker.server.processes.supervisor import Supervisor

supervisor, fork, forks = os.getpid(), os.fork, 0

def fork_at_third():
    global forks
    forks += 1
    if forks == 2:
        raise OSError(errno.EAGAIN, os.strerror(errno.EAGAIN))
    return fork()

def run_process(number, link):
    link.send(encode(READY, []))
    if forks == 3:
        os.kill(supervisor, signal.SIGTERM)
        signal.pause()
    return 0

os.fork = fork_at_third
raise SystemExit(Supervisor(1, run_process, lambda summary: None).run())
"""


@pytest.mark.anyio
@pytest.mark.parametrize("is_read", [True, False])
async def test_process_stops_when_the_link_ends(is_read: bool) -> None:
    """A supervisor that is killed before it has read what its processes sent resets the link instead of ending it."""
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    loop, stopped = asyncio.get_running_loop(), asyncio.Event()
    loop.add_signal_handler(signal.SIGTERM, stopped.set)
    try:
        link = SupervisorLink(theirs)
        async with link.run(CollectorRegistry()):
            link.report_ready([])
            if is_read:
                assert await loop.sock_recv(ours, 1024)
            ours.close()
            async with asyncio.timeout(5):
                await stopped.wait()
    finally:
        loop.remove_signal_handler(signal.SIGTERM)


def test_unforeseen_error_of_a_process_is_printed() -> None:
    ended = subprocess.run([sys.executable, "-c", _FAILING], capture_output=True, text=True, timeout=20, check=False)
    assert ended.returncode == 1
    assert "LookupError: a defect" in ended.stderr


def test_process_that_the_system_refuses_is_tried_again() -> None:
    ended = subprocess.run(
        [sys.executable, "-c", _REFUSED_ONCE], capture_output=True, text=True, timeout=20, check=False
    )
    assert ended.returncode == 0, ended.stderr
    assert "server_process_not_started" in ended.stderr
