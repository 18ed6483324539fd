"""Commands for tasks."""

from __future__ import annotations

from typing import Annotated

import typer

from broker.cli.commands.running import AsJson, Limit, Watch, run_command

app = typer.Typer()

TaskId = Annotated[str, typer.Argument(metavar="ID", help="Begins with task_.")]


@app.command()
def task(
    task_id: TaskId,
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
    *,
    search: Annotated[str | None, typer.Option(help="Only with these words in the prompt.")] = None,
    model: Annotated[str | None, typer.Option(help="Only of this model.")] = None,
    status: Annotated[
        str | None, typer.Option(help="Only this status: pending, processing, completed, failed or canceled.")
    ] = None,
    limit: Limit = 20,
    as_json: AsJson = False,
    watch: Watch = False,
) -> None:
    """List tasks, newest first."""
    from broker.cli.tasks import list_tasks

    filters = {"status": status, "q": search, "model": model, "limit": limit}
    run_command(list_tasks, filters, as_json=as_json, watch=watch)


@app.command()
def cancel(task_id: TaskId) -> None:
    """Cancel a task. A job that the provider has started may still be billed."""
    from broker.cli.tasks import cancel_task

    run_command(cancel_task, task_id)


@app.command()
def retry(task_id: TaskId, as_json: AsJson = False) -> None:
    """Order a failed task again, as a new one."""
    from broker.cli.tasks import retry_task

    run_command(retry_task, task_id, as_json=as_json)


@app.command()
def delete(task_id: TaskId) -> None:
    """Delete a task that has ended, with its images, at once."""
    from broker.cli.tasks import delete_task

    run_command(delete_task, task_id)


@app.command()
def pin(task_id: TaskId) -> None:
    """Keep a task and its images beyond the retention time."""
    from broker.cli.tasks import pin_task

    run_command(pin_task, task_id)


@app.command()
def unpin(task_id: TaskId) -> None:
    """Let retention delete a task again; at once, if its time is over."""
    from broker.cli.tasks import unpin_task

    run_command(unpin_task, task_id)
