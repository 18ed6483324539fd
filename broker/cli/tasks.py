"""`broker task`, `broker tasks` and `broker cancel`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from urllib.parse import quote

from broker.cli.connection import connect_broker, poll_changes
from broker.cli.console import clear_screen, print_error, print_facts, print_json, print_line, print_note
from broker.cli.exit_codes import ExitCode
from broker.client import Task
from broker.client.errors import describe_failure


async def show_task(task_id: str, *, as_json: bool, watch: bool) -> int:
    """Print a task; with `watch` until it has ended, and NOT_DONE if it has no image then."""
    async with connect_broker() as broker:
        async for document in poll_changes(lambda: broker.client.ask("GET", _task_path(task_id)), watch):
            task = Task.parse(document["data"])
            print_json(document) if as_json else _print_task(task)
            if task.ended:
                break
    return ExitCode.NOT_DONE if watch and task.status != "completed" else ExitCode.DONE


async def list_tasks(*, status: str | None, limit: int, as_json: bool, watch: bool) -> None:
    """Print the newest tasks; with `watch` again after each change."""
    params = {"limit": str(limit)} | ({"status": status} if status else {})
    async with connect_broker() as broker:
        async for document in poll_changes(lambda: broker.client.ask("GET", "/api/tasks", params=params), watch):
            if as_json:
                print_json(document)
                continue
            if watch:
                clear_screen()
            _print_list([Task.parse(task) for task in document["data"]])


async def cancel_task(task_id: str) -> None:
    """Cancel a task; raises the broker's error when it is too late."""
    async with connect_broker() as broker:
        await broker.client.ask("DELETE", _task_path(task_id))
    print_line(f"{task_id} is canceled.")


def _task_path(task_id: str) -> str:
    return f"/api/task/{quote(task_id, safe='')}"


def _print_task(task: Task) -> None:
    print_facts(
        {
            "task": task.id,
            "status": f"{task.status} ({', '.join(_describe_progress(task))})",
            "model": f"{task.model}, {task.mode}, by {task.provider}, attempt {task.attempts}",
            "prompt": task.prompt,
            "created": task.raw.get("createdAt"),
            "updated": task.raw.get("updatedAt"),
            **{f"image {n}": image.url for n, image in enumerate(task.images, 1)},
        }
    )
    if task.error:
        print_error(describe_failure(task))


def _describe_progress(task: Task) -> Iterator[str]:
    progress = task.progress
    yield task.stage or task.status
    if (position := progress.get("position")) is not None:
        yield f"place {position}"
    if state := progress.get("providerState"):
        yield f"the provider says {state}"
    if (percent := progress.get("percent")) is not None:
        yield f"{percent} %"
    if (seconds := progress.get("etaSeconds")) is not None:
        yield f"about {seconds} s left"


def _print_list(tasks: Sequence[Task]) -> None:
    if not tasks:
        print_note("No tasks.")
    for task in tasks:
        created = task.raw.get("createdAt")
        print_line(f"{task.id}  {task.status:<10}  {created}  {task.model}  {_shorten_prompt(task.prompt or '')}")


def _shorten_prompt(prompt: str) -> str:
    line = " ".join(prompt.split())
    return line if len(line) <= 40 else line[:39] + "…"
