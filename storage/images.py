"""The rows of images: owner, public name, measures; the bytes are in a blob store.

A thumbnail belongs to the owner of its image and has its position; it is deleted together with it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from storage.ids import owner_key
from storage.sql.database import Database, Statement
from storage.sql.rows import SqlList, fetch_as, fetch_one_as, in_clause, insert_row

Kind = Literal["result", "reference", "thumbnail-128", "thumbnail-256", "thumbnail-512", "thumbnail-1024"]

_BYTES_OF = "rtrim(blob, '0123456789abcdef')"
"""The owner of the bytes of an image and a slash, before their hash: for a link, another one than that of the image."""


@dataclass(frozen=True, kw_only=True)
class StoredImage:
    """One image. name: its public file name. owner: a task (results) or a batch (references). size: bytes."""

    name: str
    owner: str
    kind: Kind
    position: int
    blob: str
    media_type: str
    size: int
    width: int
    height: int
    sha256: str
    created_at: float


@dataclass(frozen=True)
class Images:
    """Image rows in the database."""

    database: Database

    async def get_by_name(self, name: str) -> StoredImage | None:
        return await fetch_one_as(self.database, StoredImage, "SELECT * FROM images WHERE name = :name", name=name)

    async def list_of_owner(self, owner: str, kind: Kind) -> list[StoredImage]:
        """Return an owner's images of a kind, in order."""
        sql = "SELECT * FROM images WHERE owner = :owner AND kind = :kind ORDER BY position"
        return await fetch_as(self.database, StoredImage, sql, owner=owner, kind=kind)

    async def list_of_owners(self, owners: Sequence[str]) -> dict[str, list[StoredImage]]:
        """Return the results and references of some hundred owners, in order; nothing for owners without any."""
        if not owners:
            return {}
        listed, params = in_clause(owners)
        sql = f"""SELECT * FROM images WHERE owner IN ({listed}) AND kind IN ('result', 'reference')
            ORDER BY owner, position"""
        found: dict[str, list[StoredImage]] = {}
        for image in await fetch_as(self.database, StoredImage, sql, **params):
            found.setdefault(image.owner, []).append(image)
        return found

    async def get_at(self, owner: str, kind: Kind, position: int) -> StoredImage | None:
        sql = "SELECT * FROM images WHERE owner = :owner AND kind = :kind AND position = :position"
        return await fetch_one_as(self.database, StoredImage, sql, owner=owner, kind=kind, position=position)

    async def owners_with_images(self, owners: Sequence[str]) -> set[str]:
        """Return the owners that have an image; for some hundred owners."""
        listed, params = in_clause(owners)
        rows = await self.database.fetch(f"SELECT DISTINCT owner FROM images WHERE owner IN ({listed})", **params)
        return {row["owner"] for row in rows}

    async def links_to(self, owners: Sequence[str]) -> list[tuple[str, str]]:
        """Return which of these owners have bytes that are references of others: (owner, other); of some hundred."""
        listed, params = in_clause([f"{owner}/" for owner in owners])
        rows = await self.database.fetch(
            f"""SELECT DISTINCT {_BYTES_OF} AS linked, owner FROM images
                WHERE caller = '' AND kind = 'reference' AND {_BYTES_OF} IN ({listed})""",
            **params,
        )
        links = [(row["linked"].rstrip("/"), row["owner"]) for row in rows]
        return [(linked, owner) for linked, owner in links if linked != owner]

    def insert_image(self, image: StoredImage) -> Statement:
        """Insert the image unless it exists. Lock the task of a result first: it may have been canceled.

        It follows the insertion of its tasks, whose caller it belongs to.
        """
        column, value = owner_key(image.owner)
        caller = f"coalesce((SELECT caller FROM tasks WHERE {column} = :task LIMIT 1), '')"
        return insert_row(
            "images",
            image,
            "ON CONFLICT (owner, kind, position) DO NOTHING",
            computed={"caller": caller},
            params={"task": value},
        )

    def insert_link(self, image: StoredImage) -> Statement:
        """Insert an image whose bytes belong to another one, which is why they are not counted again."""
        return insert_row("images", image, "ON CONFLICT (owner, kind, position) DO NOTHING", computed={"caller": "''"})

    def delete_of_owners(self, owners: Sequence[str]) -> Statement:
        """Delete all images of these owners, with thumbnails."""
        listed, params = in_clause(owners)
        return Statement(sql=f"DELETE FROM images WHERE owner IN ({listed})", params=params)

    def delete_of_caller(self, caller: str) -> Statement:
        """Delete all images of a caller; what leads to their bytes must be gone."""
        return Statement(sql="DELETE FROM images WHERE caller = :caller", params={"caller": caller})

    def delete_of_expired(self, tasks: SqlList) -> Statement:
        """Delete the images of those tasks that are expired; `in_clause` makes a list of ids.

        It follows the statement that expires them, which waits for transactions that lock them, so all rows are seen.
        """
        listed, params = tasks
        state = "(SELECT t.state FROM tasks t WHERE t.id = images.owner)"
        return Statement(sql=f"DELETE FROM images WHERE owner IN ({listed}) AND {state} = 'expired'", params=params)

    async def count_stored(self) -> dict[str, Any]:
        """Return the number of images, with thumbnails, and their bytes."""
        row = await self.database.fetch_one(
            "SELECT count(*) AS n, CAST(coalesce(sum(size), 0) AS BIGINT) AS size FROM images"
        )
        return dict(row or {})
