"""`broker generate`: order images, wait, save."""

from __future__ import annotations

import tempfile
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import AsyncExitStack, aclosing, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from pydantic import SecretStr

from broker.bootstrap import load_settings
from broker.cli.connection import find_running_broker, quiet_logs
from broker.cli.console import CommandError, print_error, print_line, print_note, show_progress
from broker.cli.embedded import run_embedded_broker
from broker.cli.exit_codes import ExitCode
from broker.client import AsyncClient, Order, Result, Task, Unreachable
from broker.client.errors import describe_failure
from broker.net.hosts import local_base_url
from broker.settings import Settings


@dataclass(frozen=True, kw_only=True)
class GenerateOptions:
    """Options of the command line."""

    prompt: str
    images: tuple[Path, ...] = ()
    out: Path | None = None
    model: str | None = None
    aspect_ratio: str | None = None
    resolution: str | None = None
    count: int = 1


async def generate(options: GenerateOptions) -> int:
    """Order, wait and save; NOT_DONE unless every image was made.

    1. check the local files 2. order 3. wait for all tasks 4. save the images, print the failures
    """
    settings = load_settings()
    quiet_logs(settings)
    _check_target(options.out)
    for path in options.images:
        _check_readable(path)
    async with _connect_or_embed(settings) as client:
        order = await _create_order(client, options)
        for task_id in order.ids:
            print_note(f"order accepted: {task_id}")
        tasks = await _wait_for_all(client, order.ids)
        await _save_images(client, options.out, [task for task in tasks if task.status == "completed"])
    failures = [task for task in tasks if task.status != "completed"]
    for task in failures:
        print_error(describe_failure(task))
    return ExitCode.NOT_DONE if failures else ExitCode.DONE


async def _create_order(client: AsyncClient, options: GenerateOptions) -> Order:
    return await client.create(
        options.prompt,
        images=options.images,
        model=options.model,
        aspect_ratio=options.aspect_ratio,
        resolution=options.resolution,
        n=options.count,
    )


async def _wait_for_all(client: AsyncClient, ids: Sequence[str]) -> list[Task]:
    """Return the ended tasks."""
    with show_progress("waiting for the image") as update:
        return [await _wait_for_task(client, task_id, update) for task_id in ids]


async def _wait_for_task(client: AsyncClient, task_id: str, update: Callable[[str], None]) -> Task:
    """Report each change of the task and return it once it has ended."""
    status = ""
    try:
        async with aclosing(client.events(task_id)) as changes:
            async for task in changes:
                if task.status != status:
                    status = task.status
                    update(f"{task_id} is {status}")
    except Unreachable as error:
        raise CommandError(f"The broker does not answer ({error}). The task continues: {task_id}") from None
    return task


@asynccontextmanager
async def _connect_or_embed(settings: Settings) -> AsyncIterator[AsyncClient]:
    """Connect to the running broker, or run one for this command.

    With a provider key it uses the real data, so that nothing paid for is lost; the sandbox uses a temporary folder.
    """
    async with AsyncExitStack() as stack:
        client = await stack.enter_async_context(find_running_broker(settings))
        if client is None:
            base = local_base_url(settings.host, settings.port)
            print_note(f"No broker answers at {base}, so this command runs one.")
            own = _sandbox_settings(settings, stack) if settings.sandboxed else _polling_settings(settings)
            client = (await stack.enter_async_context(run_embedded_broker(own))).client
        yield client


def _sandbox_settings(settings: Settings, stack: AsyncExitStack) -> Settings:
    print_note(
        "No provider key: the sandbox makes a PRETEND PICTURE. Set NANO_BANANA_API_KEY for a real one.", style="bold"
    )
    folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="broker-"))
    return settings.model_copy(update={"data_dir": Path(folder), "database_url": SecretStr(""), "blob_url": ""})


def _polling_settings(settings: Settings) -> Settings:
    """Return settings without a public URL: no tunnel leads to a random port, so the provider is polled."""
    return settings.model_copy(update={"webhook_base_url": "", "tunnel_api": "", "check_after": settings.poll_every})


def _check_readable(path: Path) -> None:
    try:
        path.open("rb").close()
    except OSError as error:
        raise CommandError(f"{path} cannot be read: {error.strerror}.") from None


def _check_target(out: Path | None) -> None:
    if out is not None and not out.is_dir() and not out.absolute().parent.is_dir():
        raise CommandError(f"There is no folder {out.parent} to save the image in.")


async def _save_images(client: AsyncClient, out: Path | None, tasks: Sequence[Task]) -> None:
    images = list(_named_images(tasks))
    for number, (name, image) in enumerate(images, 1):
        path = _target_path(out, name, number if len(images) > 1 else None)
        try:
            await client.download(image, path)
        except OSError as error:
            raise CommandError(f"{path} cannot be written: {error.strerror}. The image is at {image.url}") from None
        print_line(str(path))


def _named_images(tasks: Sequence[Task]) -> Iterator[tuple[str, Result]]:
    """Yield each image with a file name."""
    for task in tasks:
        for number, image in enumerate(task.images, 1):
            yield f"{task.id}{f'-{number}' if number > 1 else ''}{Path(image.name).suffix}", image


def _target_path(out: Path | None, name: str, number: int | None) -> Path:
    """number: of this image among several; None for a single one."""
    if out is None:
        return Path(name)
    if out.is_dir():
        return out / name
    return out if number is None else out.with_stem(f"{out.stem}-{number}")
