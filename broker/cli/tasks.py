"""`broker task`, `broker tasks`, and the commands that change a task."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Final

from pydantic import TypeAdapter

from broker.cli import ExitCode
from broker.cli.connection import Document, connect_broker, record_path, show_document
from broker.cli.console import print_error, print_facts, print_json, print_line, print_note
from broker.client import Result, Task
from broker.client.errors import describe_failure

MAX_PROMPT_CHARACTERS: Final = 40

_PARSER: Final = TypeAdapter(Task)


async def show_task(task_id: str, *, as_json: bool, watch: bool) -> int:
    """Print a task; with `watch` until it has ended, and NOT_DONE if it has no image then."""
    document = await show_document(
        record_path("task", task_id),
        _print_task,
        as_json=as_json,
        watch=watch,
        until=lambda document: _parse_task(document).ended,
    )
    return ExitCode.NOT_DONE if watch and _parse_task(document).status != "completed" else ExitCode.DONE


async def show_attempts(task_id: str, *, as_json: bool) -> None:
    """Print the routes and attempts of a task."""
    await show_document(f"{record_path('task', task_id)}/attempts", _print_attempts, as_json=as_json)


async def list_tasks(filters: Mapping[str, str | int | None], *, as_json: bool, watch: bool) -> None:
    """Print the newest tasks; with `watch` again after each change. filters: of `GET /api/tasks`."""
    await show_document("/api/tasks", _print_tasks, as_json=as_json, watch=watch, filters=filters)


async def cancel_task(task_id: str) -> None:
    """Cancel a task; raises the broker's error when it is too late."""
    async with connect_broker() as broker:
        await broker.client.cancel(task_id)
    print_line(f"{task_id} is canceled.")


async def retry_task(task_id: str, *, as_json: bool) -> None:
    """Order a failed task again; raises the broker's error for others."""
    async with connect_broker() as broker:
        order = await broker.client.ask("POST", f"{record_path('task', task_id)}/retry")
        if not broker.is_running:
            print_note("No broker answers at BROKER_HOST and BROKER_PORT: the next worker submits it.")
    if as_json:
        print_json(order)
        return
    for new_id in order["taskIds"]:
        print_line(f"{task_id} is ordered again as {new_id}.")


async def delete_task(task_id: str) -> None:
    async with connect_broker() as broker:
        await broker.client.delete(task_id)
    print_line(f"{task_id} is deleted.")


async def pin_task(task_id: str) -> None:
    async with connect_broker() as broker:
        await broker.client.pin(task_id)
    print_line(f"{task_id} is kept until it is unpinned or deleted.")


async def unpin_task(task_id: str) -> None:
    async with connect_broker() as broker:
        task = await broker.client.unpin(task_id)
    expiry = f": it is deleted at {task.raw['expiresAt']}" if task.raw["expiresAt"] else ""
    print_line(f"{task_id} is unpinned{expiry}.")


def _parse_task(document: Document) -> Task:
    return _PARSER.validate_python(document["data"])


def _print_task(document: Document) -> None:
    task = _parse_task(document)
    print_facts(
        {
            "task": task.id,
            "status": f"{task.status} ({', '.join(_describe_progress(task))})",
            "model": f"{task.model}, {task.mode}, by {task.provider}, attempt {task.attempts}",
            "prompt": task.prompt,
            "created": task.raw["createdAt"],
            "updated": task.raw["updatedAt"],
            **{f"image {n}": _describe_image(image) for n, image in enumerate(task.images, 1)},
            **{f"text {n}": text for n, text in enumerate(task.texts, 1)},
        }
    )
    if task.error:
        print_error(describe_failure(task))


def _print_attempts(document: Document) -> None:
    for route in document["data"]["routes"]:
        when = f"  {route['movedAt']}" if route["movedAt"] else ""
        role = "candidate" if route["candidate"] else "not chosen"
        print_line(f"{route['provider']:<10} {role:<10}{when}  {route['reason'] or ''}".rstrip())
    for attempt in document["data"]["attempts"]:
        cost = "" if attempt["cost"] is None else f"  {attempt['cost']['amount']:g} {attempt['cost']['unit'] or ''}"
        print_line(
            f"{attempt['number']}  {attempt['sentAt']}  {attempt['provider']}  key {attempt['keyId']}  "
            f"{attempt['outcome']}  {attempt['code'] or ''}  billed: {attempt['billed']}{cost}"
        )


def _describe_image(image: Result) -> str:
    other_size = f" ({image.width}x{image.height}, not the size that was ordered)" if image.mismatch else ""
    return f"{image.url}{other_size}"


def _describe_progress(task: Task) -> Iterator[str]:
    progress = task.progress
    yield progress["stage"]
    if (position := progress["position"]) is not None:
        yield f"place {position}"
    if state := progress["providerState"]:
        yield f"the provider says {state}"
    if (percent := progress["percent"]) is not None:
        yield f"{percent} %"
    if (seconds := progress["etaSeconds"]) is not None:
        yield f"about {seconds} s left"


def _print_tasks(document: Document) -> None:
    if not document["data"]:
        print_note("No tasks.")
    for task in document["data"]:
        prompt = f"(of {task['owner']})" if "withheld" in task else " ".join(task["prompt"].split())
        if len(prompt) > MAX_PROMPT_CHARACTERS:
            prompt = prompt[: MAX_PROMPT_CHARACTERS - 1] + "…"
        print_line(f"{task['id']}  {task['status']:<10}  {task['createdAt']}  {task['model']}  {prompt}")
