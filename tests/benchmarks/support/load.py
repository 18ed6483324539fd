"""Load: wrk where it is installed, else the raw asyncio client; steady rates by the raw client alone."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from tests.benchmarks.results import Measured
from tests.benchmarks.support.machine import wrk_installed
from tests.benchmarks.support.processes import Subject, run_python, start_python

CONNECTIONS: Final = 64
_CLIENT: Final = "tests.benchmarks.support.raw_client"
_SCRIPT: Final = Path(__file__).with_name("load.lua")


@dataclass(frozen=True, kw_only=True)
class Load:
    """Result of one run. p50, p99, max: seconds. cpu: the subject's CPU seconds per request."""

    count: int
    seconds: float
    p50: float
    p99: float
    max: float
    errors: int
    bytes: int
    cpu: float

    @property
    def rate(self) -> float:
        return self.count / self.seconds


def rates(loads: Sequence[Load], name: str = "") -> Measured:
    """Return requests per second of each round, with the CPU of each."""
    return Measured(
        name=name, unit="/s", values=tuple(load.rate for load in loads), cpu=tuple(load.cpu for load in loads)
    )


def p99s(loads: Sequence[Load], name: str = "") -> Measured:
    return Measured(name=name, unit="ms", values=tuple(load.p99 * 1000 for load in loads))


class LoadErrors(Exception):
    """Requests failed, so the figures mean nothing."""


def http_request(method: str, path: str, body: Any = None, headers: Mapping[str, str] | None = None) -> bytes:
    """Return the bytes of a request. body: a document."""
    content = b"" if body is None else json.dumps(body, separators=(",", ":")).encode()
    lines = [f"{method} {path} HTTP/1.1", "Host: 127.0.0.1", *(f"{k}: {v}" for k, v in (headers or {}).items())]
    if body is not None:
        lines += ["Content-Type: application/json", f"Content-Length: {len(content)}"]
    return "\r\n".join([*lines, "", ""]).encode() + content


def write_requests(file: Path, requests: Iterable[bytes]) -> Path:
    """Write requests as both generators read them; return the file."""
    with file.open("wb") as out:
        for request in requests:
            out.write(b"%d\n%s" % (len(request), request))
    return file


async def full_load(
    subject: Subject, requests: Path, seconds: float, *, connections: int = CONNECTIONS, offset: int = 0
) -> Load:
    """Send requests in turn over so many connections, each as soon as the one before is answered."""
    before = subject.cpu_seconds()
    if wrk_installed():
        out = await _run_wrk(subject.port, requests, max(1, round(seconds)), connections, offset)
    else:
        options = ("--connections", connections, "--seconds", seconds, "--offset", offset)
        out = await run_python(_CLIENT, subject.port, requests, *options)
    return _result(out, subject.cpu_seconds() - before)


async def steady_load(
    subject: Subject, requests: Path, seconds: float, rate: float, *, connections: int = CONNECTIONS, offset: int = 0
) -> Load:
    """Send requests at a steady rate, in requests per second."""
    before = subject.cpu_seconds()
    options = ("--connections", connections, "--seconds", seconds, "--rate", rate, "--offset", offset)
    out = await run_python(_CLIENT, subject.port, requests, *options)
    return _result(out, subject.cpu_seconds() - before)


@asynccontextmanager
async def steady_background(
    subject: Subject, requests: Path, rate: float, *, connections: int = 8
) -> AsyncIterator[Callable[[], Awaitable[Load]]]:
    """Send requests at a steady rate while the block runs; what is yielded stops that and returns the load."""
    before = subject.cpu_seconds()
    options = ("--connections", connections, "--seconds", 36_000, "--rate", rate)
    process = await start_python(_CLIENT, subject.port, requests, *options)

    async def stop() -> Load:
        with suppress(ProcessLookupError):
            process.terminate()
        out, _ = await process.communicate()
        return _result(out.decode(), subject.cpu_seconds() - before)

    try:
        yield stop
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


async def counted_load(subject: Subject, requests: Path, count: int, *, connections: int = CONNECTIONS) -> Load:
    """Send so many requests, as fast as they are answered."""
    before = subject.cpu_seconds()
    options = ("--connections", min(connections, count), "--seconds", 600, "--count", count)
    out = await run_python(_CLIENT, subject.port, requests, *options)
    return _result(out, subject.cpu_seconds() - before)


async def _run_wrk(port: int, requests: Path, seconds: int, connections: int, offset: int) -> str:
    options = ("-t1", f"-c{connections}", f"-d{seconds}s", "--timeout", "30s", "-s", str(_SCRIPT))
    command = ("wrk", *options, f"http://127.0.0.1:{port}", "--", str(requests), str(offset))
    process = await asyncio.create_subprocess_exec(
        *command, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
    )
    out, _ = await process.communicate()
    if process.returncode != 0:
        raise RuntimeError(out.decode()[-2000:])
    return out.decode()


def _result(out: str, cpu: float) -> Load:
    line = next((line for line in reversed(out.splitlines()) if line.startswith("{")), None)
    if line is None:
        raise LoadErrors("the load generator ended before it began")
    result = json.loads(line)
    load = Load(**result, cpu=cpu / max(1, result["count"]))
    if load.errors or not load.count:
        raise LoadErrors(f"{load.errors} of {load.count} requests failed")
    return load
