"""Checks that the tests of a contract leave no connection, file or task open."""

from __future__ import annotations

import asyncio
import gc
import os
from collections.abc import AsyncIterator
from typing import Any

import asyncpg
import pytest

from storage.blobs.s3 import S3Blobs
from storage.blobs.store import Bucket
from tests.support.servers.postgres import Postgres
from tests.support.servers.s3 import S3Server

TIMEOUT_SECONDS = 3.0


@pytest.fixture(scope="session")
def started(postgres: Postgres, s3_server: S3Server, tmp_path_factory: pytest.TempPathFactory) -> Postgres:
    """Start what stays open for the session: the servers, and the threads of the S3 client.

    In a loop of its own: an asynchronous fixture of the session would keep the loop of the tests for other modules.
    """
    folder = tmp_path_factory.mktemp("scratch")
    bucket = Bucket(name=s3_server.new_bucket(), endpoint=s3_server.url, access_key="test", secret_key="test")

    async def use_store() -> None:
        store = S3Blobs(bucket, scratch=folder)
        await store.check()
        await store.aclose()

    asyncio.run(use_store())
    return postgres


@pytest.fixture(scope="module")
async def nothing_is_left_open(started: Postgres) -> AsyncIterator[None]:
    """Compare connections to Postgres, open files and sockets, and tasks of the loop before and after a module."""
    tasks, files = _tasks(), _files()
    yield
    left: dict[str, object] = {}
    for _ in range(int(TIMEOUT_SECONDS / 0.05)):  # a socket is closed a moment after the call
        left = {
            "tasks": _tasks() - tasks,
            "files": max(0, _files() - files),
            "sessions": await _sessions(started),
        }
        if not any(left.values()):
            return
        await asyncio.sleep(0.05)
    pytest.fail(f"left open: {left}")


def _tasks() -> set[asyncio.Task[Any]]:
    """All but the runner's, in which tests and fixtures run themselves."""
    return {task for task in asyncio.all_tasks() if "TestRunner" not in repr(task.get_coro())}


def _files() -> int:
    gc.collect()
    return len(os.listdir("/proc/self/fd"))


async def _sessions(postgres: Postgres) -> int:
    connection = await asyncpg.connect(postgres.url())
    try:
        count: int = await connection.fetchval(
            "SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'client backend' AND pid <> pg_backend_pid()"
        )
    finally:
        await connection.close()
    return count
