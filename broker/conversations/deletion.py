"""Deletion of conversations: their tasks, images and rows.

A deleted conversation is marked first, so that it is not shown and has no further turn. What cannot be deleted at once,
because its image is being downloaded, is deleted by `TurnKeeper` right after, also if this process dies.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from broker.errors import ApiError
from broker.tasks.cancellation import TaskCanceler
from broker.tasks.deletion import TaskDeleter
from storage.conversations.conversations import Conversations
from storage.conversations.turns import Turns
from storage.sql.scope import EVERYTHING
from storage.states import TaskState
from storage.tasks import Task, Tasks

BATCH_SIZE: Final = 100
"""Conversations looked at in one go."""


@dataclass(frozen=True, kw_only=True)
class ConversationDeleter:
    """Deletes what belongs to conversations that are marked as deleted."""

    tasks: Tasks
    conversations: Conversations
    turns: Turns
    canceler: TaskCanceler
    deleter: TaskDeleter

    async def delete_tasks(self, conversation_id: str) -> bool:
        """Cancel and delete the tasks of a conversation, then its rows; return False if a task has not ended yet."""
        has_ended = True
        for batch in await self.turns.list_batches(conversation_id):
            for task in await self.tasks.list_of_batch(batch):
                has_ended &= await self._delete_task(task)
        if has_ended:
            await self.conversations.delete(conversation_id)
        return has_ended

    async def delete_marked(self) -> bool:
        """Do so with all that are marked; return whether all of them are gone."""
        marked = await self.conversations.list_deleted(BATCH_SIZE)
        return all([await self.delete_tasks(conversation.id) for conversation in marked])

    async def _delete_task(self, task: Task) -> bool:
        """Return whether a task is deleted; an error says that it changed in the meantime, or has not ended."""
        if task.state == TaskState.EXPIRED:
            return True
        try:
            if not task.has_ended:
                await self.canceler.cancel_task(task.id, EVERYTHING)
            await self.deleter.delete_task(task.id, EVERYTHING)
        except ApiError as error:
            return error.code in {"task_not_found", "task_expired"}
        return True
