"""What the processes of one database agree on."""

from __future__ import annotations

from dataclasses import dataclass

from storage.sql.database import Database


@dataclass(frozen=True)
class Facts:
    """Facts at rest."""

    database: Database

    async def agree(self, name: str, value: str) -> str:
        """The value that holds: the one somebody brought first, ours if nobody did."""
        await self.database.execute(
            "INSERT INTO cluster_state (name, value) VALUES (:name, :value) ON CONFLICT (name) DO NOTHING",
            name=name,
            value=value,
        )
        row = await self.database.point("SELECT value FROM cluster_state WHERE name = :name", name=name)
        return str(row["value"]) if row else value

    async def known(self, name: str) -> str | None:
        """The value that holds, if anybody brought one."""
        row = await self.database.point("SELECT value FROM cluster_state WHERE name = :name", name=name)
        return str(row["value"]) if row else None

    async def replace(self, name: str, value: str) -> None:
        """From now on another value holds."""
        await self.database.execute(
            "UPDATE cluster_state SET value = :value WHERE name = :name", name=name, value=value
        )

    async def tell(self, name: str, value: str) -> None:
        """Write down what holds now, whatever was there."""
        await self.database.execute(
            """INSERT INTO cluster_state (name, value) VALUES (:name, :value)
                ON CONFLICT (name) DO UPDATE SET value = :value""",
            name=name,
            value=value,
        )

    async def get(self, name: str) -> str | None:
        row = await self.database.point("SELECT value FROM cluster_state WHERE name = :name", name=name)
        return str(row["value"]) if row else None
