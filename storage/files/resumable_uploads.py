"""Resumable uploads: files that arrive in several requests, over any of the processes.

begun ──► parts, one after the other ──► finished: a row in `uploaded_files`
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from storage.sql.database import Database, Statement
from storage.sql.rows import fetch_one_as, in_clause, insert_row, to_columns


@dataclass(frozen=True, kw_only=True)
class ResumableUpload:
    """One upload."""

    id: str
    """A secret: whoever knows it may continue the upload."""
    owner: str
    """Of the bytes of its parts in the blob store."""
    caller: str
    file_id: str = ""
    """The id that the caller chose for the file; empty for a random one."""
    name: str
    metadata: Mapping[str, Any] = field(default_factory=dict)
    parts: tuple[str, ...] = ()
    """The blobs, in order; equal parts have the same one."""
    received: int = 0
    """Bytes of all parts."""
    last_received: int = 0
    """Bytes before the last part."""
    finished_as: str = ""
    """The id of the file; empty until then."""
    created_at: float


@dataclass(frozen=True)
class ResumableUploads:
    """Resumable uploads in the database."""

    database: Database

    async def get(self, upload_id: str) -> ResumableUpload | None:
        sql = "SELECT * FROM resumable_uploads WHERE id = :id"
        return await fetch_one_as(self.database, ResumableUpload, sql, id=upload_id)

    def insert_upload(self, upload: ResumableUpload) -> Statement:
        return insert_row("resumable_uploads", upload)

    def append_part(self, upload: ResumableUpload, blob: str, size: int) -> Statement:
        """Add a part at the end of what was received; `Stale` if another request was quicker."""
        values = to_columns({"parts": (*upload.parts, blob)})
        return Statement(
            sql="""UPDATE resumable_uploads SET parts = :parts, received = :received, last_received = :seen
                WHERE id = :id AND received = :seen AND finished_as = ''""",
            params={"id": upload.id, "seen": upload.received, "received": upload.received + size, **values},
            must_change=True,
        )

    def finish(self, upload: ResumableUpload, file_id: str) -> Statement:
        """Mark the upload as finished; `Stale` if it is already, or has changed."""
        return Statement(
            sql="""UPDATE resumable_uploads SET finished_as = :file_id
                WHERE id = :id AND received = :received AND finished_as = ''""",
            params={"id": upload.id, "received": upload.received, "file_id": file_id},
            must_change=True,
        )

    async def delete(self, upload: ResumableUpload) -> None:
        await self.database.execute("DELETE FROM resumable_uploads WHERE id = :id", id=upload.id)

    async def owners_with_uploads(self, owners: Sequence[str]) -> set[str]:
        """Return the owners of bytes that have a row; for some hundred owners."""
        listed, params = in_clause(owners)
        rows = await self.database.fetch(f"SELECT owner FROM resumable_uploads WHERE owner IN ({listed})", **params)
        return {row["owner"] for row in rows}

    async def owners_of_caller(self, caller: str, limit: int) -> list[str]:
        """Return the owners of the bytes of some uploads of a caller."""
        sql = "SELECT owner FROM resumable_uploads WHERE caller = :caller LIMIT :limit"
        return [row["owner"] for row in await self.database.fetch(sql, caller=caller, limit=limit)]

    async def owners_before(self, before: float, limit: int) -> list[str]:
        """Return the owners of the bytes of the oldest uploads, begun before a moment."""
        sql = "SELECT owner FROM resumable_uploads WHERE created_at < :before ORDER BY created_at LIMIT :limit"
        return [row["owner"] for row in await self.database.fetch(sql, before=before, limit=limit)]

    async def delete_of_owners(self, owners: Sequence[str]) -> None:
        listed, params = in_clause(owners)
        await self.database.execute(f"DELETE FROM resumable_uploads WHERE owner IN ({listed})", **params)
