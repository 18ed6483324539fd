"""JSON from strangers, as the standard has it and as it can be stored."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, Final, NoReturn

MOST_DEPTH: Final = 32


def read_json(body: bytes) -> Any:
    """UTF-8, no NaN, not deeper than `MOST_DEPTH`, no endless numbers, only text that can be stored.

    Raises ValueError, whatever the bytes are.
    """
    try:
        document = json.loads(body.decode("utf-8"), parse_constant=_no_constant)
    except RecursionError as error:
        raise ValueError("too deep") from error
    for text in _texts(document):
        text.encode("utf-8")  # a lone surrogate cannot
    return document


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


def _texts(document: Any) -> Iterator[str]:
    """Every string of a document, level by level; ValueError where it is too deep."""
    level = [document]
    for _ in range(MOST_DEPTH):
        yield from (item for item in level if isinstance(item, str))
        level = [child for item in level for child in _children(item)]
        if not level:
            return
    raise ValueError("too deep")


def _children(item: Any) -> list[Any]:
    if isinstance(item, dict):
        return [*item.keys(), *item.values()]
    return item if isinstance(item, list) else []
