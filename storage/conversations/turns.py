"""Rows of turns, and what is read of their tasks.

    turn 1 ──► turn 2 ──► turn 3        each turn goes on from its parent, by default the newest turn
                  └─────► turn 4        a branch

A turn waits (`waits`) until the tasks of its parent have ended, which does not wait any more: only then is it known
which image it goes on from.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from storage.sql.database import Database, Statement
from storage.sql.rows import fetch_as, fetch_one_as, in_clause
from storage.states import TaskState, public_status

_IS_FREE = """NOT EXISTS (SELECT 1 FROM turns parents WHERE parents.id = turns.parent_id AND (parents.waits = 1
    OR EXISTS (SELECT 1 FROM tasks WHERE tasks.batch = parents.batch AND tasks.ended_at IS NULL)))"""
"""The tasks of its parent have ended, and before them those of all turns behind it; or it has no parent.

A parent whose tasks were canceled while they were held waits until it would have been released."""


@dataclass(frozen=True, kw_only=True)
class StoredTurn:
    """One turn of a conversation."""

    id: str
    conversation_id: str
    number: int
    """In the order in which they were added, from 1."""
    parent_id: str | None
    parent_task: str | None
    """The task of the parent whose image it goes on from, if its user chose one."""
    batch: str
    inputs: int
    """Images of the user, the last of the references of its tasks."""
    waits: bool
    created_at: float


@dataclass(frozen=True, kw_only=True)
class NewTurn:
    """A turn to be added. parent_id: None for the newest turn; also the other names are those of `StoredTurn`."""

    id: str
    conversation_id: str
    parent_id: str | None
    parent_task: str | None
    batch: str
    inputs: int
    created_at: float


@dataclass(frozen=True, kw_only=True)
class TurnTask:
    """The part of a task that a conversation shows and continues; the names are those of `Task`."""

    id: str
    batch: str
    state: TaskState
    attempt: int
    prompt: str
    references: tuple[Mapping[str, Any], ...]
    outputs: tuple[str, ...]
    texts: tuple[str, ...]
    error_code: str | None
    billed: str
    created_at: float
    ended_at: float | None

    @property
    def status(self) -> str:
        return public_status(self.state, attempt=self.attempt, ended_at=self.ended_at)


@dataclass(frozen=True, kw_only=True)
class ModelTurn:
    """The words of the model of a task, as its provider must get it back."""

    id: str
    """Of the task."""
    provider: str
    turn: str


@dataclass(frozen=True)
class Turns:
    """Turns in the database."""

    database: Database

    # -- reading

    async def get(self, turn_id: str) -> StoredTurn | None:
        return await fetch_one_as(self.database, StoredTurn, "SELECT * FROM turns WHERE id = :id", id=turn_id)

    async def get_of_task(self, task_id: str) -> StoredTurn | None:
        """Return the turn that a task belongs to."""
        sql = "SELECT turns.* FROM tasks JOIN turns ON turns.batch = tasks.batch WHERE tasks.id = :id"
        return await fetch_one_as(self.database, StoredTurn, sql, id=task_id)

    async def get_newest(self, conversation_id: str) -> StoredTurn | None:
        found = await self.list_newest(conversation_id, before=None, limit=1)
        return found[0] if found else None

    async def list_newest(self, conversation_id: str, *, before: int | None, limit: int) -> list[StoredTurn]:
        """Return one page, the newest first; before: number of the last turn of the page before."""
        return await fetch_as(
            self.database,
            StoredTurn,
            """SELECT * FROM turns WHERE conversation_id = :conversation AND number < :before
                ORDER BY number DESC LIMIT :limit""",
            conversation=conversation_id,
            before=2**53 if before is None else before,
            limit=limit,
        )

    async def list_line(self, turn_id: str | None, limit: int) -> list[StoredTurn]:
        """Return a turn, its parent, the parent of that, and so on; at most `limit`."""
        if turn_id is None:
            return []
        return await fetch_as(
            self.database,
            StoredTurn,
            """WITH RECURSIVE line(id, depth) AS (
                    SELECT id, 1 FROM turns WHERE id = :id
                    UNION ALL SELECT turns.parent_id, line.depth + 1 FROM line JOIN turns ON turns.id = line.id
                    WHERE turns.parent_id IS NOT NULL AND line.depth < :limit)
                SELECT turns.* FROM line JOIN turns ON turns.id = line.id ORDER BY line.depth""",
            id=turn_id,
            limit=limit,
        )

    async def list_tasks(self, batches: Sequence[str]) -> dict[str, list[TurnTask]]:
        """Return the tasks of some hundred turns by batch, in order; none for those whose rows are gone."""
        if not batches:
            return {}
        listed, params = in_clause(batches)
        found: dict[str, list[TurnTask]] = {batch: [] for batch in batches}
        sql = f"""SELECT id, batch, state, attempt, prompt, "references", outputs, texts, error_code, billed,
            created_at, ended_at FROM tasks WHERE batch IN ({listed}) ORDER BY created_at, id"""
        for task in await fetch_as(self.database, TurnTask, sql, **params):
            found[task.batch].append(task)
        return found

    async def get_model_turns(self, task_ids: Sequence[str]) -> dict[str, ModelTurn]:
        """Return the turns of those of these tasks that have one; for some hundred tasks."""
        listed, params = in_clause(task_ids)
        sql = f"SELECT id, provider, turn FROM tasks WHERE id IN ({listed}) AND turn IS NOT NULL"
        return {one.id: one for one in await fetch_as(self.database, ModelTurn, sql, **params)}

    async def list_batches(self, conversation_id: str) -> list[str]:
        """Return the batches of all turns, the newest first."""
        sql = "SELECT batch FROM turns WHERE conversation_id = :id ORDER BY number DESC"
        return [row["batch"] for row in await self.database.fetch(sql, id=conversation_id)]

    # -- waiting

    async def has_waiting(self) -> bool:
        return await self.database.fetch_one("SELECT 1 AS found FROM turns WHERE waits = 1 LIMIT 1") is not None

    async def list_free(self, limit: int) -> list[StoredTurn]:
        """Return turns that wait, and need not any longer; the oldest first."""
        sql = f"SELECT * FROM turns WHERE waits = 1 AND {_IS_FREE} ORDER BY created_at LIMIT :limit"
        return await fetch_as(self.database, StoredTurn, sql, limit=limit)

    async def get_free(self, turn_id: str) -> StoredTurn | None:
        """Return the turn if it waits, and need not any longer."""
        sql = f"SELECT * FROM turns WHERE id = :id AND waits = 1 AND {_IS_FREE}"
        return await fetch_one_as(self.database, StoredTurn, sql, id=turn_id)

    async def end_wait(self, turn_id: str) -> None:
        await self.database.execute("UPDATE turns SET waits = 0 WHERE id = :id", id=turn_id)

    # -- changing

    def insert_turn(self, turn: NewTurn) -> Statement:
        """Add the turn. It follows `count_turn`, which numbers it, and waits for a turn that is added at the time."""
        newest = """(SELECT others.id FROM turns others WHERE others.conversation_id = :conversation_id
            ORDER BY others.number DESC LIMIT 1)"""
        values = {name: value for name, value in vars(turn).items() if value is not None}
        parent = ":parent_id" if turn.parent_id is not None else newest
        parent_task = ":parent_task" if turn.parent_task is not None else "NULL"
        return Statement(
            sql=f"""INSERT INTO turns (id, conversation_id, number, parent_id, parent_task, batch, inputs, waits,
                    created_at)
                SELECT :id, :conversation_id, conversations.turns, {parent}, {parent_task}, :batch, :inputs, 1,
                    :created_at
                FROM conversations WHERE conversations.id = :conversation_id""",
            params=values,
            must_change=True,
        )

    # -- retention

    async def kept_until(self, batches: Sequence[str], *, retention: float, look_again: float) -> dict[str, float]:
        """Return the batches that belong to a conversation, and the moment until which it keeps them at least.

        retention: seconds after the last turn. look_again: that moment where the end is not known: the conversation is
        pinned.
        """
        listed, params = in_clause(batches)
        rows = await self.database.fetch(
            f"""SELECT turns.batch, conversations.updated_at, conversations.pinned_at
                FROM turns JOIN conversations ON conversations.id = turns.conversation_id
                WHERE turns.batch IN ({listed})""",
            **params,
        )
        return {
            row["batch"]: look_again if row["pinned_at"] is not None else row["updated_at"] + retention for row in rows
        }
