"""How a command runs, and the options that several commands have."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import partial
from typing import Annotated, Any, ParamSpec

import typer

from broker.cli import ExitCode

P = ParamSpec("P")

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON, one document per line.")]
Watch = Annotated[bool, typer.Option("--watch", help="Keep running and print each change.")]
Limit = Annotated[int, typer.Option(min=1, max=100, help="Number of entries.")]


def run_service(body: Callable[P, Awaitable[int | None]], *args: P.args, **kwargs: P.kwargs) -> None:
    """Run a command that lasts: like the others, but on uvloop where the platform has it."""
    try:
        import uvloop
    except ImportError:
        _run(partial(body, *args, **kwargs), {})
    else:
        _run(partial(body, *args, **kwargs), {"loop_factory": uvloop.new_event_loop})


def run_command(body: Callable[P, Awaitable[int | None]], *args: P.args, **kwargs: P.kwargs) -> None:
    """Run the coroutine function of a command. Errors that a person can fix are one sentence without a traceback."""
    _run(partial(body, *args, **kwargs), {})


def _run(body: Callable[[], Awaitable[int | None]], loop_options: dict[str, Any]) -> None:
    import anyio

    from broker.cli.console import explain_error, print_error

    try:
        code = anyio.run(body, backend_options=loop_options)
    except KeyboardInterrupt:
        code = ExitCode.INTERRUPTED
    except BaseException as error:
        explanation = explain_error(error)
        if explanation is None:
            raise
        sentence, code = explanation
        print_error(sentence)
    raise typer.Exit(code or ExitCode.DONE)
