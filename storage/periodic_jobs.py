"""Periodic jobs that one process runs for all that share the database."""

from __future__ import annotations

from dataclasses import dataclass

from storage.sql.database import Database


@dataclass(frozen=True)
class PeriodicJobs:
    """Due times of the periodic jobs."""

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
