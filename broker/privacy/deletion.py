"""Deletion of an account with everything in it.

1. One transaction ends the account (no login, session or key works any more), and records the deletion.
2. Tasks are erased, then conversations, uploaded files and everything else of the owner is deleted.
3. The same is done again later, because a request that was accepted before may add something after.

The record stays until then, so a deletion that a process leaves half done is finished by another one.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Final

from broker.clock import Clock
from broker.logs import log, safe_exc_info
from broker.privacy.erasure import TaskEraser
from storage.accounts.owner_deletions import OwnerDeletion
from storage.blobs.store import BlobStore
from storage.errors import StorageError
from storage.sql.database import Statement
from storage.tables import Tables

REQUEST_SECONDS: Final = 20.0
"""A request for a deletion waits for it so long; then the worker goes on."""
FIRST_PAUSE_SECONDS: Final = 60.0
KEPT_SECONDS: Final = 86_400.0
"""No request that was accepted before the deletion is still running after this time."""
BATCH_SIZE: Final = 100


@dataclass(frozen=True, kw_only=True)
class AccountDeleter:
    """Deletes accounts."""

    clock: Clock
    tables: Tables
    blobs: BlobStore
    eraser: TaskEraser
    get_user: Callable[[str], Awaitable[object]]
    """Raises `ApiError("not_found")` for an unknown user."""
    end_account: Callable[[str], list[Statement]]
    """Statements after which no login and no key of an owner works."""
    delete_conversations: Callable[[str], Awaitable[object]]
    """Deletes those of an owner, whose tasks are erased."""
    request_seconds: float = REQUEST_SECONDS

    async def delete_user(self, user_id: str) -> None:
        """Delete a user with everything that the user has made. Raises `ApiError("not_found")`."""
        await self.get_user(user_id)
        await self.delete_owner(user_id)

    async def delete_owner(self, owner: str) -> None:
        """Delete a user, or an API key without one, with everything that it has made.

        The account has ended when this returns. What takes longer than `REQUEST_SECONDS` is deleted by the worker.
        """
        beginning = self.tables.owner_deletions.begin(owner, self.clock.now())
        await self.tables.database.transact(*self.end_account(owner), beginning)
        log.info("an account is being deleted", action="account_deleted", owner=owner)
        try:
            async with asyncio.timeout(self.request_seconds):
                await self._delete_data(owner)
        except (TimeoutError, StorageError) as error:
            log.warning(
                "the data of a deleted account are deleted later",
                action="deletion_postponed",
                owner=owner,
                why=str(error) or "it takes longer",
            )
        except Exception as error:
            _log_failure(owner, error)

    async def finish_deletions(self) -> int:
        """Go on with all deletions that are due; return the number of accounts."""
        due = await self.tables.owner_deletions.list_due(self.clock.now(), BATCH_SIZE)
        for deletion in due:
            await self._continue(deletion)
        return len(due)

    async def _continue(self, deletion: OwnerDeletion) -> None:
        """Delete what is left; then forget the deletion, or look again later. One that fails does not stop others."""
        age, is_done = self.clock.now() - deletion.requested_at, True
        try:
            await self._delete_data(deletion.owner)
        except StorageError:
            raise
        except Exception as error:
            _log_failure(deletion.owner, error)
            is_done = False
        if is_done and age >= KEPT_SECONDS:
            await self.tables.owner_deletions.finish(deletion.owner)
            return
        pause = min(max(FIRST_PAUSE_SECONDS, age), KEPT_SECONDS)
        await self.tables.owner_deletions.postpone(deletion.owner, self.clock.now() + pause)

    async def _delete_data(self, owner: str) -> None:
        """Delete everything of an owner whose account has ended; what was deleted before costs a few queries."""
        erased = await self.eraser.erase_tasks(owner)
        await self.delete_conversations(owner)
        await self._delete_uploads(owner)
        tables = self.tables
        await tables.database.transact(
            *tables.owner_deletions.delete_rows(owner),
            *tables.provider_keys.delete_of_owner(owner),
            tables.images.delete_of_caller(owner),
            *tables.ledger.anonymize(owner),
            *self.end_account(owner),  # also what a login in that moment has added
        )
        if erased:
            log.info("the data of an account are deleted", action="account_erased", owner=owner, tasks=erased)

    async def _delete_uploads(self, owner: str) -> None:
        for rows in (self.tables.uploaded_files, self.tables.resumable_uploads):
            while owners := await rows.owners_of_caller(owner, BATCH_SIZE):
                await asyncio.gather(*map(self.blobs.delete, owners))  # bytes first: the rows lead to them
                await rows.delete_of_owners(owners)


def _log_failure(owner: str, error: Exception) -> None:
    log.error(
        "the data of a deleted account could not be deleted; it is tried again",
        action="deletion_failed",
        owner=owner,
        exc_info=safe_exc_info(error),
    )
