"""How a command runs, and the options that several commands have."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import partial
from typing import Annotated, ParamSpec

import typer

from broker.cli import ExitCode

P = ParamSpec("P")

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON, one document per line.")]
Watch = Annotated[bool, typer.Option("--watch", help="Keep running and print each change.")]
Limit = Annotated[int, typer.Option(min=1, max=100, help="Number of entries.")]


def run_command(body: Callable[P, Awaitable[int | None]], *args: P.args, **kwargs: P.kwargs) -> None:
    """Run the coroutine function of a command. Errors that a person can fix are one sentence without a traceback."""
    import anyio

    from broker.cli.console import explain_error, print_error

    try:
        code = anyio.run(partial(body, *args, **kwargs))
    except KeyboardInterrupt:
        code = ExitCode.INTERRUPTED
    except BaseException as error:
        explanation = explain_error(error)
        if explanation is None:
            raise
        sentence, code = explanation
        print_error(sentence)
    raise typer.Exit(code or ExitCode.DONE)
