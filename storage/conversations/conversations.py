"""Rows of conversations: owner, title, and how long they are kept."""

from __future__ import annotations

from dataclasses import dataclass

from storage.errors import Stale
from storage.sql.database import Database, Statement
from storage.sql.rows import fetch_as, fetch_one_as
from storage.sql.scope import Scope


@dataclass(frozen=True, kw_only=True)
class StoredConversation:
    """One conversation."""

    id: str
    owner: str
    title: str
    """Empty until it has one."""
    turns: int
    """Number of the newest turn, from 1; 0 without one."""
    pinned_at: float | None = None
    """Set for one that retention leaves alone."""
    created_at: float
    updated_at: float
    """When the newest turn was added."""
    deleted_at: float | None = None
    """Set while the tasks of a deleted one are being deleted; it is not shown any more."""


@dataclass(frozen=True)
class Conversations:
    """Conversations in the database. A deleted one is not found, but by `list_deleted`."""

    database: Database

    # -- reading

    async def get(self, conversation_id: str, scope: Scope) -> StoredConversation | None:
        return await fetch_one_as(
            self.database,
            StoredConversation,
            f"""SELECT * FROM conversations WHERE id = :id AND deleted_at IS NULL
                AND {scope.condition("owner")}""",
            id=conversation_id,
            **scope.params,
        )

    async def list_newest(
        self, scope: Scope, *, before: tuple[float, str] | None, limit: int
    ) -> list[StoredConversation]:
        """Return one page, the last used first; before: (updated_at, id) of the last one of the page before."""
        at, last = before or (9e18, "")
        return await fetch_as(
            self.database,
            StoredConversation,
            f"""SELECT * FROM conversations WHERE {scope.condition("owner")} AND deleted_at IS NULL
                AND (updated_at, id) < (:at, :last) ORDER BY updated_at DESC, id DESC LIMIT :limit""",
            at=at,
            last=last,
            limit=limit,
            **scope.params,
        )

    async def list_deleted(self, limit: int) -> list[StoredConversation]:
        """Return conversations whose tasks are still to be deleted, the oldest deletions first."""
        return await fetch_as(
            self.database,
            StoredConversation,
            "SELECT * FROM conversations WHERE deleted_at IS NOT NULL ORDER BY deleted_at LIMIT :limit",
            limit=limit,
        )

    # -- changing

    async def insert_if_fewer(self, conversation: StoredConversation, most: int) -> bool:
        """Insert the row unless its owner has so many already; return whether it was inserted."""
        changed = await self.database.execute(
            """INSERT INTO conversations (id, owner, title, turns, created_at, updated_at)
                SELECT :id, :owner, :title, 0, :now, :now
                WHERE (SELECT count(*) FROM conversations WHERE owner = :owner AND deleted_at IS NULL) < :most""",
            id=conversation.id,
            owner=conversation.owner,
            title=conversation.title,
            now=conversation.created_at,
            most=most,
        )
        return changed == 1

    def count_turn(self, conversation_id: str, *, title: str, most: int, now: float) -> Statement:
        """Count one more turn, and lock the conversation; `Stale` if it is gone or full. title: unless it has one."""
        return Statement(
            sql="""UPDATE conversations SET turns = turns + 1, updated_at = :now,
                title = CASE WHEN title = '' THEN :title ELSE title END
                WHERE id = :id AND deleted_at IS NULL AND turns < :most""",
            params={"id": conversation_id, "title": title, "most": most, "now": now},
            must_change=True,
        )

    async def set_title(self, conversation_id: str, title: str) -> None:
        sql = "UPDATE conversations SET title = :title WHERE id = :id"
        await self.database.execute(sql, id=conversation_id, title=title)

    def pin(self, conversation: StoredConversation, now: float, *, limit: int | None) -> Statement:
        """Pin it; `Stale` if it is gone, or its owner has `limit` other pinned tasks and conversations already.

        In one transaction it follows `lock_owner_account`, like `Tasks.check_pins`.
        """
        sql = "UPDATE conversations SET pinned_at = :now WHERE id = :id AND deleted_at IS NULL"
        params = {"id": conversation.id, "now": now}
        if limit is not None:
            sql += """ AND :limit > (
                (SELECT count(*) FROM tasks WHERE caller = :owner AND pinned_at IS NOT NULL)
                + (SELECT count(*) FROM conversations others
                    WHERE others.owner = :owner AND others.pinned_at IS NOT NULL AND others.id <> :id))"""
            params |= {"owner": conversation.owner, "limit": limit}
        return Statement(sql=sql, params=params, must_change=True)

    async def unpin(self, conversation_id: str) -> None:
        await self.database.execute("UPDATE conversations SET pinned_at = NULL WHERE id = :id", id=conversation_id)

    async def unpin_ownerless(self) -> int:
        """Unpin those of API keys that are revoked and belonged to no user; return how many."""
        return await self.database.execute(
            """UPDATE conversations SET pinned_at = NULL WHERE pinned_at IS NOT NULL AND owner LIKE 'key%'
                AND NOT EXISTS (SELECT 1 FROM api_keys WHERE id = conversations.owner)"""
        )

    # -- deleting

    async def mark_deleted(self, conversation_id: str, now: float) -> bool:
        """Hide it, and let it have no further turn; return False if that was done before."""
        sql = "UPDATE conversations SET deleted_at = :now, pinned_at = NULL WHERE id = :id AND deleted_at IS NULL"
        return await self.database.execute(sql, id=conversation_id, now=now) == 1

    async def mark_deleted_of_owner(self, owner: str, now: float) -> list[str]:
        """Do the same with all of an owner; return the ids of all that are marked, also of those marked before."""
        sql = "UPDATE conversations SET deleted_at = :now, pinned_at = NULL WHERE owner = :owner AND deleted_at IS NULL"
        await self.database.execute(sql, owner=owner, now=now)
        rows = await self.database.fetch(
            "SELECT id FROM conversations WHERE owner = :owner AND deleted_at IS NOT NULL", owner=owner
        )
        return [row["id"] for row in rows]

    async def delete(self, conversation_id: str) -> None:
        """Delete the rows of one that is marked, after its tasks."""
        await self._delete_if("deleted_at IS NOT NULL", conversation_id)

    async def delete_idle(self, before: float, limit: int) -> int:
        """Delete conversations without a turn, and without an end of a task, since a moment; return how many were seen.

        Pinned ones stay. Their tasks go with the next step of retention, because no conversation keeps them any more.
        """
        idle = "updated_at < :before AND pinned_at IS NULL AND deleted_at IS NULL"
        rows = await self.database.fetch(
            f"""SELECT id FROM conversations WHERE {idle} AND NOT EXISTS (
                    SELECT 1 FROM turns JOIN tasks ON tasks.batch = turns.batch
                    WHERE turns.conversation_id = conversations.id
                    AND (tasks.ended_at IS NULL OR tasks.ended_at > :before))
                ORDER BY updated_at LIMIT :limit""",
            before=before,
            limit=limit,
        )
        for row in rows:
            await self._delete_if(idle, row["id"], before=before)
        return len(rows)

    async def _delete_if(self, condition: str, conversation_id: str, **params: float) -> None:
        """Delete the rows of a conversation if it still is as the condition says."""
        params_of_turns = {"id": conversation_id}
        try:
            await self.database.transact(
                Statement(
                    sql=f"DELETE FROM conversations WHERE id = :id AND {condition}",
                    params={"id": conversation_id, **params},
                    must_change=True,
                ),
                Statement(sql="DELETE FROM turns WHERE conversation_id = :id", params=params_of_turns),
            )
        except Stale:
            return  # it has a new turn, or another process was quicker
