"""Logs: one line per state change, a sentence and an action; never a prompt, key, token or image."""

from __future__ import annotations

import logging
import logging.handlers
import re
import sys
from collections.abc import MutableMapping
from pathlib import Path
from typing import Any

import structlog

log: structlog.stdlib.BoundLogger = structlog.get_logger("broker")

_HIDDEN = "[hidden]"
_SECRET_NAMES = frozenset({"authorization", "api_key", "key", "secret", "token", "prompt", "password", "cookie"})
_SECRET_VALUES = re.compile(r"(?i)(bearer\s+|[?&](?:token|key|secret|signature|sig)=)[^\s&\"']+")
_KEPT_DAYS = 7


def hide_secrets(_: Any, __: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """Hide values that look like secrets, by name and by shape, in case a call site missed one."""
    for name, value in event.items():
        if name in _SECRET_NAMES:
            event[name] = _HIDDEN
        elif isinstance(value, str):
            event[name] = _SECRET_VALUES.sub(rf"\1{_HIDDEN}", value)
    return event


def configure_logging(level: str, form: str, folder: Path | None) -> None:
    """Log to standard error, and with a folder also to `app.log` there: a new file each midnight, seven kept.

    form: `console` for people, `json` for machines.
    """
    handlers: list[logging.Handler] = [logging.StreamHandler(sys.stderr)]
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
        handlers.append(
            logging.handlers.TimedRotatingFileHandler(
                folder / "app.log", when="midnight", backupCount=_KEPT_DAYS, encoding="utf-8", utc=True
            )
        )
    for handler in handlers:
        handler.setFormatter(_formatter(form, colors=handler is handlers[0] and sys.stderr.isatty()))
    root = logging.getLogger()
    root.handlers[:] = handlers
    root.setLevel(
        max(logging.INFO, logging.getLevelName(level.upper()))
    )  # debug lines of libraries hold complete bodies
    logging.getLogger("broker").setLevel(level.upper())
    logging.getLogger("httpx").setLevel(logging.WARNING)  # it logs whole URLs
    logging.getLogger("httpcore").setLevel(logging.WARNING)
    structlog.configure(
        processors=[structlog.stdlib.filter_by_level, *_SHARED, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        wrapper_class=structlog.stdlib.BoundLogger,
        logger_factory=structlog.stdlib.LoggerFactory(),
        cache_logger_on_first_use=False,
    )


def safe_exc_info(error: Exception) -> Any:
    """Return for `exc_info` the type of an error and its traceback; its text may hold data of the caller."""
    return RuntimeError, RuntimeError(type(error).__qualname__), error.__traceback__


_SHARED: list[structlog.typing.Processor] = [
    structlog.contextvars.merge_contextvars,
    structlog.stdlib.add_log_level,
    structlog.stdlib.add_logger_name,
    structlog.processors.TimeStamper(fmt="iso", utc=True),
    hide_secrets,
]


def _formatter(form: str, *, colors: bool) -> logging.Formatter:
    # plain tracebacks: the pretty ones print local variables, and with them keys
    renderer: structlog.typing.Processor = (
        structlog.processors.JSONRenderer(ensure_ascii=False)
        if form == "json"
        else structlog.dev.ConsoleRenderer(colors=colors, exception_formatter=structlog.dev.plain_traceback)
    )
    last = [structlog.processors.format_exc_info] if form == "json" else []
    return structlog.stdlib.ProcessorFormatter(
        foreign_pre_chain=_SHARED,
        processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *last, hide_secrets, renderer],
    )
