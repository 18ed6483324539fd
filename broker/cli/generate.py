"""`broker generate`: order images, wait, save."""

from __future__ import annotations

import tempfile
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import ExitStack, aclosing, asynccontextmanager
from pathlib import Path
from typing import Unpack

from broker.bootstrap import load_settings
from broker.cli import ExitCode
from broker.cli.connection import find_running_broker, quiet_logs
from broker.cli.console import CommandError, format_json, print_error, print_line, print_note, show_progress
from broker.cli.embedded import run_embedded_broker
from broker.client import AsyncClient, Task
from broker.client.async_client import OrderOptions
from broker.client.errors import describe_failure
from broker.net.hosts import local_base_url
from broker.settings import Settings


async def generate(prompt: str, *, out: Path | None, **options: Unpack[OrderOptions]) -> int:
    """Order, wait and save; NOT_DONE unless every image was made. out: file or folder; None is the current folder."""
    settings = load_settings()
    quiet_logs(settings)
    _check_folder(out)
    async with _connect_or_embed(settings) as client:
        order = await client.create(prompt, **options)
        for task_id in order.ids:
            print_note(f"order accepted: {task_id}")
        with show_progress("waiting for the image") as update:
            tasks = [await _wait_for_task(client, task_id, update) for task_id in order.ids]
        await _save_images(client, out, tasks)
    failures = [task for task in tasks if task.status != "completed"]
    for task in failures:
        print_error(describe_failure(task))
    return ExitCode.NOT_DONE if failures else ExitCode.DONE


async def show_dry_run(prompt: str, **options: Unpack[OrderOptions]) -> None:
    """Print what an order would cost, which providers may get it, and the request that the first one would get."""
    settings = load_settings()
    quiet_logs(settings)
    async with _connect_or_embed(settings) as client:
        preview = await client.dry_run(prompt, **options)
    price = "unknown" if preview["total"] is None else f"{preview['total']:g} {preview['unit']}"
    usd = "" if preview["usd"] is None else f" ({preview['usd']:g} USD)"
    print_line(f"price      {price}{usd}, {preview['qualifier']}")
    for route in preview["routes"]:
        role = "candidate" if route["candidate"] else "not chosen"
        print_line(f"{route['provider']:<10} {role}  {route['reason'] or ''}".rstrip())
    print_line(f"{preview['method']} {preview['url']}")
    print_line(format_json(preview["json"]))


async def _wait_for_task(client: AsyncClient, task_id: str, update: Callable[[str], None]) -> Task:
    """Report each change of the status and return the task once it has ended."""
    status = ""
    async with aclosing(client.events(task_id)) as changes:
        async for task in changes:
            if task.status != status:
                status = task.status
                update(f"{task_id} is {status}")
    return task


async def _save_images(client: AsyncClient, out: Path | None, tasks: Sequence[Task]) -> None:
    images = [(task, image) for task in tasks for image in task.images]
    for number, (task, image) in enumerate(images, 1):
        path = _target_path(out, f"{task.id}{Path(image.name).suffix}", number if len(images) > 1 else None)
        print_line(str(await client.download(image, path)))


def _check_folder(out: Path | None) -> None:
    if out is not None and not out.is_dir() and not out.absolute().parent.is_dir():
        raise CommandError(f"There is no folder {out.parent} to save the image in.")


def _target_path(out: Path | None, name: str, number: int | None) -> Path:
    """number: of this image among several; None for a single one."""
    if out is None or out.is_dir():
        return (out or Path()) / name
    return out if number is None else out.with_stem(f"{out.stem}-{number}")


@asynccontextmanager
async def _connect_or_embed(settings: Settings) -> AsyncIterator[AsyncClient]:
    """Connect to the running broker, or run one for this command.

    With a provider key it uses the real data, so that nothing paid for is lost; the sandbox uses a temporary folder.
    """
    async with find_running_broker(settings) as client:
        if client is not None:
            yield client
            return
    print_note(f"No broker answers at {local_base_url(settings.host, settings.port)}, so this command runs one.")
    with ExitStack() as stack:
        own = _sandbox_settings(settings, stack) if settings.sandboxed else _polling_settings(settings)
        async with run_embedded_broker(own) as (_, embedded):
            yield embedded


def _sandbox_settings(settings: Settings, stack: ExitStack) -> Settings:
    print_note(
        "No provider key: the sandbox makes a PRETEND PICTURE. A provider key brings real ones.",
        style="bold",
    )
    folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="broker-"))
    return settings.with_folder(Path(folder))


def _polling_settings(settings: Settings) -> Settings:
    """Return settings without a public URL: no tunnel leads to a random port, so the provider is polled."""
    return settings.model_copy(update={"webhook_base_url": "", "tunnel_api": "", "check_after": settings.poll_every})
