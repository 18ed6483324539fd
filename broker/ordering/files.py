"""Files that callers upload before they order: stored, listed and deleted, whole or in parts.

A file is validated like every reference image, belongs to its caller, and is kept for the retention time.
"""

from __future__ import annotations

import re
from collections.abc import AsyncGenerator, AsyncIterable, Mapping
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from typing import Any, Final

from broker.clock import Clock
from broker.errors import ApiError, DownloadError
from broker.logs import log
from broker.metrics import Metrics
from broker.net.fetcher import Fetcher
from broker.ordering.quotas import OwnerQuotas
from storage.blobs.store import BlobMissing, BlobReader, BlobStore
from storage.errors import Stale, StorageError
from storage.files.resumable_uploads import ResumableUpload, ResumableUploads
from storage.files.uploaded_files import UploadedFile, UploadedFiles
from storage.ids import new_file_id, new_file_owner, new_upload_id, new_upload_owner
from storage.limits.owner_usage import OwnerUse, counted_bytes
from storage.sql.database import Database, Statement
from uploads.intake import Intake
from uploads.structure import InvalidImage

MAX_NAME: Final = 512
"""Characters; the rest is cut off."""
MAX_METADATA: Final = 100
"""Entries."""
MAX_UPLOAD_PARTS: Final = 1000
"""Of a resumable upload; each is a file until the last one has arrived."""
WRITE_BYTES: Final = 256 * 1024
MAX_WRITES: Final = 3
"""Tries to write a row while others change what is left of the caller's quota."""
_CHOSEN_ID: Final = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,38}[a-z0-9])?")


@dataclass(frozen=True, kw_only=True)
class FileDetails:
    """What a caller says about a file that it uploads."""

    name: str = ""
    chosen_id: str | None = None
    """None for a random one."""
    metadata: Mapping[str, Any] = field(default_factory=dict)

    def checked(self) -> FileDetails:
        """Return the details as they are stored. Raises `ApiError`."""
        if self.chosen_id is not None and not _CHOSEN_ID.fullmatch(self.chosen_id):
            message = "The name of a file is 1 to 40 lower-case letters, digits and dashes, with no dash at an end."
            raise ApiError("invalid_request", message, field="name")
        if len(self.metadata) > MAX_METADATA:
            message = f"The metadata of a file has at most {MAX_METADATA} entries."
            raise ApiError("invalid_request", message, field="metadata")
        shown = "".join(character for character in self.name if character.isprintable())
        return replace(self, name=shown[:MAX_NAME])


