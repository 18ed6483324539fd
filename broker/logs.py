"""Logs: one line per state change, a sentence and an action; never a prompt, key, token or image.

A line of ours goes straight to the outputs, and the lines of one turn of an event loop are written together: each write
releases the interpreter's lock, and if another thread waits for that, both pay for its wake-up, more than for the line.
"""

from __future__ import annotations

import asyncio
import json
import logging
import logging.handlers
import re
import sys
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from functools import lru_cache, partial
from math import isfinite
from operator import itemgetter
from pathlib import Path
from types import NoneType, TracebackType
from typing import Any, Final, TypeAlias

_HIDDEN: Final = "[hidden]"
_SECRET_NAMES: Final = frozenset({"authorization", "api_key", "key", "secret", "token", "prompt", "password", "cookie"})
_SECRET_VALUES: Final = re.compile(r"(?i)(bearer\s+|[?&](?:token|key|secret|signature|sig)=)[^\s&\"']+")
_UNQUOTED: Final = re.compile(r"[^\s=\"'\\]+")
_SIMPLE_TYPES: Final = frozenset({str, int, float, bool, NoneType})
"""Those whose values are the same words in every line, and in `str` and `repr`; a `str` if its characters are plain."""
_PLAIN: Final = bytes(code for code in range(0x21, 0x7F) if chr(code) not in "\"'\\?&=")
"""The characters of values that are written as they are, and show no secret."""
_PLAIN_JSON: Final = bytes(code for code in range(0x20, 0x7F) if chr(code) not in '"\\?&')
"""The same for JSON, where values are quoted."""

MAX_BLOCK_BYTES: Final = 4096
"""Of lines written together. Processes share standard error, and a longer write to a pipe may be torn by others."""
_PATIENT_LEVELS: Final = frozenset({"debug", "info"})
_KEPT_DAYS: Final = 7

_COLORS: Final = {"debug": "32", "info": "32", "warning": "33", "error": "31", "critical": "31"}
_LOGGER: Final = logging.getLogger("broker")
_TRACEBACKS: Final = logging.Formatter()
_COLUMNS: Final = frozenset({"timestamp", "level", "event", "logger", "exception"})
"""Those of a plain line that are not written as fields."""
_MOMENT_WIDTH: Final = len("2026-01-31T12:00:00.000000Z")
_TEXT_START: Final = _MOMENT_WIDTH + len(" [warning  ]")

ExcInfo: TypeAlias = tuple[type[BaseException], BaseException, TracebackType | None]
LogEvent: TypeAlias = dict[str, Any]
"""The fields of a line; `event` is its sentence."""


class RequestLine:
    """The line at the end of the request that is being answered, whose id is in all lines of the request."""

    __slots__ = ("facts", "is_open", "request_id")

    def __init__(self, request_id: str) -> None:
        self.request_id = request_id
        self.facts: LogEvent = {}
        """Fields of a line that it replaces."""
        self.is_open = True
        """It takes facts: it has none, and is not written until the response is, which does not wait for a task."""


request_line: Final[ContextVar[RequestLine | None]] = ContextVar("request_line", default=None)


