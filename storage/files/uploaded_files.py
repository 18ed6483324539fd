"""Uploaded files: images that a caller sent ahead of its orders. The bytes are in a blob store."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from storage.sql.database import Database, Statement
from storage.sql.rows import fetch_as, fetch_one_as, in_clause, insert_row


@dataclass(frozen=True, kw_only=True)
class UploadedFile:
    """One uploaded file. size: bytes. sha256: lower-case hex."""

    owner: str
    """Of its bytes in the blob store; unique."""
    caller: str
    id: str
    """Unique among the files of the caller: random, unless the caller chose it."""
    name: str
    """As the caller calls it; shown, and used for nothing else."""
    blob: str
    media_type: str
    size: int
    width: int
    height: int
    sha256: str
    metadata: Mapping[str, Any] = field(default_factory=dict)
    """What the caller keeps with it; JSON values."""
    created_at: float


@dataclass(frozen=True)
class UploadedFiles:
    """Uploaded files in the database."""

    database: Database

    async def get(self, caller: str, file_id: str) -> UploadedFile | None:
        sql = "SELECT * FROM uploaded_files WHERE caller = :caller AND id = :id"
        return await fetch_one_as(self.database, UploadedFile, sql, caller=caller, id=file_id)

    async def list_newest(
        self, caller: str, *, since: float, before: tuple[float, str] | None, limit: int
    ) -> list[UploadedFile]:
        """Return one page of a caller's files, newest first, but none from before a moment.

        before: `created_at` and id of the last file of the previous page.
        """
        at, last = before or (9e18, "")
        return await fetch_as(
            self.database,
            UploadedFile,
            """SELECT * FROM uploaded_files WHERE caller = :caller AND created_at > :since
                AND (created_at, id) < (:at, :last) ORDER BY created_at DESC, id DESC LIMIT :limit""",
            caller=caller,
            since=since,
            at=at,
            last=last,
            limit=limit,
        )

    async def owners_with_files(self, owners: Sequence[str]) -> set[str]:
        """Return the owners of bytes that have a row; for some hundred owners."""
        listed, params = in_clause(owners)
        rows = await self.database.fetch(f"SELECT owner FROM uploaded_files WHERE owner IN ({listed})", **params)
        return {row["owner"] for row in rows}

    async def owners_of_caller(self, caller: str, limit: int) -> list[str]:
        """Return the owners of the bytes of some files of a caller."""
        sql = "SELECT owner FROM uploaded_files WHERE caller = :caller LIMIT :limit"
        return [row["owner"] for row in await self.database.fetch(sql, caller=caller, limit=limit)]

    async def owners_before(self, before: float, limit: int) -> list[str]:
        """Return the owners of the bytes of the oldest files, stored before a moment."""
        sql = "SELECT owner FROM uploaded_files WHERE created_at < :before ORDER BY created_at LIMIT :limit"
        return [row["owner"] for row in await self.database.fetch(sql, before=before, limit=limit)]

    def insert_file(self, file: UploadedFile) -> Statement:
        """Insert the file; `Stale` if the caller has one of this id."""
        return insert_row("uploaded_files", file, "ON CONFLICT (caller, id) DO NOTHING")._replace(must_change=True)

    async def delete(self, file: UploadedFile) -> bool:
        """Delete the row. Return False if it was deleted before."""
        return await self.database.execute("DELETE FROM uploaded_files WHERE owner = :owner", owner=file.owner) == 1

    async def delete_of_owners(self, owners: Sequence[str]) -> None:
        listed, params = in_clause(owners)
        await self.database.execute(f"DELETE FROM uploaded_files WHERE owner IN ({listed})", **params)
