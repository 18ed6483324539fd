"""Usage of owners: what each private owner uses of its quotas, over all processes.

Images and amounts of a UTC day are sums in `owner_usage`. A task adds one image and the most that it can cost when it
is created (`tasks.owner_images`, `tasks.owner_micros`); when it has ended, both become what its attempts say
(`storage.limits.settlement`). Tasks in flight, pins and stored bytes are counted from their rows, so no change of
those rows has to be told here.

A count must not change between its check and the commit: whoever adds to it locks the owner's row in `rate_limits`
first, in a statement of its own, so that transactions of one owner count one after the other. That row is the same one
at midnight, and the create transaction holds it anyway.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, Final

from storage.ledger import KEPT_DAYS
from storage.limits.budgets import day_of
from storage.sql.database import Database, Statement

MIN_STORED_BYTES: Final = 4096
"""What a stored file counts as at least: so many small files count as well."""
NO_LIMIT: Final = 2**63 - 1

_SIZE: Final = f"CASE WHEN size < {MIN_STORED_BYTES} THEN {MIN_STORED_BYTES} ELSE size END"
_RECEIVED: Final = _SIZE.replace("size", "received")
_COUNTS: Final[Mapping[str, str]] = {
    "in_flight": "SELECT count(*) FROM tasks WHERE caller = :owner AND ended_at IS NULL",
    "pins": """SELECT (SELECT count(*) FROM tasks WHERE caller = :owner AND pinned_at IS NOT NULL)
        + (SELECT count(*) FROM conversations WHERE owner = :owner AND pinned_at IS NOT NULL)""",
    # results and references; thumbnails are ours. Of uploads those that are not files yet
    "stored_bytes": f"""SELECT CAST(
        (SELECT coalesce(sum({_SIZE}), 0) FROM images WHERE caller = :owner AND kind IN ('result', 'reference'))
        + (SELECT coalesce(sum({_SIZE}), 0) FROM uploaded_files WHERE caller = :owner)
        + (SELECT coalesce(sum({_RECEIVED}), 0) FROM resumable_uploads WHERE caller = :owner AND finished_as = '')
        AS BIGINT)""",
}
_SUMS: Final[Mapping[str, str]] = {
    name: f"SELECT {name} FROM owner_usage WHERE owner = :owner AND day = :day" for name in ("images", "micros")
}
AMOUNTS: Final = (*_SUMS, *_COUNTS)
"""The fields of `OwnerUse` and `OwnerLimits`."""


def counted_bytes(size: int) -> int:
    """Return what a stored file of this size counts as."""
    return max(size, MIN_STORED_BYTES)


@dataclass(frozen=True, kw_only=True)
class OwnerUse:
    """What an owner uses, or what a request needs beyond that. images, micros: of a UTC day."""

    images: int = 0
    micros: int = 0
    """Millionths of a USD."""
    in_flight: int = 0
    """Tasks that have not ended."""
    pins: int = 0
    """Tasks and conversations that are kept beyond retention."""
    stored_bytes: int = 0
    """Of results, references, uploaded files and uploads; each file counts as `MIN_STORED_BYTES` at least."""


@dataclass(frozen=True, kw_only=True)
class OwnerLimits:
    """The most that an owner may use, each as in `OwnerUse`; None: no limit."""

    images: int | None = None
    micros: int | None = None
    in_flight: int | None = None
    pins: int | None = None
    stored_bytes: int | None = None


@dataclass(frozen=True)
class OwnerUsage:
    """Usage of owners in the database."""

    database: Database

    async def read_use(self, owner: str, day: int, amounts: Collection[str] = AMOUNTS) -> OwnerUse:
        """Return what an owner uses; 0 for an amount that is not among `amounts`."""
        queries = {name: sql for name, sql in {**_SUMS, **_COUNTS}.items() if name in amounts}
        if not queries:
            return OwnerUse()
        sql = "SELECT " + ", ".join(f"({query}) AS {name}" for name, query in queries.items())
        params = {"owner": owner, **({"day": day} if _SUMS.keys() & queries else {})}
        row: Any = (await self.database.fetch(sql, **params))[0]
        return OwnerUse(**{name: int(row[name] or 0) for name in queries})

    def require_room(self, owner: str, needs: OwnerUse, limits: OwnerLimits) -> list[Statement]:
        """Check what is counted; `Stale` if what is needed does not fit. Empty where nothing is limited.

        Before it in the transaction, `RateLimits.add_usage` or `lock_usage` locks the row that it names.
        """
        limited = {name: getattr(limits, name) for name in _COUNTS if getattr(needs, name)}
        limited = {name: limit for name, limit in limited.items() if limit is not None}
        if not limited:
            return []
        fits = " AND ".join(f"({_COUNTS[name]}) + :{name} <= :{name}_limit" for name in limited)
        params = {name: getattr(needs, name) for name in limited}
        limit_params = {f"{name}_limit": limit for name, limit in limited.items()}
        return [
            Statement(
                sql=f"UPDATE rate_limits SET used = used WHERE caller = :owner AND {fits}",
                params={"owner": owner, **params, **limit_params},
                must_change=True,
            )
        ]

    def reserve(self, owner: str, day: int, needs: OwnerUse, limits: OwnerLimits) -> Statement:
        """Add images and amount to a day; `Stale` if they do not fit; an amount of 0 always fits.

        For the transaction that creates the tasks whose reservations they are the sum of.
        """
        fits = """(CAST(:images AS BIGINT) = 0 OR {images} <= CAST(:images_limit AS BIGINT))
            AND (CAST(:micros AS BIGINT) = 0 OR {micros} <= CAST(:micros_limit AS BIGINT))"""
        first = fits.format(images="CAST(:images AS BIGINT)", micros="CAST(:micros AS BIGINT)")
        further = fits.format(images="u.images + excluded.images", micros="u.micros + excluded.micros")
        return Statement(
            sql=f"""INSERT INTO owner_usage AS u (owner, day, images, micros)
                SELECT CAST(:owner AS TEXT), CAST(:day AS BIGINT), CAST(:images AS BIGINT), CAST(:micros AS BIGINT)
                WHERE {first}
                ON CONFLICT (owner, day) DO UPDATE SET
                images = u.images + excluded.images, micros = u.micros + excluded.micros
                WHERE {further}""",
            params={
                "owner": owner,
                "day": day,
                "images": needs.images,
                "micros": needs.micros,
                "images_limit": NO_LIMIT if limits.images is None else limits.images,
                "micros_limit": NO_LIMIT if limits.micros is None else limits.micros,
            },
            must_change=True,
        )

    def delete_of_owner(self, owner: str) -> Statement:
        """Delete the usage of an owner, whose account is deleted."""
        return Statement(sql="DELETE FROM owner_usage WHERE owner = :owner", params={"owner": owner})

    async def delete_older(self, now: float, limit: int) -> int:
        """Delete at most `limit` rows of days that are more than `KEPT_DAYS` ago; return how many."""
        sql = f"""DELETE FROM owner_usage WHERE (owner, day) IN (SELECT owner, day FROM owner_usage
            WHERE day < :day ORDER BY day LIMIT :limit{self.database.skip_locked})"""
        return await self.database.execute(sql, day=day_of(now) - KEPT_DAYS, limit=limit)