class Log:
    """Writes lines: a sentence, an action and other fields."""

    sink: Callable[[LogEvent], None] | None = None
    """Takes every line that is not below the level; None before `configure_logging`: the standard library's logger."""
    is_enabled_for: Final = _LOGGER.isEnabledFor

    def debug(self, text: str, **fields: Any) -> None:
        if _LOGGER.isEnabledFor(logging.DEBUG):
            self.write("debug", text, fields)

    def info(self, text: str, **fields: Any) -> None:
        if _LOGGER.isEnabledFor(logging.INFO):
            self.write("info", text, fields)

    def warning(self, text: str, **fields: Any) -> None:
        if _LOGGER.isEnabledFor(logging.WARNING):
            self.write("warning", text, fields)

    def error(self, text: str, *, exc_info: ExcInfo | None = None, **fields: Any) -> None:
        if _LOGGER.isEnabledFor(logging.ERROR):
            if exc_info is not None:
                fields["exception"] = "".join(traceback.format_exception(*exc_info)).rstrip("\n")
            self.write("error", text, fields)

    def critical(self, text: str, **fields: Any) -> None:
        if _LOGGER.isEnabledFor(logging.CRITICAL):
            self.write("critical", text, fields)

    def note_change(self, text: str, *, action: str, **fields: Any) -> None:
        """Add a change to the line of the current request, with its action as `change`; or write a line of its own.

        It has its own if there is no request, or if the line of the request comes late or has a change already.
        """
        current = request_line.get()
        if current is None or not current.is_open:
            self.info(text, action=action, **fields)
            return
        current.facts, current.is_open = {"change": action, **fields}, False

    def write(self, level: str, text: str, fields: LogEvent) -> None:
        """Write a line of a level that is enabled. fields: the line is made in this dict."""
        fields["event"], fields["level"] = text, level
        if (current := request_line.get()) is not None:
            fields["request_id"] = current.request_id
        (self.sink or _pass_to_library)(fields)


log: Final = Log()


def configure_logging(level: str, form: str, folder: Path | None, *, process: int | None = None) -> None:
    """Log to standard error, and with a folder also to `app.log` there: a new file each midnight, seven kept.

    form: `console` for people, `json` for machines. process: number of one of several processes; it is in every line,
    and its file is `app-1.log`, because two processes cannot rotate one file.
    """
    name = "app.log" if process is None else f"app-{process}.log"
    handlers: list[logging.Handler] = [logging.StreamHandler(sys.stderr)]
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
        rotating = partial(logging.handlers.TimedRotatingFileHandler, when="midnight", backupCount=_KEPT_DAYS, utc=True)
        handlers.append(rotating(folder / name, encoding="utf-8", errors="backslashreplace"))
    has_colors = sys.stderr.isatty() and form != "json"
    for handler in handlers:
        handler.setFormatter(_BlockFormatter(has_colors=has_colors and handler is handlers[0]))
    writer = _LineWriter(handlers, form, process)
    root = logging.getLogger()
    root.handlers[:] = [writer]
    lowest = logging.getLevelName(level.upper())
    root.setLevel(max(logging.INFO, lowest))  # debug lines of libraries hold complete bodies
    logging.getLogger("broker").setLevel(lowest)
    logging.getLogger("httpx").setLevel(logging.WARNING)  # it logs whole URLs
    logging.getLogger("httpcore").setLevel(logging.WARNING)
    log.sink = writer.write_event


def safe_exc_info(error: BaseException) -> ExcInfo:
    """Return for `exc_info` the type of an error and its traceback; its text may hold data of the caller."""
    return RuntimeError, RuntimeError(type(error).__qualname__), error.__traceback__


def hide_secrets(event: LogEvent) -> LogEvent:
    """Hide values that look like secrets, by name and by shape, in case a call site missed one."""
    if _SECRET_NAMES.isdisjoint(event) and not _may_hold_secrets("\n".join(map(str, event.values()))):
        return event
    for name, value in event.items():
        if name in _SECRET_NAMES:
            event[name] = _HIDDEN
        elif isinstance(value, str):
            event[name] = _SECRET_VALUES.sub(_hide, value)
    return event


def _may_hold_secrets(text: str) -> bool:
    """Return True if `_SECRET_VALUES` could match: to search a usual line for it takes a fifth of the line's time."""
    return "?" in text or "&" in text or "bearer" in text.lower()


def _hide(match: re.Match[str]) -> str:
    return match[1] + _HIDDEN


# -- writing


