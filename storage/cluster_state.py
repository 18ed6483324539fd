"""State that all processes of one database share: values, and the due times of periodic jobs."""

from __future__ import annotations

import base64
import secrets
from dataclasses import dataclass
from typing import Final

from storage.sql.database import Database

PROBE_BYTES: Final = 6144
"""Random bytes of a probe, 8 KiB as text: Postgres stores them outside of the row, in new pages."""


@dataclass(frozen=True)
class ClusterState:
    """Shared values."""

    database: Database

    async def get_value(self, name: str) -> str | None:
        """Return the value in effect, or None."""
        row = await self.database.fetch_one("SELECT value FROM cluster_state WHERE name = :name", name=name)
        return str(row["value"]) if row else None

    async def set_if_absent(self, name: str, value: str) -> str:
        """Store the value unless one exists; return the one in effect."""
        await self._insert(name, value, "DO NOTHING")
        return await self.get_value(name) or value

    async def set_value(self, name: str, value: str) -> None:
        """Store the value, replacing any other."""
        await self._insert(name, value, "DO UPDATE SET value = :value")

    async def probe_write(self) -> None:
        """Write about as much as an order needs; raise `StorageError` if the database stores nothing now.

        The value is random, so that it takes space on the disk each time: a commit without a change succeeds on a full
        disk as well. Without `_`, which secrets begin with, no search for leaked secrets takes it for one.
        """
        await self.set_value("write_probe", base64.b64encode(secrets.token_bytes(PROBE_BYTES)).decode())

    async def _insert(self, name: str, value: str, conflict: str) -> None:
        await self.database.execute(
            f"INSERT INTO cluster_state (name, value) VALUES (:name, :value) ON CONFLICT (name) {conflict}",
            name=name,
            value=value,
        )


@dataclass(frozen=True)
class PeriodicJobs:
    """Jobs that one process runs for all that share the database."""

    database: Database

    async def try_acquire(self, name: str, *, now: float, every: float) -> bool:
        """Return True to one process if the job is due, `every` seconds after its last run.

        A due time further ahead was written before the clock was set back, and counts as due.
        """
        taken = await self.database.execute(
            """INSERT INTO periodic_jobs (name, due_at) VALUES (:name, :next)
                ON CONFLICT (name) DO UPDATE SET due_at = :next
                WHERE periodic_jobs.due_at <= :now OR periodic_jobs.due_at > :next""",
            name=name,
            now=now,
            next=now + every,
        )
        return taken == 1