@dataclass(frozen=True, kw_only=True)
class FileService:
    """Uploaded files of callers."""

    clock: Clock
    database: Database
    files: UploadedFiles
    uploads: ResumableUploads
    quotas: OwnerQuotas
    blobs: BlobStore
    intake: Intake
    fetcher: Fetcher
    metrics: Metrics
    max_bytes: int
    retention_seconds: float

    # -- finished files

    async def store(self, caller: str, chunks: AsyncIterable[bytes], details: FileDetails) -> UploadedFile:
        """Validate and store a file. Raises `ApiError` for one that is not a usable image, or does not fit."""
        await self.quotas.check(caller, OwnerUse(stored_bytes=counted_bytes(0)))  # before anything is received
        return await self._take_in(caller, chunks, details.checked())

    async def store_url(self, caller: str, url: str, details: FileDetails) -> UploadedFile:
        """Download, validate and store a file. Raises `ApiError`."""
        try:
            async with self.fetcher.open(url, max_bytes=self.max_bytes) as chunks:
                return await self.store(caller, chunks, details)
        except DownloadError as error:
            raise InvalidUpload("invalid_image", f"The file could not be fetched: {error}", field="url") from error

    async def get(self, caller: str, file_id: str) -> UploadedFile:
        """Return a file of the caller. Raises `ApiError("not_found")`."""
        file = await self.files.get(caller, file_id)
        if file is None or file.created_at <= self._oldest:
            raise file_not_found(file_id)
        return file

    async def list_newest(self, caller: str, *, before: tuple[float, str] | None, limit: int) -> list[UploadedFile]:
        """Return one page of the caller's files, newest first."""
        return await self.files.list_newest(caller, since=self._oldest, before=before, limit=limit)

    async def delete(self, caller: str, file_id: str) -> None:
        """Delete a file of the caller; orders that used it keep their copy. Raises `ApiError("not_found")`."""
        file = await self.get(caller, file_id)
        if not await self.files.delete(file):
            raise file_not_found(file_id)
        await self.blobs.delete(file.owner)
        log.info("a file was deleted", action="file_deleted", size=file.size)

    async def open(self, file: UploadedFile) -> BlobReader:
        """Return the bytes of a file. Raises `ApiError("not_found")`."""
        try:
            return await self.blobs.open(file.blob)
        except BlobMissing as error:
            raise file_not_found(file.id) from error

    def expires_at(self, file: UploadedFile) -> float:
        """Return when the file will be deleted, in seconds since the epoch."""
        return file.created_at + self.retention_seconds

    @property
    def _oldest(self) -> float:
        return self.clock.now() - self.retention_seconds

    # -- files that arrive in several requests

    async def begin_upload(self, caller: str, details: FileDetails, size: int | None) -> ResumableUpload:
        """Begin an upload. size: the bytes that are announced, if they are. Raises `ApiError`."""
        if (size or 0) > self.max_bytes:
            raise self._too_large()
        checked = details.checked()
        upload = ResumableUpload(
            id=new_upload_id(),
            owner=new_upload_owner(),
            caller=caller,
            file_id=checked.chosen_id or "",
            name=checked.name,
            metadata=checked.metadata,
            created_at=self.clock.now(),
        )
        needs = OwnerUse(stored_bytes=counted_bytes(0))
        if size:
            await self.quotas.check(caller, OwnerUse(stored_bytes=counted_bytes(size)))
        await self._write_counted(caller, needs, self.uploads.insert_upload(upload))
        return upload

    async def get_upload(self, upload_id: str) -> ResumableUpload:
        """Return an upload by its secret. Raises `ApiError("not_found")`."""
        upload = await self.uploads.get(upload_id)
        if upload is None or upload.created_at <= self._oldest:
            raise _upload_not_found()
        return upload

    async def append_part(self, upload: ResumableUpload, offset: int, chunks: AsyncIterable[bytes]) -> ResumableUpload:
        """Add bytes to an upload; the same bytes again change nothing. Raises `ApiError`."""
        if offset not in {upload.received, upload.last_received} or upload.finished_as:
            raise _wrong_offset(upload)
        if offset == upload.received and len(upload.parts) >= MAX_UPLOAD_PARTS:
            message = f"An upload has at most {MAX_UPLOAD_PARTS:,} parts: begin a new one, with larger parts."
            raise ApiError("payload_too_large", message)
        async with aclosing(_grouped(chunks)) as pieces, self.blobs.new_draft(upload.owner) as draft:
            async for piece in pieces:
                if offset + draft.size + len(piece) > self.max_bytes:
                    raise self._too_large()
                await draft.write(piece)
            if offset != upload.received:
                if (offset + draft.size, draft.sha256) != (upload.received, upload.parts[-1].rpartition("/")[2]):
                    raise _wrong_offset(upload)
                return upload
            if draft.size == 0:
                return upload
            size = draft.size
            needs = OwnerUse(stored_bytes=counted_bytes(offset + size) - counted_bytes(offset))
            await self.quotas.check(upload.caller, needs)  # a stored part stays until the upload ends
            part = await draft.commit()
        try:
            await self._write_counted(upload.caller, needs, self.uploads.append_part(upload, part.name, size))
        except Stale:
            raise _wrong_offset(await self.get_upload(upload.id)) from None
        return await self.get_upload(upload.id)

    async def finish_upload(self, upload: ResumableUpload, offset: int, chunks: AsyncIterable[bytes]) -> UploadedFile:
        """Add the last bytes of an upload, and store the file; once more changes nothing. Raises `ApiError`."""
        if upload.finished_as:
            return await self.get(upload.caller, upload.finished_as)
        if offset != upload.received:
            raise _wrong_offset(upload)
        details = FileDetails(name=upload.name, chosen_id=upload.file_id or None, metadata=upload.metadata)
        try:
            async with aclosing(self._joined(upload, chunks)) as joined:
                file = await self._take_in(upload.caller, joined, details, upload)
        except InvalidUpload:
            await self.cancel_upload(upload)
            raise
        except BlobMissing as error:  # finished, canceled or expired since
            current = await self.get_upload(upload.id)
            if not current.finished_as:
                raise _upload_not_found() from error
            return await self.get(upload.caller, current.finished_as)
        await self.blobs.delete(upload.owner)
        return file

    async def cancel_upload(self, upload: ResumableUpload) -> None:
        """Forget an upload that is not finished."""
        await self.uploads.delete(upload)
        await self.blobs.delete(upload.owner)

    # -- storing

    async def _take_in(
        self,
        caller: str,
        chunks: AsyncIterable[bytes],
        details: FileDetails,
        upload: ResumableUpload | None = None,
    ) -> UploadedFile:
        owner, file_id = new_file_owner(), details.chosen_id or new_file_id()
        try:
            image = await self.intake.from_stream(owner, chunks, max_bytes=self.max_bytes)
        except InvalidImage as error:
            raise InvalidUpload(error.code, str(error), field="file") from error
        file = UploadedFile(
            owner=owner,
            caller=caller,
            id=file_id,
            name=details.name,
            blob=image.blob.name,
            media_type=image.media_type,
            size=image.blob.size,
            width=image.width,
            height=image.height,
            sha256=image.blob.sha256,
            metadata=details.metadata,
            created_at=self.clock.now(),
        )
        stored = await self._write(file, upload)
        if stored is file:
            self.metrics.uploaded_files.labels(file.media_type).inc()
            log.info("file uploaded", action="file_uploaded", size=file.size, media_type=file.media_type)
        return stored

    async def _write(self, file: UploadedFile, upload: ResumableUpload | None) -> UploadedFile:
        """Write the row, or return the one that another request for the same upload has written. Raises `ApiError`."""
        try:
            if await self._insert_file(file, upload):
                return file
        except ApiError:
            await self.blobs.delete(file.owner)
            raise
        await self.blobs.delete(file.owner)
        current = await self.uploads.get(upload.id) if upload else None
        if current is not None and current.finished_as:
            return await self.get(file.caller, current.finished_as)
        raise ApiError("conflict", f"There is a file {file.id} already: delete it, or choose another name.")

    async def _insert_file(self, file: UploadedFile, upload: ResumableUpload | None) -> bool:
        """Insert the row, and finish the upload. Return False if there is such a file, or the upload has changed.

        The bytes of the upload make room for those of the file.
        """
        freed = counted_bytes(upload.received) if upload else 0
        needs = OwnerUse(stored_bytes=counted_bytes(file.size))
        finish = [self.uploads.finish(upload, file.id)] if upload else []
        for _ in range(MAX_WRITES):
            room = await self.quotas.reserve_room(file.caller, needs, freeing=finish)
            try:
                await self.database.transact(*room, self.files.insert_file(file))
            except Stale:
                written = await self.files.get(file.caller, file.id)
                if written is not None:  # ours, if the connection broke after the commit
                    return written.owner == file.owner
                current = await self.uploads.get(upload.id) if upload else None
                if current != upload:
                    return False
                await self.quotas.check(file.caller, OwnerUse(stored_bytes=max(0, needs.stored_bytes - freed)))
            else:
                return True
        raise StorageError("the file could not be written")

    async def _write_counted(self, caller: str, needs: OwnerUse, statement: Statement) -> None:
        """Run a statement if what it adds fits in the caller's quota. Raises `ApiError`, and `Stale` like it."""
        for _ in range(MAX_WRITES):
            room = await self.quotas.reserve_room(caller, needs)
            try:
                await self.database.transact(*room, statement)
            except Stale:
                if not room:
                    raise
                await self.quotas.check(caller, needs)
            else:
                return
        raise Stale

    async def _joined(self, upload: ResumableUpload, chunks: AsyncIterable[bytes]) -> AsyncGenerator[bytes, None]:
        for part in upload.parts:
            async with aclosing(await self.blobs.open(part)) as stored:
                async for chunk in stored:
                    yield chunk
        async for chunk in chunks:
            yield chunk

    def _too_large(self) -> ApiError:
        message = f"The file is larger than {self.max_bytes:,} bytes (MAX_FILE_SIZE): send a smaller one."
        return ApiError("payload_too_large", message)


class InvalidUpload(ApiError):
    """The uploaded bytes are not a usable image."""


def file_not_found(file_id: str) -> ApiError:
    shown = file_id if re.fullmatch(r"[A-Za-z0-9._-]{1,64}", file_id) else "this name"
    return ApiError("not_found", f"There is no file {shown}; it may have expired. Upload it again.", field="file")


def _upload_not_found() -> ApiError:
    return ApiError("not_found", "There is no such upload; it may have expired. Begin a new one.")


def _wrong_offset(upload: ResumableUpload) -> ApiError:
    if upload.finished_as:
        return ApiError("conflict", "This upload is finished: begin a new one.")
    message = f"{upload.received} bytes of this upload have arrived: send the next ones at that offset."
    return ApiError("invalid_request", message, field="offset")


async def _grouped(chunks: AsyncIterable[bytes]) -> AsyncGenerator[bytes, None]:
    """Yield the bytes in large pieces, because writing each one takes a thread."""
    held = bytearray()
    async for chunk in chunks:
        held += chunk
        if len(held) >= WRITE_BYTES:
            yield bytes(held)
            held.clear()
    if held:
        yield bytes(held)
