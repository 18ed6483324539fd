"""Messages between the event loop and the process that writes the database.

`marshal` takes half of pickle's time, and writes a text that many statements share once. Its format depends on the
version of Python, which is the same at both ends.
"""

from __future__ import annotations

import marshal
import sqlite3
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, NamedTuple, TypeAlias

from storage.errors import DatabaseReplaced, NoSuchTable, Stale, StorageError, StorageFull
from storage.sql.writer.groups import Group, PlainStatement, Report, Result
from storage.sql.writer.opened_files import FileIdentity

CLOSE: Final = b""
"""The last message to the writer. If its parent ends without it, the next writer copies the log into the database."""

_ERRORS: Final[dict[str, type[Exception]]] = {
    kind.__name__: kind
    for kind in (
        Stale,
        StorageError,
        StorageFull,
        DatabaseReplaced,
        NoSuchTable,
        sqlite3.Error,
        sqlite3.DatabaseError,
        sqlite3.OperationalError,
        sqlite3.IntegrityError,
        sqlite3.DataError,
        sqlite3.InternalError,
        sqlite3.NotSupportedError,
        sqlite3.ProgrammingError,
        sqlite3.InterfaceError,
        OSError,
        OverflowError,
        MemoryError,
        TypeError,
        ValueError,
        Exception,
    )
}
_EXACT: Final[dict[type, Callable[[Any], object]]] = {
    str: str.__str__,
    int: int.__int__,
    float: float.__float__,
    bytes: bytes,
    bytearray: bytes,
    memoryview: bytes,
}
"""Conversions of the storable classes and their subclasses, enums among them."""
_PlainError: TypeAlias = tuple[str, str, int | None, str | None]
"""The name of the nearest class in `_ERRORS`, the sentence, and code and name of SQLite."""


class Opening(NamedTuple):
    """The first message to the writer; see `GroupWriter`."""

    path: str
    spends_reserve: bool
    known: Mapping[str, FileIdentity] | None
    setup: Sequence[str]

    def encode(self) -> bytes:
        return _dumps((self.path, self.spends_reserve, self.known, list(self.setup)))

    @classmethod
    def decode(cls, message: bytes) -> Opening:
        return cls(*_loads(message))


def encode_opened(opened: Mapping[str, FileIdentity] | Exception) -> bytes:
    """Encode the answer to the first message: the identities of the files, or why they were not opened."""
    return _dumps(_plain_error(opened) if isinstance(opened, Exception) else dict(opened))


def decode_opened(message: bytes) -> Mapping[str, FileIdentity] | Exception:
    opened = _loads(message)
    return _error(opened) if isinstance(opened, tuple) else dict(opened)


def encode_group(group: Group) -> bytes:
    try:
        return _dumps([[tuple(statement) for statement in write] for write in group])
    except ValueError:  # a value of another class, such as an enum's
        return _dumps([[_plain_statement(statement) for statement in write] for write in group])


def decode_group(message: bytes) -> Group:
    group: Group = _loads(message)
    return group


def encode_report(report: Report) -> bytes:
    results = [_plain_error(one) if isinstance(one, Exception) else one for one in report.results]
    return _dumps((results, *report[1:]))


def decode_report(message: bytes) -> Report:
    results, *others = _loads(message)
    decoded: list[Result] = [_error(one) if isinstance(one, tuple) else one for one in results]
    return Report(decoded, *others)


def _dumps(value: Any) -> bytes:
    return marshal.dumps(value)


def _loads(message: bytes) -> Any:
    return marshal.loads(message)  # noqa: S302 - of our own process


def _plain_statement(statement: PlainStatement) -> PlainStatement:
    sql, params, must_change, may_use_reserve, row = statement
    plain = {_plain_value(name): _plain_value(value) for name, value in params.items()}
    return _plain_value(sql), plain, must_change, may_use_reserve, tuple(map(_plain_value, row))


def _plain_value(value: Any) -> Any:
    """Return a value that SQLite stores like this one."""
    if value is None:
        return value
    for kind, convert in _EXACT.items():
        if isinstance(value, kind):
            return convert(value)
    return ...  # as unstorable as the value


def _plain_error(error: Exception) -> _PlainError:
    nearest = next(kind for kind in type(error).__mro__ if _ERRORS.get(kind.__name__) is kind)
    code, name = getattr(error, "sqlite_errorcode", None), getattr(error, "sqlite_errorname", None)
    return nearest.__name__, str(error), code, name


def _error(plain: _PlainError) -> Exception:
    kind, sentence, code, name = plain
    error = _ERRORS[kind](*[sentence] * bool(sentence))
    if isinstance(error, sqlite3.Error) and code is not None and name is not None:
        error.sqlite_errorcode, error.sqlite_errorname = code, name
    return error
