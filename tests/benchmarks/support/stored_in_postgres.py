"""Questions about the tasks in a Postgres."""

from __future__ import annotations

import asyncio

import asyncpg


def ended_in_postgres(url: str) -> tuple[int, float]:
    """Return how many tasks have not ended, and the moment of the last end."""
    return asyncio.run(_ended(url))


async def _ended(url: str) -> tuple[int, float]:
    connection = await asyncpg.connect(url)
    try:
        left = await connection.fetchval("SELECT count(*) FROM tasks WHERE ended_at IS NULL")
        last = None if left else await connection.fetchval("SELECT max(ended_at) FROM tasks")
    finally:
        await connection.close()
    return left, last or 0.0
