"""Processes under measurement: started, watched through /proc, and ended."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).parents[3]
START_SECONDS: Final = 30.0
_TICKS: Final = os.sysconf("SC_CLK_TCK")
_RETRY_SECONDS: Final = 0.003


@dataclass(frozen=True, kw_only=True)
class Subject:
    """A running process that serves on a port, with its children. ready_seconds: from its start to the first answer."""

    process: asyncio.subprocess.Process
    port: int
    ready_seconds: float

    @property
    def pids(self) -> list[int]:
        """Return the process and all that descend from it."""
        found, pids = [self.process.pid], [self.process.pid]
        while found:
            found = [child for pid in found for child in _children(pid)]
            pids += found
        return pids

    def cpu_seconds(self) -> float:
        """Return user and system time of all threads and children, those that were waited for included."""
        return sum(_cpu_ticks(pid) for pid in self.pids) / _TICKS

    def rss_mib(self) -> float:
        return sum(_status(pid, "VmRSS") for pid in self.pids) / 1024

    def peak_rss_mib(self) -> float:
        """Return the largest resident size since `reset_peak`; of several processes, the sum of the peaks."""
        return sum(_status(pid, "VmHWM") for pid in self.pids) / 1024

    def reset_peak(self) -> None:
        for pid in self.pids:
            Path(f"/proc/{pid}/clear_refs").write_text("5", "ascii")

    def wake_ups(self) -> int:
        """Return how often a thread has gone to sleep, which is as often as it was woken."""
        threads = [thread for pid in self.pids for thread in Path(f"/proc/{pid}/task").iterdir()]
        return sum(_thread_sleeps(thread) for thread in threads)

    async def stop(self) -> None:
        """Send SIGTERM and wait for the end; SIGKILL after ten seconds."""
        with suppress(ProcessLookupError):
            self.process.send_signal(signal.SIGTERM)
        with suppress(TimeoutError):
            async with asyncio.timeout(10):
                await self.process.wait()
                return
        with suppress(ProcessLookupError):
            self.process.kill()
        await self.process.wait()


def environment(**more: str) -> dict[str, str]:
    """Return the environment of a child: this program's modules, nothing of the shell's settings."""
    return {"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT), "HOME": os.environ.get("HOME", "/"), **more}


@asynccontextmanager
async def serving(
    command: Sequence[str],
    port: int,
    *,
    folder: Path,
    env: Mapping[str, str],
    probe: str = "/",
    seconds: float = START_SECONDS,
) -> AsyncIterator[Subject]:
    """Run a command until the block ends; enter when it answers `GET probe` with 200, within so many seconds.

    Its output is in log.txt.
    """
    began = time.perf_counter()
    with (folder / "log.txt").open("ab") as log:
        process = await asyncio.create_subprocess_exec(*command, cwd=folder, env=dict(env), stdout=log, stderr=log)
    subject = None
    try:
        await _answers(process, port, probe, folder, seconds)
        subject = Subject(process=process, port=port, ready_seconds=time.perf_counter() - began)
        yield subject
    finally:
        await (subject or Subject(process=process, port=port, ready_seconds=0.0)).stop()


async def run_python(module: str, *arguments: object, env: Mapping[str, str] | None = None) -> str:
    """Run `python -m module` to its end and return what it printed."""
    process = await start_python(module, *arguments, env=env)
    out, trouble = await process.communicate()
    if process.returncode != 0:
        raise RuntimeError(f"{module}: {trouble.decode()[-2000:]}")
    return out.decode()


async def start_python(
    module: str, *arguments: object, env: Mapping[str, str] | None = None
) -> asyncio.subprocess.Process:
    command = (sys.executable, "-m", module, *map(str, arguments))
    return await asyncio.create_subprocess_exec(
        *command, env=dict(env or environment()), stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )


async def _answers(process: asyncio.subprocess.Process, port: int, probe: str, folder: Path, seconds: float) -> None:
    request = f"GET {probe} HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n".encode()
    ends_at = time.monotonic() + seconds
    async with asyncio.timeout(seconds + 1):
        while True:
            if process.returncode is not None or time.monotonic() > ends_at:
                raise RuntimeError((folder / "log.txt").read_text("utf-8", "replace")[-2000:])
            with suppress(OSError, asyncio.IncompleteReadError):
                reader, writer = await asyncio.open_connection("127.0.0.1", port)
                try:
                    writer.write(request)
                    if b" 200 " in await reader.readuntil(b"\r\n"):
                        return
                finally:
                    writer.close()
            await asyncio.sleep(_RETRY_SECONDS)


def _children(pid: int) -> list[int]:
    found: list[int] = []
    with suppress(OSError):
        for thread in Path(f"/proc/{pid}/task").iterdir():
            with suppress(OSError):
                found += map(int, (thread / "children").read_text("ascii").split())
    return found


def _cpu_ticks(pid: int) -> int:
    try:
        fields = Path(f"/proc/{pid}/stat").read_text("utf-8").rpartition(")")[2].split()
    except OSError:
        return 0
    return sum(map(int, fields[11:15]))


def _status(pid: int, name: str) -> int:
    try:
        lines = Path(f"/proc/{pid}/status").read_text("utf-8").splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) for line in lines if line.startswith(f"{name}:")), 0)


def _thread_sleeps(thread: Path) -> int:
    try:
        lines = (thread / "status").read_text("utf-8").splitlines()
    except OSError:
        return 0
    return next(int(line.split()[1]) for line in lines if line.startswith("voluntary_ctxt_switches:"))
