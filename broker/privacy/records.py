"""The records of one owner, as an export has them: read page by page, so that none of the lists is ever held whole."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass
from datetime import date, timedelta
from typing import Any, Final, TypeVar

from broker.accounts.users import UserService
from broker.clock import Clock, iso
from broker.presenter import ResponseModel, TaskPresenter
from broker.principal import Principal
from broker.privacy.documents import (
    FORMAT_VERSION,
    ExportedAccount,
    ExportedBatch,
    ExportedConversation,
    ExportedCost,
    ExportedKey,
    ExportedProviderKey,
    ExportedSession,
    ExportedTask,
    ExportedTurn,
    ExportedUpload,
    ExportedWebhook,
    ExportHead,
)
from storage.files.uploaded_files import UploadedFile
from storage.ids import reference_owner
from storage.images import StoredImage
from storage.sql.scope import Scope
from storage.tables import Tables
from storage.tasks import Task

PAGE: Final = 50
MAX_SESSIONS: Final = 1000
_EXTENSIONS: Final = {"image/png": "png", "image/jpeg": "jpg", "image/webp": "webp"}
_EPOCH: Final = date(1970, 1, 1)
T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class TaskRecord:
    """A task with its images."""

    task: Task
    results: Sequence[StoredImage]
    references: Sequence[StoredImage]


@dataclass(frozen=True, kw_only=True)
class OwnerRecords:
    """Reads what belongs to owners."""

    clock: Clock
    tables: Tables
    users: UserService
    presenter: TaskPresenter

    async def make_head(self, principal: Principal) -> ExportHead:
        user = await self.users.get(principal.user_id) if principal.user_id else None
        account = ExportedAccount(
            id=principal.owner,
            name=principal.name,
            email=user.email if user else None,
            is_admin=principal.is_admin,
            created_at=iso(user.created_at) if user else None,
            last_login_at=iso(user.last_login_at) if user else None,
        )
        return ExportHead(format_version=FORMAT_VERSION, exported_at=iso(self.clock.now()) or "", account=account)

    def lists(self, owner: str) -> dict[str, AsyncIterator[ResponseModel]]:
        """Return the lists of an export, by name, in order."""
        return {
            "sessions": self._sessions(owner),
            "apiKeys": self._api_keys(owner),
            "providerKeys": self._provider_keys(owner),
            "conversations": self._conversations(owner),
            "tasks": self._exported_tasks(owner),
            "batches": self._batches(owner),
            "uploadedFiles": self._uploads(owner),
            "webhooks": self._webhooks(owner),
            "costs": self._costs(owner),
        }

    # -- tasks and files

    async def tasks(self, owner: str) -> AsyncIterator[TaskRecord]:
        """Yield the tasks of an owner that are not deleted, newest first."""
        async for task, images in self._tasks_with_images(owner):
            yield TaskRecord(
                task=task,
                results=images.get(task.id, ()),
                references=images.get(reference_owner(task.batch), ()),
            )

    async def _tasks_with_images(self, owner: str) -> AsyncIterator[tuple[Task, dict[str, list[StoredImage]]]]:
        scope, tables, before = Scope(owner=owner), self.tables, None
        while True:
            page = await tables.newest_tasks.list_newest(scope, status=None, limit=PAGE, before=before)
            owners = {task.id for task in page} | {reference_owner(task.batch) for task in page}
            images = await tables.images.list_of_owners(sorted(owners))
            for task in page:
                yield task, images
            if len(page) < PAGE:
                return
            before = (page[-1].created_at, page[-1].id)

    async def uploaded_files(self, owner: str) -> AsyncIterator[UploadedFile]:
        async for file in _pages(
            lambda before: self.tables.uploaded_files.list_newest(owner, since=0.0, before=before, limit=PAGE)
        ):
            yield file

    async def _exported_tasks(self, owner: str) -> AsyncIterator[ExportedTask]:
        async for record in self.tasks(owner):
            task = record.task
            shown = self.presenter.task(task, record.results, "en")
            yield ExportedTask.from_object(
                shown,
                batch_id=task.batch,
                parameters=dict(task.params),
                request=dict(task.origin),
                earlier_turns=[dict(turn) for turn in task.turns],
                callback_url=task.callback_url,
                pinned_at=task.pinned_at,
                files=[path_of_image(image) for image in record.results],
                reference_files=[path_of_image(image) for image in record.references],
            )

    async def _uploads(self, owner: str) -> AsyncIterator[ExportedUpload]:
        async for file in self.uploaded_files(owner):
            yield ExportedUpload.from_object(file, metadata=dict(file.metadata), file=path_of_upload(file))

    # -- the account

    async def _sessions(self, owner: str) -> AsyncIterator[ExportedSession]:
        now = self.clock.now()
        for session in await self.tables.sessions.list_alive(owner, now, idle_since=0.0, limit=MAX_SESSIONS):
            yield ExportedSession.from_object(session)

    async def _api_keys(self, owner: str) -> AsyncIterator[ExportedKey]:
        scope, before = Scope(owner=owner), None
        while True:
            page = await self.tables.api_keys.list_newest(scope, limit=PAGE, before=before)
            for listed in page:
                yield ExportedKey.from_object(listed.key)
            if len(page) < PAGE:
                return
            before = (page[-1].key.created_at, page[-1].key.id)

    async def _provider_keys(self, owner: str) -> AsyncIterator[ExportedProviderKey]:
        for key in await self.tables.provider_keys.list_active(owner):
            yield ExportedProviderKey.from_object(key)

    async def _conversations(self, owner: str) -> AsyncIterator[ExportedConversation]:
        scope, before = Scope(owner=owner), None
        while True:
            page = await self.tables.conversations.list_newest(scope, before=before, limit=PAGE)
            for one in page:
                yield ExportedConversation.from_object(one, turns=await self._turns(one.id))
            if len(page) < PAGE:
                return
            before = (page[-1].updated_at, page[-1].id)

    async def _turns(self, conversation_id: str) -> list[ExportedTurn]:
        """Return the turns of a conversation, the newest first; their number is bounded."""
        found: list[ExportedTurn] = []
        while True:
            before = found[-1].number if found else None
            page = await self.tables.turns.list_newest(conversation_id, before=before, limit=PAGE)
            tasks = await self.tables.turns.list_tasks([turn.batch for turn in page]) if page else {}
            found += [
                ExportedTurn.from_object(turn, tasks=[task.id for task in tasks.get(turn.batch, ())]) for turn in page
            ]
            if len(page) < PAGE:
                return found

    async def _batches(self, owner: str) -> AsyncIterator[ExportedBatch]:
        async for batch in _pages(lambda before: self.tables.batches.list_of_caller(owner, before=before, limit=PAGE)):
            yield ExportedBatch.from_object(
                batch, callback_urls=list(batch.callback_urls), metadata=dict(batch.metadata)
            )

    async def _webhooks(self, owner: str) -> AsyncIterator[ExportedWebhook]:
        async for delivery in _pages(
            lambda before: self.tables.deliveries.list_newest(caller=owner, limit=PAGE, before=before)
        ):
            yield ExportedWebhook.from_object(delivery, outcome=delivery.outcome.value)

    async def _costs(self, owner: str) -> AsyncIterator[ExportedCost]:
        for cost in await self.tables.ledger.sum_of_owner(owner):
            day = (_EPOCH + timedelta(days=cost.day)).isoformat()
            yield ExportedCost.from_object(cost, day=day, own_key=cost.is_own)


async def _pages(read: Callable[[tuple[float, str] | None], Awaitable[Sequence[T]]]) -> AsyncIterator[T]:
    """Yield the rows of all pages. read: return the page behind a position."""
    before: tuple[float, str] | None = None
    while True:
        page = await read(before)
        for row in page:
            yield row
        if len(page) < PAGE:
            return
        last: Any = page[-1]
        before = (last.created_at, last.id)


def path_of_image(image: StoredImage) -> str:
    """Return the path of an image in the archive."""
    return f"{'references' if image.kind == 'reference' else 'images'}/{image.name}"


def path_of_upload(file: UploadedFile) -> str:
    return f"files/{file.id}.{_EXTENSIONS.get(file.media_type, 'bin')}"
