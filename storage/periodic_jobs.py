"""Work that is done now and then by one process for all that share the database."""

from __future__ import annotations

from dataclasses import dataclass

from storage.sql.database import Database


@dataclass(frozen=True)
class Chores:
    """Chores at rest."""

    database: Database

    async def take(self, name: str, *, now: float, every: float) -> bool:
        """Whether it is due, `every` seconds after it was taken last, and ours: of several who ask one gets it.

        One that would be due later than that was taken before the clock was set back, and is due, too.
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
