"""pgbouncer in transaction mode, where it is installed: every transaction may meet another session of Postgres."""

from __future__ import annotations

import asyncio
import os
import shutil
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

from tests.support.servers.ports import answers, free_port
from tests.support.servers.postgres import Postgres

CONFIG = """
[databases]
* = host=127.0.0.1 port={postgres} user=postgres

[pgbouncer]
listen_addr = 127.0.0.1
listen_port = {port}
auth_type = any
pool_mode = transaction
default_pool_size = 4
unix_socket_dir =
logfile = {folder}/log
pidfile = {folder}/pid
"""


def installed() -> bool:
    return shutil.which("pgbouncer") is not None


@asynccontextmanager
async def pooling(postgres: Postgres) -> AsyncIterator[int]:
    """Run pgbouncer with four sessions to `postgres`; yield its port."""
    with tempfile.TemporaryDirectory(prefix="pgbouncer-") as name:
        folder, port = Path(name), free_port()
        os.chmod(name, 0o777)  # pgbouncer runs as another user if the tests run as root
        (folder / "pgbouncer.ini").write_text(CONFIG.format(postgres=postgres.port, port=port, folder=folder))
        user = ["-u", postgres.user] if postgres.user and os.geteuid() == 0 else []
        process = await asyncio.create_subprocess_exec("pgbouncer", "-q", *user, str(folder / "pgbouncer.ini"))
        try:
            await answers(port)
            yield port
        finally:
            with suppress(ProcessLookupError):
                process.terminate()
            await process.wait()
