"""Helpers between rows and dataclasses: fields are named like their columns, mappings and tuples are JSON."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import MISSING, fields
from enum import Enum
from functools import cache, lru_cache
from json.encoder import encode_basestring
from operator import attrgetter, itemgetter
from types import UnionType
from typing import Any, Final, NamedTuple, TypeAlias, TypeVar, cast, get_args, get_origin, get_type_hints

from storage.sql.database import Database, Row, Statement

T = TypeVar("T")

_NO_PARAMS: Final[Mapping[str, Any]] = {}
_Pick: TypeAlias = Callable[[Mapping[str, Any]], tuple[Any, ...]]
"""Returns the values of some columns, in their order."""

MAX_KNOWN_LENGTH: Final = 256
"""Characters of the longest list in JSON that is kept for further rows that have the same one."""

SqlList: TypeAlias = tuple[str, Mapping[str, Any]]
"""What stands in `IN (…)`: parameters or a query, and the values."""


def in_clause(values: Sequence[str]) -> tuple[str, dict[str, str]]:
    """Return `:v0, :v1, …` for `IN (…)`, and the parameters; for some hundred values at most."""
    params = {f"v{number}": value for number, value in enumerate(values)}
    return ", ".join(f":{name}" for name in params), params


def like_pattern(text: str) -> str:
    """Return the pattern of `LIKE … ESCAPE '!'` for values that contain a text."""
    escaped = re.sub("[!%_]", r"!\g<0>", text)
    return f"%{escaped}%"


def set_clause(names: Iterable[str]) -> str:
    """Return `"name" = :name, ` for each column, to be followed by one more; quoted because of keywords."""
    return _set_text(tuple(names))


@lru_cache(maxsize=1024)
def _set_text(names: tuple[str, ...]) -> str:
    return "".join(f'"{name}" = :{name}, ' for name in names)


def insert_row(
    table: str,
    row: object,
    conflict: str = "",
    *,
    computed: Mapping[str, str] | None = None,
    params: Mapping[str, Any] = _NO_PARAMS,
    unset: tuple[str, ...] = (),
) -> Statement:
    """Insert a dataclass. conflict: the ON CONFLICT clause.

    computed: further columns and their SQL expressions. params: further parameters of these.
    unset: fields that have their defaults in most rows. In these they are a part of the text: to bind them takes as
    long as to store them.
    """
    kind: Any = type(row)
    if computed:
        return Statement(
            _insert_text(table, kind, conflict, tuple(computed.items())), {**to_columns(vars(row)), **params}
        )
    columns = vars(row)
    form = _insert_form(table, kind, conflict, unset)
    if unset and form.unset_of(columns) != form.defaults:
        form = _insert_form(table, kind, conflict, ())
    values = [*form.values_of(columns)]
    for position, empty in form.converted:
        value = values[position]
        if value or empty is None:
            of: Any = type(value)
            values[position] = _writer(of)(value)
        else:
            values[position] = empty
    return Statement(form.text, row=tuple(values))


class _InsertForm(NamedTuple):
    """An insert of rows of one class. converted: positions of values that are converted, as in `_converted`.

    unset_of: picks the fields that are a part of the text if they equal `defaults`.
    """

    text: str
    values_of: _Pick
    converted: Sequence[tuple[int, str | int | None]]
    unset_of: _Pick
    defaults: tuple[Any, ...]


@lru_cache(maxsize=256)
def _insert_form(table: str, kind: type, conflict: str, unset: tuple[str, ...]) -> _InsertForm:
    names = [name for name in _names(cast("Any", kind)) if name not in unset]
    converted = [(names.index(name), empty) for name, empty in _converted(cast("Any", kind)).items() if name in names]
    defaults = {name: _defaults(cast("Any", kind))[name] for name in unset}
    literals = {name: _literal(value) for name, value in to_columns(defaults).items()}
    text = _insert_text(table, kind, conflict, tuple(literals.items()))
    return _InsertForm(text, _pick(names), converted, _pick([*unset]), tuple(defaults.values()))


def _literal(value: str | float | None) -> str:
    """Return a default as SQL. Raises ValueError for a text that would need quoting."""
    if isinstance(value, str):
        if re.fullmatch(r"[\w\[\]{}]*", value) is None:
            raise ValueError(f"no default of an insert: {value!r}")
        return f"'{value}'"
    return "NULL" if value is None else repr(value)


def _pick(names: Sequence[str]) -> _Pick:
    return itemgetter(*names) if len(names) > 1 else lambda columns: tuple([columns[name] for name in names])


@lru_cache(maxsize=256)
def _insert_text(table: str, kind: type, conflict: str, computed: tuple[tuple[str, str], ...]) -> str:
    values = {field.name: f":{field.name}" for field in fields(cast("Any", kind))} | dict(computed)
    return f"""INSERT INTO {table} ({", ".join(f'"{name}"' for name in values)})
            VALUES ({", ".join(values.values())}) {conflict}"""


@cache
def _names(kind: type) -> tuple[str, ...]:
    return tuple(field.name for field in fields(cast("Any", kind)))


@cache
def _converted(kind: type) -> dict[str, str | int | None]:
    """Return the fields of a dataclass whose values are not always stored as they are.

    With what false values of the field are stored as, or None if that depends on the value.
    """
    return {
        name: 0 if hint is bool else _EMPTY.get(get_origin(hint))
        for name, hint in get_type_hints(kind).items()
        if not _AS_IT_IS.issuperset(get_args(hint) if isinstance(hint, UnionType) else (hint,))
    }


class EncodedTuple(tuple[Any, ...]):
    """A column of many rows to be inserted, with its JSON, so that it is encoded once."""

    json: str


def encode_once(values: Iterable[Any]) -> EncodedTuple:
    """Return a column whose JSON is made now."""
    encoded = EncodedTuple(values)
    encoded.json = _encode_json(encoded)
    return encoded


def to_columns(values: Mapping[str, Any]) -> dict[str, Any]:
    columns = dict(values)
    for name, value in values.items():
        kind: Any = type(value)
        if kind not in _AS_IT_IS:
            columns[name] = _writer(kind)(value)
    return columns


_AS_IT_IS: Final = frozenset((str, int, float, type(None)))
_EMPTY: Final[Mapping[Any, str]] = {Mapping: "{}", tuple: "[]"}
_encode_json: Final = json.JSONEncoder(ensure_ascii=False).encode


@cache
def _writer(kind: type) -> Callable[[Any], Any]:
    """Return the function that converts values of a type, once per type: to ask for a `Mapping` takes long."""
    if issubclass(kind, EncodedTuple):
        return attrgetter("json")
    if issubclass(kind, Enum):
        return attrgetter("_value_")  # `value` is a property in Python
    if issubclass(kind, Mapping):
        return lambda value: _encode_json(value) if value else "{}"
    if issubclass(kind, tuple | list):
        return _encode_items
    return int if kind is bool else lambda value: value


def _encode_items(values: Sequence[Any]) -> str:
    """Return the JSON of a list, which is nearly always empty or has texts alone: to make an encoder takes longer."""
    try:
        return f"[{', '.join([encode_basestring(value) for value in values])}]"
    except TypeError:
        return _encode_json(values)


def from_row(kind: type[T], row: Row) -> T:
    """Return the row as a dataclass that has a field for each column of interest."""
    of: Any = kind
    names, pick, readers = _readers(of)
    values = dict(zip(names, pick(row), strict=True))
    for name, read in readers:
        values[name] = read(values[name])
    # without __init__: a frozen one sets each field by a call, which takes longer than all of the rest
    read_row = object.__new__(kind)
    object.__setattr__(read_row, "__dict__", values)
    return read_row


def changed_row(row: T, changes: Mapping[str, Any]) -> T:
    """Return a row with other values in some of its columns, like `dataclasses.replace` at a tenth of its cost."""
    changed = object.__new__(type(row))
    object.__setattr__(changed, "__dict__", {**vars(row), **changes})
    return changed


def new_row(kind: type[T], values: Mapping[str, Any]) -> T:
    """Return a row with these values and the defaults of the other fields, at a fifth of the cost of __init__.

    Raises TypeError for a value without a field, and for a field without a value.
    """
    of: Any = kind
    defaults, required = _fields(of)
    columns = {**defaults, **values}
    if len(columns) != len(defaults) or not required <= values.keys():
        raise TypeError(f"these are not the fields of a {kind.__name__}: {', '.join(sorted(values))}")
    row = object.__new__(kind)
    object.__setattr__(row, "__dict__", columns)
    return row


@cache
def _defaults(kind: type) -> dict[str, Any]:
    """Return all fields, in their order, with MISSING for those without a default."""
    return {
        field.name: field.default if field.default_factory is MISSING else field.default_factory()
        for field in fields(cast("Any", kind))
    }


@cache
def _fields(kind: type) -> tuple[dict[str, Any], frozenset[str]]:
    """Return what `_defaults` does, and the names of the fields without a default."""
    defaults = _defaults(kind)
    return defaults, frozenset(name for name, default in defaults.items() if default is MISSING)


@cache
def _readers(kind: type) -> tuple[tuple[str, ...], _Pick, list[tuple[str, Callable[[Any], Any]]]]:
    """Return the names of the fields, what picks their columns, and what converts those that need it."""
    if hasattr(kind, "__post_init__") or "__slots__" in vars(kind):
        raise TypeError(f"{kind.__name__} is read without its __init__: it must have neither slots nor __post_init__")
    hints = get_type_hints(kind)
    names = tuple(field.name for field in fields(cast("Any", kind)))
    return names, _pick(names), [(name, read) for name in names if (read := _reader(hints[name]))]


def _reader(hint: Any) -> Callable[[Any], Any] | None:
    if get_origin(hint) is tuple:
        return _read_tuple
    if get_origin(hint) is Mapping:
        return _read_mapping
    if isinstance(hint, type) and issubclass(hint, Enum):
        return {member.value: member for member in hint}.__getitem__  # a call of the class takes longer
    return hint if hint is bool else None


def _read_tuple(text: str) -> tuple[Any, ...]:
    if text == "[]":
        return ()
    return _read_short_tuple(text) if len(text) <= MAX_KNOWN_LENGTH else tuple(json.loads(text))


@lru_cache(maxsize=256)
def _read_short_tuple(text: str) -> tuple[Any, ...]:
    """Parse a list; many rows have the same few names in it."""
    return tuple(json.loads(text))


def _read_mapping(text: str) -> Any:
    return {} if text == "{}" else json.loads(text)


async def fetch_as(database: Database, kind: type[T], sql: str, /, **params: Any) -> list[T]:
    """Return the rows of a query as dataclasses."""
    return [from_row(kind, row) for row in await database.fetch(sql, **params)]


async def fetch_one_as(database: Database, kind: type[T], sql: str, /, **params: Any) -> T | None:
    """Return the first row of a look-up by index as a dataclass, or None."""
    row = await database.fetch_one(sql, **params)
    return from_row(kind, row) if row else None
