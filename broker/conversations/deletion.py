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
from storage.blobs.store import BlobStore
from storage.conversations.conversations import Conversations
from storage.conversations.turns import Turns
from storage.ids import reference_owner
from storage.images import Images
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
    images: Images
    blobs: BlobStore
    canceler: TaskCanceler
    deleter: TaskDeleter

    async def delete_tasks(self, conversation_id: str) -> bool:
        """Cancel and delete the tasks of a conversation, then its rows; return False if a task has not ended yet."""
        batches = await self.turns.list_batches(conversation_id)
        have_ended = all([await self._delete_batch(batch) for batch in batches])
        if have_ended:
            await self.conversations.delete(conversation_id)
        return have_ended

    async def delete_marked(self) -> bool:
        """Do so with all that are marked; return whether all of them are gone."""
        marked = await self.conversations.list_deleted(BATCH_SIZE)
        return all([await self.delete_tasks(conversation.id) for conversation in marked])

    async def _delete_batch(self, batch: str) -> bool:
        """Return whether the tasks of a batch are deleted, with the images that the user showed."""
        tasks = await self.tasks.list_of_batch(batch)
        have_ended = all([await self._delete_task(task) for task in tasks])
        if have_ended and any(task.references for task in tasks):
            owner = reference_owner(batch)
            await self.blobs.delete(owner)  # bytes first: only the rows lead to them
            await self.tasks.database.transact(self.images.delete_of_owners([owner]))
        return have_ended

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
