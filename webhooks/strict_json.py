"""Strict parsing of untrusted JSON: only what the standard allows and every database can store."""

from __future__ import annotations

import json
import re
from collections import Counter
from typing import Any, Final, NoReturn

MAX_DEPTH: Final = 32
MAX_VALUES: Final = 2**15
"""Values of one document: it is their number, not their bytes, that parsing takes time and memory for."""
MAX_DIGITS: Final = 400
"""Of an integer, beyond any float: reading a long one takes time by the square of its digits."""

_BEGINNINGS: Final = frozenset('{["')
_STRING: Final = re.compile(r'"(?:[^"\\]++|\\.)*+"', re.DOTALL)
_SURROGATE_ESCAPE: Final = re.compile(r"\\u[dD][89a-fA-F]")


class DuplicateName(ValueError):
    """An object has a member twice. Parsers differ in which value they keep."""

    def __init__(self, name: str) -> None:
        super().__init__("an object names a member twice")
        self.name = name
        """As sent; may be long, or have characters that cannot be stored."""


class TooManyValues(ValueError):
    """A document has more than `MAX_VALUES` values."""

    def __init__(self) -> None:
        super().__init__(f"more than {MAX_VALUES:,} values")


def read_json(
    body: bytes,
    *,
    max_depth: int = MAX_DEPTH,
    repair_surrogates: bool = False,
    allow_duplicate_names: bool = False,
) -> Any:
    """Parse UTF-8 JSON without NaN, overlong numbers, lone surrogates, duplicate names, nesting beyond `max_depth` or
    more than `MAX_VALUES` values.

    repair_surrogates: replace lone surrogates instead of rejecting them; providers cut texts inside an emoji.
    allow_duplicate_names: take the last value of a member, as most parsers do.
    Raises `DuplicateName`, `TooManyValues`, and ValueError for every other input.
    """
    text = body.decode("utf-8")
    if len(text) > MAX_VALUES:  # else it cannot have as many
        check_values(text)
    try:
        document = _decode(text, _LENIENT if allow_duplicate_names else _STRICT)
    except RecursionError as error:
        raise ValueError("too deep") from error
    if text.count("{") + text.count("[") >= max_depth:  # else it cannot be as deep
        _check_depth(document, max_depth)
    if "\\" not in text or not _SURROGATE_ESCAPE.search(text):
        return document
    text = json.dumps(document, ensure_ascii=False)
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        if not repair_surrogates:
            raise ValueError("a lone surrogate cannot be stored") from None
        return json.loads(text.encode("utf-16", "surrogatepass").decode("utf-16", "replace"))
    return document


def _decode(text: str, decoder: json.JSONDecoder) -> Any:
    """Parse a document, first as one without blanks around it, which nearly all are: to look for them takes longer."""
    if text[:1] in _BEGINNINGS:
        document, end = decoder.raw_decode(text)
        if end == len(text):
            return document
    return decoder.decode(text)


def check_values(text: str) -> None:
    """Raise `TooManyValues` for such JSON, without parsing it."""
    if len(text) <= MAX_VALUES or _count_values(text, 0, len(text)) <= MAX_VALUES:  # with what strings contain
        return
    values = end = 0
    for string in _STRING.finditer(text):
        values += _count_values(text, end, string.start())
        end = string.end()
        if values > MAX_VALUES:
            break
    if values + _count_values(text, end, len(text)) > MAX_VALUES:
        raise TooManyValues


def _count_values(text: str, start: int, end: int) -> int:
    return text.count(",", start, end) + text.count("[", start, end) + text.count("{", start, end)


def _unique_members(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    if len(members) < len(pairs):
        raise DuplicateName(Counter(name for name, _ in pairs).most_common(1)[0][0])
    return members


def _read_integer(digits: str) -> int:
    if len(digits) > MAX_DIGITS:
        raise ValueError("a number is too long")
    return int(digits)


def _reject_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


_STRICT: Final = json.JSONDecoder(
    parse_int=_read_integer, parse_constant=_reject_constant, object_pairs_hook=_unique_members
)
_LENIENT: Final = json.JSONDecoder(parse_int=_read_integer, parse_constant=_reject_constant)


def _check_depth(document: Any, max_depth: int) -> None:
    level = [document]
    for _ in range(max_depth):
        level = [child for item in level for child in _children(item)]
        if not level:
            return
    raise ValueError("too deep")


def _children(item: Any) -> list[Any]:
    if isinstance(item, dict):
        return [*item.keys(), *item.values()]
    return item if isinstance(item, list) else []