class _LineWriter(logging.Handler):
    """Writes lines of ours and of libraries to all outputs, in order; those of one turn of an event loop together.

    A line is written at once, with those before it, if it is a warning or worse, or if this thread runs no loop. So a
    process that is killed loses the lines of one turn at most.
    """

    def __init__(self, outputs: Sequence[logging.Handler], form: str, process: int | None) -> None:
        super().__init__()
        self._outputs = outputs
        self._render, self._render_any = (_render_json, _json_line) if form == "json" else (_render_plain, _plain_line)
        self._process = process
        self._lock = threading.RLock()
        self._lines: list[str] = []
        self._bytes = 0
        self._flushing: tuple[asyncio.AbstractEventLoop, int] | None = None
        """The loop that writes the lines at the end of its turn, and its thread."""

    def write_event(self, event: LogEvent) -> None:
        """Take a line of ours."""
        event["logger"], event["timestamp"] = "broker", _now()
        if self._process is not None:
            event["process"] = self._process
        self._add(self._render(event), is_urgent=event["level"] not in _PATIENT_LEVELS)

    def emit(self, record: logging.LogRecord) -> None:
        """Take a line of a library."""
        try:
            event: LogEvent = {"event": record.getMessage(), "level": record.levelname.lower(), "logger": record.name}
            if record.exc_info:  # a plain traceback: the pretty ones print local variables, and with them keys
                event["exception"] = _TRACEBACKS.formatException(record.exc_info)
            event["timestamp"] = _now()
            if self._process is not None:
                event["process"] = self._process
            self._add(self._render_any(hide_secrets(event)), is_urgent=record.levelno >= logging.WARNING)
        except Exception:
            self.handleError(record)

    def flush(self) -> None:
        fresh = list[str]()
        with self._lock:
            # a finalizer may log wherever something is made, so nothing is made here
            lines, self._lines, self._bytes = self._lines, fresh, 0
            if lines:
                block = _Block(lines)
                for output in self._outputs:
                    output.handle(block)

    def close(self) -> None:
        self.flush()
        for output in self._outputs:
            output.close()
        super().close()

    def _add(self, line: str, *, is_urgent: bool) -> None:
        size = (len(line) if line.isascii() else len(line.encode("utf-8", "replace"))) + 1
        with self._lock:
            if self._bytes + size > MAX_BLOCK_BYTES:
                self.flush()
            self._lines.append(line)
            self._bytes += size
            if is_urgent or not self._flush_soon():
                self.flush()

    def _flush_soon(self) -> bool:
        """Let this thread's loop write the lines at the end of its turn. Return False if it has none."""
        thread = threading.get_ident()
        if self._flushing is not None and self._flushing[1] == thread and self._flushing[0].is_running():
            return True  # to ask for the running loop is a call of the kernel
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:
            return False
        self._flushing = loop, thread
        loop.call_soon(self._end_turn)
        return True

    def _end_turn(self) -> None:
        self._flushing = None
        self.flush()


class _Block(logging.LogRecord):
    """Rendered lines, without what a record looks up and no output reads: thread, process, place."""

    name, args, exc_info, exc_text, stack_info, levelno = "broker", None, None, None, None, logging.INFO

    msg: Any

    def __init__(self, lines: list[str]) -> None:
        self.msg = lines


class _BlockFormatter(logging.Formatter):
    """Joins the lines of a block, with colors for a terminal."""

    def __init__(self, *, has_colors: bool) -> None:
        super().__init__()
        self._has_colors = has_colors

    def format(self, record: logging.LogRecord) -> str:
        lines: Any = record.msg
        return "\n".join(map(_colored, lines) if self._has_colors else lines)


def _pass_to_library(event: LogEvent) -> None:
    event["logger"], event["timestamp"] = "broker", _now()
    _LOGGER.log(logging.getLevelName(event["level"].upper()), "%s", _render_plain(event))


# -- rendering


def _now() -> str:
    seconds, nanoseconds = divmod(time.time_ns(), 1_000_000_000)
    return f"{_second(seconds)}.{nanoseconds // 1000:06}Z"


@lru_cache(maxsize=1)
def _second(seconds: int) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds))


