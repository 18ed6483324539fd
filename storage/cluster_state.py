"""Values that all processes of one database share."""

from __future__ import annotations

from dataclasses import dataclass

from storage.sql.database import Database


@dataclass(frozen=True)
class ClusterState:
    """Shared values in the database."""

    database: Database

    async def set_if_absent(self, name: str, value: str) -> str:
        """Store the value unless one exists; return the one in effect."""
        await self.database.execute(
            "INSERT INTO cluster_state (name, value) VALUES (:name, :value) ON CONFLICT (name) DO NOTHING",
            name=name,
            value=value,
        )
        row = await self.database.fetch_one("SELECT value FROM cluster_state WHERE name = :name", name=name)
        return str(row["value"]) if row else value

    async def get_value(self, name: str) -> str | None:
        """Return the value in effect, or None."""
        row = await self.database.fetch_one("SELECT value FROM cluster_state WHERE name = :name", name=name)
        return str(row["value"]) if row else None

    async def replace_value(self, name: str, value: str) -> None:
        """Replace an existing value."""
        await self.database.execute(
            "UPDATE cluster_state SET value = :value WHERE name = :name", name=name, value=value
        )

    async def set_value(self, name: str, value: str) -> None:
        """Store the value, replacing any other."""
        await self.database.execute(
            """INSERT INTO cluster_state (name, value) VALUES (:name, :value)
                ON CONFLICT (name) DO UPDATE SET value = :value""",
            name=name,
            value=value,
        )

    async def get(self, name: str) -> str | None:
        row = await self.database.fetch_one("SELECT value FROM cluster_state WHERE name = :name", name=name)
        return str(row["value"]) if row else None
