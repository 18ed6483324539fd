"""Pages of a list: their query, their response, and the cursor of the next one."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Annotated, Any, Final, Generic, Literal, TypeVar, get_args

from pydantic import Field

from broker.api.http.query import EMPTY, ParsedText, QueryModel
from broker.presenter import ResponseModel

DEFAULT_LIMIT: Final = 20
MAX_LIMIT: Final = 100

T = TypeVar("T")


def parse_limit(text: str) -> int:
    """Return the length of a page, `MAX_LIMIT` at most. Raises ValueError."""
    if not re.fullmatch(r"[0-9]{1,9}", text) or int(text) == 0:
        raise ValueError(f"must be a whole number from 1 to {MAX_LIMIT}")
    return min(int(text), MAX_LIMIT)


_LIMIT_TEXT: Final = ParsedText(
    parse_limit,
    {"anyOf": [{"type": "integer", "minimum": 1, "maximum": 999_999_999}, EMPTY], "default": DEFAULT_LIMIT},
)


class PageQuery(QueryModel):
    """Query of a list; subclasses add its cursor and filters."""

    limit: Annotated[int, _LIMIT_TEXT, Field(description="length of a page; 100 at most")] = DEFAULT_LIMIT


class PageResponse(ResponseModel, Generic[T]):
    """Part of a list; `PageResponse[TaskData]` is `TaskPage` in the OpenAPI document."""

    success: Literal[True]
    data: list[T]
    next_cursor: Annotated[str | None, Field(description="the cursor of the next page; null on the last")]

    @classmethod
    def model_parametrized_name(cls, params: tuple[Any, ...]) -> str:
        first = (get_args(params[0]) or params)[0]  # of a union the first one
        return f"{first.__name__.removesuffix('Data').removesuffix('Summary')}Page"


def cursor_text(prefix: str) -> ParsedText:
    """Annotate a cursor: (moment, id) of the last row of the page before. prefix: of these ids, like `task`."""
    position = re.compile(rf"([0-9]{{1,12}}\.[0-9]{{1,12}})-({prefix}_[0-9a-f]{{1,64}})")

    def parse_cursor(text: str) -> tuple[float, str]:
        match = position.fullmatch(text)
        if match is None:
            raise ValueError("must be the nextCursor of an earlier page")
        return float(match[1]), match[2]

    return ParsedText(parse_cursor, {"type": "string", "description": "`nextCursor` of the page before"})


def split_page(
    rows: Sequence[T], limit: int, position: Callable[[T], tuple[float, str]]
) -> tuple[Sequence[T], str | None]:
    """Return a page out of `limit` + 1 rows, and the cursor of the next one. position: (moment, id) of a row."""
    if len(rows) <= limit:
        return rows, None
    return rows[:limit], cursor_of(*position(rows[limit - 1]))


def cursor_of(moment: float, row_id: str) -> str:
    """Return the cursor of the page that begins after this row."""
    return f"{moment!r}-{row_id}"
