"""Log lines in a list, and logging as it was before a test."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

from broker.logs import LogEvent, log


@contextmanager
def captured_lines(lowest: int = logging.INFO) -> Iterator[list[LogEvent]]:
    """Yield the list of the lines that are logged while the block runs, before secrets are hidden."""
    lines = list[LogEvent]()
    logger = logging.getLogger("broker")
    sink, level = log.sink, logger.level
    log.sink = lines.append
    if not logger.isEnabledFor(lowest):
        logger.setLevel(lowest)
    try:
        yield lines
    finally:
        log.sink = sink
        logger.setLevel(level)


@contextmanager
def restored_logging() -> Iterator[None]:
    """Undo what the block configures."""
    root, ours = logging.getLogger(), logging.getLogger("broker")
    handlers, level, own_level, sink = root.handlers[:], root.level, ours.level, log.sink
    try:
        yield
    finally:
        for handler in set(root.handlers) - set(handlers):
            handler.close()
        root.handlers[:] = handlers
        root.setLevel(level)
        ours.setLevel(own_level)
        log.sink = sink
