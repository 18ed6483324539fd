"""Commands for tasks."""

from __future__ import annotations

from typing import Annotated

import typer

from broker.cli.commands.running import AsJson, Limit, Watch, run_command

app = typer.Typer()


@app.command()
def task(
    task_id: Annotated[str, typer.Argument(metavar="ID")],
    *,
    attempts: Annotated[
        bool, typer.Option("--attempts", help="Show every attempt, and why each provider was or was not chosen.")
    ] = False,
    as_json: AsJson = False,
    watch: Watch = False,
) -> None:
    """Show a task."""
    from broker.cli.tasks import show_attempts, show_task

    if attempts:
        run_command(show_attempts, task_id, as_json=as_json)
    run_command(show_task, task_id, as_json=as_json, watch=watch)


@app.command()
def tasks(
    status: Annotated[
        str | None, typer.Option(help="Only this status: pending, processing, completed, failed or canceled.")
    ] = None,
    limit: Limit = 20,
    as_json: AsJson = False,
    watch: Watch = False,
) -> None:
    """List tasks, newest first."""
    from broker.cli.tasks import list_tasks

    run_command(list_tasks, status=status, limit=limit, as_json=as_json, watch=watch)


@app.command()
def cancel(task_id: Annotated[str, typer.Argument(metavar="ID")]) -> None:
    """Cancel a task. A job that the provider has started may still be billed."""
    from broker.cli.tasks import cancel_task

    run_command(cancel_task, task_id)
