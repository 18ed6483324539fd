"""Pages of rows, newest first. The cost of each has a limit, whatever the number of rows: an index, or a window."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any, Final, TypeVar, cast

from storage.sql.database import Database
from storage.sql.rows import fetch_as
from storage.sql.scope import EVERYTHING, Scope

T = TypeVar("T")

Position = tuple[float, str]
"""Moment and id of a row, by which the next page begins."""
FIRST: Final[Position] = (9e18, "")
WINDOW_ROWS: Final = 10_000
"""Rows that one page of a search looks at."""


async def fetch_page(
    database: Database,
    kind: type[T],
    table: str,
    /,
    *,
    moment: str,
    before: Position | None,
    limit: int,
    conditions: Sequence[str] = ("TRUE",),
    scope: Scope = EVERYTHING,
    **only: Any,
) -> list[T]:
    """Return one page, newest first.

    conditions: rows of any of them, which exclude each other; each is read by an index of its own. scope: on the column
    `caller`. moment: column of the order; `+column` for few rows that the condition finds, to be sorted. before: moment
    and id of the last row of the previous page. only: values that columns must have; None for any.
    """
    at, last = before or FIRST
    wanted = {name: value for name, value in only.items() if value is not None}
    ordered = f"ORDER BY {moment} DESC, id DESC LIMIT :limit"
    parts = [
        f"""SELECT {_columns(kind)} FROM {table} WHERE {condition}
            {"".join(f"AND {name} = :{name} " for name in wanted)}AND ({moment}, id) < (:at, :last)
            AND {scope.condition("caller")} {ordered}"""
        for condition in conditions
    ]
    sql = parts[0]
    if len(parts) > 1:
        union = " UNION ALL ".join(f"SELECT * FROM ({part}) AS part{number}" for number, part in enumerate(parts))
        sql = f"SELECT * FROM ({union}) AS parts {ordered}"
    return await fetch_as(database, kind, sql, at=at, last=last, limit=limit, **wanted, **scope.params)


async def search_page(
    database: Database,
    kind: type[T],
    table: str,
    /,
    *,
    moment: str,
    before: Position | None,
    limit: int,
    conditions: Sequence[str],
    columns: str,
    scope: Scope,
    params: Mapping[str, Any],
    window: int,
) -> tuple[list[T], T | None]:
    """Return those of the next `window` rows, newest first, that meet all conditions, for which there is no index.

    Not all of them, if there are more than `limit`; otherwise also the last row of the window, before which the next
    page begins; None at the end of the table. columns: those of the conditions.
    """
    at, last = before or FIRST
    # rows of one owner have an index; those of a prefix are searched for
    by_index, searched = ("1 = 1", scope) if scope.owner.endswith(":") else (scope.condition("caller"), EVERYTHING)
    in_window = f"FROM {table} WHERE ({moment}, id) < (:at, :last) AND {by_index}"
    newest_first = f"ORDER BY {moment} DESC, id DESC"
    values = {"at": at, "last": last, "limit": limit, "window": window, **scope.params}
    found = await fetch_as(
        database,
        kind,
        f"""SELECT {_columns(kind)} FROM {table} WHERE id IN (
                SELECT id FROM (SELECT id, caller, {moment}, {columns} {in_window} {newest_first} LIMIT :window)
                    AS newest
                WHERE {" AND ".join(conditions)} AND {searched.condition("caller")} {newest_first} LIMIT :limit)
            {newest_first}""",
        **values,
        **params,
    )
    if len(found) >= limit:
        return found, None
    values = {"at": at, "last": last, "skipped": window - 1, **({} if searched.owner else scope.params)}
    position = await database.fetch(f"SELECT id {in_window} {newest_first} LIMIT 1 OFFSET :skipped", **values)
    ends = await fetch_as(database, kind, f"SELECT * FROM {table} WHERE id = :id", **position[0]) if position else []
    return found, ends[0] if ends else None


def _columns(kind: type) -> str:
    return ", ".join(f'"{field.name}"' for field in fields(cast("Any", kind)))
