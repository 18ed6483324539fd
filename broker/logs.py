"""Logs: one line per state change, a sentence and an action; never a prompt, key, token or image.

A line of ours goes straight to the handlers: an order writes two lines, and by way of the standard library's loggers
and structlog each cost 55 to 80 µs, a fifth of the whole order; this way it is 10 to 11.
"""

from __future__ import annotations

import json
import logging
import logging.handlers
import re
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from contextvars import ContextVar
from functools import lru_cache, partial
from pathlib import Path
from types import TracebackType
from typing import Any, Final, TypeAlias

_HIDDEN: Final = "[hidden]"
_SECRET_NAMES: Final = frozenset({"authorization", "api_key", "key", "secret", "token", "prompt", "password", "cookie"})
_SECRET_VALUES: Final = re.compile(r"(?i)(bearer\s+|[?&](?:token|key|secret|signature|sig)=)[^\s&\"']+")
_UNQUOTED: Final = re.compile(r"[^\s=\"'\\]+")
_is_one_word: Final = re.compile(r"[!#-&(-<>-\[\]-~]+").fullmatch
"""The same in ASCII: nearly every value."""
_KEPT_DAYS: Final = 7

_COLORS: Final = {"debug": "32", "info": "32", "warning": "33", "error": "31", "critical": "31"}
_LOGGER: Final = logging.getLogger("broker")
_COLUMNS: Final = frozenset({"timestamp", "level", "event", "logger", "exception"})
"""Those of a plain line that are not written as fields."""
_MOMENT_WIDTH: Final = len("2026-01-31T12:00:00.000000Z")
_TEXT_START: Final = _MOMENT_WIDTH + len(" [warning  ]")

ExcInfo: TypeAlias = tuple[type[BaseException], BaseException, TracebackType | None]
LogEvent: TypeAlias = dict[str, Any]
"""The fields of a line; `event` is its sentence."""

request_id_of_lines: Final[ContextVar[str | None]] = ContextVar("request_id", default=None)
"""Of the request that is being answered; in each of its lines."""


class Log:
    """Writes lines: a sentence, an action and other fields."""

    sink: Callable[[LogEvent], None] | None = None
    """Takes every line that is not below the level; None before `configure_logging`: the standard library's logger."""

    def is_enabled_for(self, level: int) -> bool:
        return _LOGGER.isEnabledFor(level)

    def debug(self, text: str, **fields: Any) -> None:
        if _LOGGER.isEnabledFor(logging.DEBUG):
            self._write("debug", text, fields)

    def info(self, text: str, **fields: Any) -> None:
        if _LOGGER.isEnabledFor(logging.INFO):
            self._write("info", text, fields)

    def warning(self, text: str, **fields: Any) -> None:
        if _LOGGER.isEnabledFor(logging.WARNING):
            self._write("warning", text, fields)

    def error(self, text: str, *, exc_info: ExcInfo | None = None, **fields: Any) -> None:
        if _LOGGER.isEnabledFor(logging.ERROR):
            if exc_info is not None:
                fields["exception"] = "".join(traceback.format_exception(*exc_info)).rstrip("\n")
            self._write("error", text, fields)

    def critical(self, text: str, **fields: Any) -> None:
        if _LOGGER.isEnabledFor(logging.CRITICAL):
            self._write("critical", text, fields)

    def _write(self, level: str, text: str, fields: LogEvent) -> None:
        fields["event"], fields["level"] = text, level
        if (current := request_id_of_lines.get()) is not None:
            fields["request_id"] = current
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
        handlers.append(
            logging.handlers.TimedRotatingFileHandler(
                folder / name, when="midnight", backupCount=_KEPT_DAYS, encoding="utf-8", utc=True
            )
        )
    for handler in handlers:
        colors = handler is handlers[0] and sys.stderr.isatty()
        handler.setFormatter(_LineFormatter(form, colors=colors, process=process))
    root = logging.getLogger()
    root.handlers[:] = handlers
    lowest = logging.getLevelName(level.upper())
    root.setLevel(max(logging.INFO, lowest))  # debug lines of libraries hold complete bodies
    logging.getLogger("broker").setLevel(lowest)
    logging.getLogger("httpx").setLevel(logging.WARNING)  # it logs whole URLs
    logging.getLogger("httpcore").setLevel(logging.WARNING)
    log.sink = partial(_write_line, handlers)


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


# -- lines


class _Record(logging.LogRecord):
    """One line of ours, without what a record looks up and no handler of ours reads: thread, process, place."""

    name, args, exc_info, exc_text, stack_info, levelno = "broker", None, None, None, None, logging.INFO

    msg: Any

    def __init__(self, event: LogEvent) -> None:
        self.msg = event


def _write_line(handlers: Sequence[logging.Handler], event: LogEvent) -> None:
    record = _Record(_complete(event))
    for handler in handlers:
        handler.handle(record)


def _pass_to_library(event: LogEvent) -> None:
    _LOGGER.log(logging.getLevelName(event["level"].upper()), "%s", _plain_line(_complete(event)))


def _complete(event: LogEvent) -> LogEvent:
    event["logger"], event["timestamp"] = "broker", _now()
    return hide_secrets(event)


def _now() -> str:
    seconds, microseconds = divmod(time.time_ns() // 1000, 1_000_000)
    return f"{_second(seconds)}.{microseconds:06}Z"


@lru_cache(maxsize=1)
def _second(seconds: int) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds))


class _LineFormatter(logging.Formatter):
    """Renders lines of ours, and those of libraries in the same form."""

    def __init__(self, form: str, *, colors: bool, process: int | None) -> None:
        super().__init__()
        self._process = process
        self._render = _json_line if form == "json" else _colored_line if colors else _plain_line

    def format(self, record: logging.LogRecord) -> str:
        event = record.msg if isinstance(record, _Record) else self._foreign_event(record)
        if self._process is not None:
            event["process"] = self._process
        return self._render(event)

    def _foreign_event(self, record: logging.LogRecord) -> LogEvent:
        event: LogEvent = {"event": record.getMessage(), "level": record.levelname.lower(), "logger": record.name}
        if record.exc_info:  # a plain traceback: the pretty ones print local variables, and with them keys
            event["exception"] = self.formatException(record.exc_info)
        event["timestamp"] = _now()
        return hide_secrets(event)


_json_line: Final[Callable[[LogEvent], str]] = json.JSONEncoder(ensure_ascii=False, default=repr).encode


def _plain_line(event: LogEvent) -> str:
    fields = " ".join(
        [
            f"{name}={value}" if type(value) is str and _is_one_word(value) else _shown_field(name, value)
            for name, value in sorted(event.items())
            if name not in _COLUMNS
        ]
    )
    line = f"{event['timestamp']} [{event['level']:<9}] {event['event']:<30} [{event['logger']}] {fields}"
    return f"{line}\n{event['exception']}" if "exception" in event else line


def _shown_field(name: str, value: Any) -> str:
    """Return a field as one word: its value is quoted if it has a blank, a quote or a control character."""
    is_word = isinstance(value, str) and _UNQUOTED.fullmatch(value) and value.isprintable()
    return f"{name}={value}" if is_word else f"{name}={value!r}"


def _colored_line(event: LogEvent) -> str:
    line, color = _plain_line(event), _COLORS.get(event["level"], "0")
    moment, level, rest = line[:_MOMENT_WIDTH], line[_MOMENT_WIDTH:_TEXT_START], line[_TEXT_START:]
    return f"\x1b[2m{moment}\x1b[0m\x1b[{color}m{level}\x1b[0m{rest}"
