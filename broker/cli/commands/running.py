"""How a command runs, and the options that several commands have."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import partial
from typing import Annotated, ParamSpec

import typer

P = ParamSpec("P")

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON, one document per line.")]
Watch = Annotated[bool, typer.Option("--watch", help="Keep running and print each change.")]
Limit = Annotated[int, typer.Option(min=1, max=100, help="Number of entries.")]


def run_service(body: Callable[P, int], *args: P.args, **kwargs: P.kwargs) -> None:
    """Run a command that lasts, and that runs loops of its own; errors as for other commands."""
    from broker.cli.running import explain_errors

    raise typer.Exit(explain_errors(partial(body, *args, **kwargs)))


def run_command(body: Callable[P, Awaitable[int | None]], *args: P.args, **kwargs: P.kwargs) -> None:
    """Run the coroutine function of a command. Errors that a person can fix are one sentence without a traceback."""
    from broker.cli.running import explain_errors, run_async

    raise typer.Exit(explain_errors(lambda: run_async(partial(body, *args, **kwargs))))
