"""`broker task`, `tasks` and `cancel`: through the running broker, else straight from the database."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from urllib.parse import quote

from broker.cli.screen import clear, complain, note, say, say_json
from broker.cli.shelf import doors, looks
from broker.client import Task
from broker.client.errors import describe_failure


async def show(task_id: str, *, as_json: bool, watch: bool) -> int:
    """0, or 1 if the watched task did not end well."""
    async with doors() as broker:
        async for document in looks(lambda: broker.ask("GET", _path(task_id)), watch):
            task = Task.parse(document["data"])
            say_json(document) if as_json else _tell(task)
            if task.ended:
                break
    return int(watch and task.status != "completed")


async def show_all(*, status: str | None, limit: int, as_json: bool, watch: bool) -> None:
    """The newest tasks; when watching, again after every change."""
    params = {"limit": str(limit)} | ({"status": status} if status else {})
    async with doors() as broker:
        async for document in looks(lambda: broker.ask("GET", "/api/tasks", params=params), watch):
            if as_json:
                say_json(document)
            else:
                _list([Task.parse(one) for one in document["data"]], watch)


async def cancel(task_id: str) -> None:
    """Raises what says why when it is too late."""
    async with doors() as broker:
        await broker.ask("DELETE", _path(task_id))
    say(f"{task_id} is canceled.")


def _path(task_id: str) -> str:
    return f"/api/task/{quote(task_id, safe='')}"


def _tell(task: Task) -> None:
    facts = {
        "task": task.id,
        "status": f"{task.status} ({', '.join(_progress(task))})",
        "model": f"{task.model}, {task.mode}, by {task.provider}, attempt {task.attempts}",
        "prompt": task.prompt,
        "created": task.raw.get("createdAt"),
        "updated": task.raw.get("updatedAt"),
        **{f"image {n}": image.url for n, image in enumerate(task.images, 1)},
    }
    for name, value in facts.items():
        say(f"{name:<10} {value}")
    if task.error:
        complain(describe_failure(task))


def _progress(task: Task) -> Iterator[str]:
    progress = task.progress
    yield task.stage or task.status
    if (place := progress.get("position")) is not None:
        yield f"place {place}"
    if word := progress.get("providerState"):
        yield f"the provider says {word}"
    if (percent := progress.get("percent")) is not None:
        yield f"{percent} %"
    if (seconds := progress.get("etaSeconds")) is not None:
        yield f"about {seconds} s left"


def _list(tasks: Sequence[Task], watch: bool) -> None:
    if watch:
        clear()
    if not tasks:
        note("No tasks.")
    for task in tasks:
        created = task.raw.get("createdAt")
        say(f"{task.id}  {task.status:<10}  {created}  {task.model}  {_short(task.prompt or '')}")


def _short(prompt: str) -> str:
    line = " ".join(prompt.split())
    return line if len(line) <= 40 else line[:39] + "…"
