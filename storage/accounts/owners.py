"""Owners: who owns a task, and the name by which admins know an owner."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from storage.ids import DELETED_OWNER, USER_ID
from storage.sql.database import Database
from storage.sql.rows import in_clause


@dataclass(frozen=True)
class Owners:
    """Owners in the database; each method is for some hundred ids."""

    database: Database

    async def of_tasks(self, task_ids: Collection[str]) -> dict[str, str]:
        """Return the owner of each task that exists."""
        if not task_ids:
            return {}
        listed, params = in_clause(sorted(task_ids))
        rows = await self.database.fetch(f"SELECT id, caller FROM tasks WHERE id IN ({listed})", **params)
        return {row["id"]: row["caller"] for row in rows}

    async def have_content(self) -> bool:
        """Return whether a user or an API key exists, or was deleted a short time ago."""
        sql = """SELECT 1 AS found FROM users UNION ALL SELECT 1 FROM api_keys UNION ALL SELECT 1 FROM owner_deletions
            LIMIT 1"""
        return await self.database.fetch_one(sql) is not None

    async def read_names(self, owners: Collection[str]) -> dict[str, str]:
        """Return the name of each owner: of the user, of the API key without a user, or the owner itself.

        Users whose accounts are deleted have one name together. A name is what a person chose, so characters that
        control a terminal or the direction of text are replaced.
        """
        if not owners:
            return {}
        listed, params = in_clause(sorted(owners))
        rows = await self.database.fetch(
            f"""SELECT id, name FROM users WHERE id IN ({listed})
                UNION ALL SELECT id, name FROM api_keys WHERE id IN ({listed}) AND owner = id""",
            **params,
        )
        unnamed = {owner: DELETED_OWNER if USER_ID.fullmatch(owner) else owner for owner in owners}
        return unnamed | {row["id"]: _printable(row["name"]) for row in rows}


def _printable(name: str) -> str:
    return "".join(character if character.isprintable() else "\N{REPLACEMENT CHARACTER}" for character in name)
