"""Logs: one line per state change, a sentence and an action; never a prompt, key, token or image.

A line of ours goes straight to the handlers: an order writes two lines, and by way of the standard library's loggers
and structlog's own renderers each cost 55 to 80 µs, a fifth of the whole order; this way it is 16 to 18.
"""

from __future__ import annotations

import json
import logging
import logging.handlers
import re
import sys
from collections.abc import Callable, MutableMapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import structlog

log: structlog.stdlib.BoundLogger = structlog.get_logger("broker")

_HIDDEN: Final = "[hidden]"
_SECRET_NAMES: Final = frozenset({"authorization", "api_key", "key", "secret", "token", "prompt", "password", "cookie"})
_SECRET_VALUES: Final = re.compile(r"(?i)(bearer\s+|[?&](?:token|key|secret|signature|sig)=)[^\s&\"']+")
_UNQUOTED: Final = re.compile(r"[^\s=\"'\\]+")
_is_one_word: Final = re.compile(r"[!#-&(-<>-\[\]-~]+").fullmatch
"""The same in ASCII: nearly every value."""
_KEPT_DAYS: Final = 7

_Event = MutableMapping[str, Any]


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
    lines = _Lines(handlers)
    structlog.configure(
        processors=[structlog.contextvars.merge_contextvars, _complete],
        wrapper_class=structlog.make_filtering_bound_logger(lowest),
        logger_factory=lambda *_: lines,
        cache_logger_on_first_use=False,
    )


def safe_exc_info(error: Exception) -> Any:
    """Return for `exc_info` the type of an error and its traceback; its text may hold data of the caller."""
    return RuntimeError, RuntimeError(type(error).__qualname__), error.__traceback__


def hide_secrets(event: _Event) -> _Event:
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

    def __init__(self, event: _Event) -> None:
        self.msg = event


class _Lines:
    """Handlers of all lines, as the logger behind structlog."""

    def __init__(self, handlers: list[logging.Handler]) -> None:
        self._handlers = handlers

    def _write(self, event: _Event) -> None:
        record = _Record(event)
        for handler in self._handlers:
            handler.handle(record)

    debug = info = warning = error = critical = _write


def _complete(_: Any, level: str, event: _Event) -> tuple[tuple[_Event], dict[str, Any]]:
    """Add level, logger and time, write out an exception, and hide secrets; return the arguments of `_Lines`."""
    if event.get("exc_info"):
        event = structlog.processors.format_exc_info(None, level, event)
    event["level"], event["logger"] = "error" if level == "exception" else level, "broker"
    event["timestamp"] = _now()
    return (hide_secrets(event),), {}


def _now() -> str:
    return datetime.now(UTC).isoformat("T", "microseconds").removesuffix("+00:00") + "Z"


class _LineFormatter(logging.Formatter):
    """Renders lines of ours, and those of libraries in the same form."""

    def __init__(self, form: str, *, colors: bool, process: int | None) -> None:
        super().__init__()
        self._process = process
        self._render = _json_line if form == "json" else _colored_line() if colors else _plain_line

    def format(self, record: logging.LogRecord) -> str:
        event = record.msg if isinstance(record, _Record) else self._foreign_event(record)
        if self._process is not None:
            event["process"] = self._process
        return self._render(event)

    def _foreign_event(self, record: logging.LogRecord) -> _Event:
        event: _Event = {"event": record.getMessage(), "level": record.levelname.lower(), "logger": record.name}
        if record.exc_info:  # a plain traceback: the pretty ones print local variables, and with them keys
            event["exception"] = self.formatException(record.exc_info)
        event["timestamp"] = _now()
        return hide_secrets(event)


_json_line: Final[Callable[[_Event], str]] = json.JSONEncoder(ensure_ascii=False, default=repr).encode


def _plain_line(event: _Event) -> str:
    rest = {**event}
    moment, level, text, logger = (rest.pop(name) for name in ("timestamp", "level", "event", "logger"))
    exception = rest.pop("exception", None)
    fields = " ".join(
        [
            f"{name}={value}" if type(value) is str and _is_one_word(value) else f"{name}={_shown_value(value)}"
            for name, value in sorted(rest.items())
        ]
    )
    line = f"{moment} [{level:<9}] {text:<30} [{logger}] {fields}"
    return f"{line}\n{exception}" if exception else line


def _shown_value(value: Any) -> str:
    """Return a value as one word: quoted if it has a blank, a quote or a control character."""
    if not isinstance(value, str):
        return repr(value)
    return value if _UNQUOTED.fullmatch(value) and value.isprintable() else repr(value)


def _colored_line() -> Callable[[_Event], str]:
    render = structlog.dev.ConsoleRenderer(colors=True, exception_formatter=structlog.dev.plain_traceback)
    return lambda event: render(None, "", {**event})
