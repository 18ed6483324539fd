"""Running the body of a command: the event loop, and errors as sentences with exit codes."""

from __future__ import annotations

import gc
from collections.abc import Awaitable, Callable
from typing import Any, Final

import anyio

from broker.cli import ExitCode
from broker.cli.console import explain_error, print_error

YOUNG_OBJECTS: Final = 10_000
"""New objects before a garbage collection. A request makes hundreds that live until its response: with Python's 700,
collections look at the same objects again and again, which takes a tenth of the CPU of a create.
"""


def run_async(body: Callable[[], Awaitable[int | None]], **loop_options: Any) -> int:
    """Run a coroutine function in a loop of its own; return its exit code."""
    return anyio.run(body, backend_options=loop_options) or ExitCode.DONE


def run_lasting(body: Callable[[], Awaitable[int | None]]) -> int:
    """Do the same for a command that lasts: on uvloop where the platform has it.

    What was imported lasts as long: garbage collections leave it out, of which a full one stops the loop for 50 ms.
    """
    gc.freeze()
    gc.set_threshold(YOUNG_OBJECTS)
    try:
        import uvloop
    except ImportError:
        return run_async(body)
    return run_async(body, loop_factory=uvloop.new_event_loop)


def explain_errors(body: Callable[[], int]) -> int:
    """Return the exit code of `body`. Errors that a person can fix are printed; others are raised."""
    try:
        return body()
    except KeyboardInterrupt:
        return ExitCode.INTERRUPTED
    except BaseException as error:
        explanation = explain_error(error)
        if explanation is None:
            raise
        sentence, code = explanation
        print_error(sentence)
        return code
