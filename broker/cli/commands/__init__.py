"""Every command of `broker` with its options and help."""

from __future__ import annotations

import typer

from broker.cli.commands import accounts, general, operator, tasks, users
from broker.cli.standard_streams import open_standard_streams
from storage.file_modes import restrict_new_files

app = typer.Typer(
    help="A durable broker in front of Nano Banana image providers: nothing is lost, nothing is paid twice.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
for _part in (general, tasks, operator, accounts, users):
    app.add_typer(_part.app)


def main() -> None:
    open_standard_streams()
    restrict_new_files()
    app(prog_name="broker")