@dataclass(frozen=True, slots=True)
class _Shape:
    """What lines have in common that have the same sentence, level, fields and types of values."""

    head: str
    """Of a plain line, from its level to its logger."""
    values: Callable[[LogEvent], tuple[Any, ...]]
    template: str
    separators: bytes
    """All of a line but the characters of `_PLAIN` or `_PLAIN_JSON`, unless a value has one that is neither."""
    floats: tuple[str, ...]


def _render_plain(event: LogEvent) -> str:
    shape = _plain_shape(event["event"], event["level"], event["logger"], (*event,), (*map(type, event.values()),))
    if shape is not None:
        fields = shape.template % shape.values(event)
        rest = fields.encode("ascii", "replace").translate(None, _PLAIN)
        if rest == shape.separators and "= " not in fields and fields[-1] != "=":
            return f"{event['timestamp']}{shape.head}{fields}"
    return _plain_line(hide_secrets(event))


def _render_json(event: LogEvent) -> str:
    shape = _json_shape((*event,), (*map(type, event.values()),))
    if shape is not None:
        line = shape.template % shape.values(event)
        if (
            line.encode("ascii", "replace").translate(None, _PLAIN_JSON) == shape.separators
            and "bearer" not in line.lower()
            and all(map(isfinite, [event[name] for name in shape.floats]))
        ):
            return line
    return _json_line(hide_secrets(event))


@lru_cache(maxsize=512)
def _plain_shape(
    sentence: str, level: str, logger: str, names: tuple[str, ...], types: tuple[type, ...]
) -> _Shape | None:
    """Return the shape of the plain lines with these, or None if each such line needs a look at each value."""
    shown = sorted(name for name in names if name not in _COLUMNS)
    if not _has_shape(names, types) or len(shown) < 2 or _may_hold_secrets(sentence):
        return None
    return _Shape(
        head=f" [{level:<9}] {sentence:<30} [{logger}] ",
        values=itemgetter(*shown),
        template=" ".join(f"{name}=%s" for name in shown),
        separators=b" ".join([b"="] * len(shown)),
        floats=(),
    )


@lru_cache(maxsize=512)
def _json_shape(names: tuple[str, ...], types: tuple[type, ...]) -> _Shape | None:
    if not _has_shape(names, types) or bool in types:
        return None
    forms = {str: '"%s"', NoneType: "null%.0s"}
    fields = ", ".join(f'"{name}": {forms.get(of, "%s")}' for name, of in zip(names, types, strict=True))
    return _Shape(
        head="",
        values=itemgetter(*names),
        template=f"{{{fields}}}",
        separators=b'"' * (2 * len(names) + 2 * types.count(str)),
        floats=tuple(name for name, of in zip(names, types, strict=True) if of is float),
    )


def _has_shape(names: tuple[str, ...], types: tuple[type, ...]) -> bool:
    return _SIMPLE_TYPES.issuperset(types) and _SECRET_NAMES.isdisjoint(names) and "exception" not in names


_json_line: Final[Callable[[LogEvent], str]] = json.JSONEncoder(ensure_ascii=False, default=repr).encode


def _plain_line(event: LogEvent) -> str:
    fields = " ".join(_shown_field(name, value) for name, value in sorted(event.items()) if name not in _COLUMNS)
    line = f"{event['timestamp']} [{event['level']:<9}] {event['event']:<30} [{event['logger']}] {fields}"
    return f"{line}\n{event['exception']}" if "exception" in event else line


def _shown_field(name: str, value: Any) -> str:
    """Return a field as one word: its value is quoted if it has a blank, a quote or a control character."""
    is_word = isinstance(value, str) and _UNQUOTED.fullmatch(value) and value.isprintable()
    return f"{name}={value}" if is_word else f"{name}={value!r}"


def _colored(line: str) -> str:
    moment, level, rest = line[:_MOMENT_WIDTH], line[_MOMENT_WIDTH:_TEXT_START], line[_TEXT_START:]
    return f"\x1b[2m{moment}\x1b[0m\x1b[{_COLORS.get(level.strip(' []'), '0')}m{level}\x1b[0m{rest}"
