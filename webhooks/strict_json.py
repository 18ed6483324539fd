"""Strict parsing of untrusted JSON: only what the standard allows and every database can store."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, Final, NoReturn

MAX_DEPTH: Final = 32


def read_json(body: bytes, *, max_depth: int = MAX_DEPTH, repair_surrogates: bool = False) -> Any:
    """Parse UTF-8 JSON without NaN, overlong numbers, lone surrogates or nesting beyond `max_depth`.

    repair_surrogates: replace lone surrogates instead of rejecting them; providers cut texts inside an emoji.
    Raises ValueError for every other input.
    """
    text = body.decode("utf-8")
    try:
        document = json.loads(text, parse_constant=_reject_constant)
    except RecursionError as error:
        raise ValueError("too deep") from error
    strings = list(_strings_of(document, max_depth))
    if repair_surrogates and not all(map(_is_storable, strings)):
        raw = json.dumps(document, ensure_ascii=False).encode("utf-16", "surrogatepass")
        return json.loads(raw.decode("utf-16", "replace"))
    if not all(map(_is_storable, strings)):
        raise ValueError("a lone surrogate cannot be stored")
    return document


def _is_storable(text: str) -> bool:
    """Return False for a text with lone surrogates."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def _reject_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


def _strings_of(document: Any, max_depth: int) -> Iterator[str]:
    """Yield every string of a document, level by level. Raises ValueError below `max_depth`."""
    level = [document]
    for _ in range(max_depth):
        yield from (item for item in level if isinstance(item, str))
        level = [child for item in level for child in _children(item)]
        if not level:
            return
    raise ValueError("too deep")


def _children(item: Any) -> list[Any]:
    if isinstance(item, dict):
        return [*item.keys(), *item.values()]
    return item if isinstance(item, list) else []
