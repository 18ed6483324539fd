"""`broker generate`: order, wait, save."""

from __future__ import annotations

import tempfile
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import AsyncExitStack, aclosing, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from pydantic import SecretStr

from broker.bootstrap import load_settings
from broker.cli.client import address, running_broker
from broker.cli.house import broker_for_a_moment, quiet_logs
from broker.cli.screen import Unable, complain, note, progress, say
from broker.client import AsyncClient, Order, Result, Task, Unreachable
from broker.client.errors import describe_failure
from broker.settings import Settings


@dataclass(frozen=True, kw_only=True)
class Wish:
    """What was asked for on the command line."""

    prompt: str
    images: tuple[Path, ...] = ()
    out: Path | None = None
    model: str | None = None
    aspect_ratio: str | None = None
    resolution: str | None = None
    count: int = 1


async def generate(wish: Wish) -> int:
    """0 if every image was made and saved, else 1.

    1. Check what can be wrong on this side. 2. Order. 3. Wait for all. 4. Save what came, complain of the rest.
    """
    settings = load_settings()
    quiet_logs(settings)
    _check_place(wish.out)
    for path in wish.images:
        _check_readable(path)
    async with _some_broker(settings) as client:
        order = await _order(client, wish)
        for task_id in order.ids:
            note(f"order accepted: {task_id}")
        tasks = await _ended(client, order.ids)
        await _save(client, wish.out, [task for task in tasks if task.status == "completed"])
    failures = [task for task in tasks if task.status != "completed"]
    for task in failures:
        complain(describe_failure(task))
    return 1 if failures else 0


async def _order(client: AsyncClient, wish: Wish) -> Order:
    return await client.create(
        wish.prompt,
        images=wish.images,
        model=wish.model,
        aspect_ratio=wish.aspect_ratio,
        resolution=wish.resolution,
        n=wish.count,
    )


async def _ended(client: AsyncClient, ids: Sequence[str]) -> list[Task]:
    """The tasks as they are when the last of them has ended."""
    with progress("waiting for the image") as tell:
        return [await _end_of(client, task_id, tell) for task_id in ids]


async def _end_of(client: AsyncClient, task_id: str, tell: Callable[[str], None]) -> Task:
    """The task when it has ended, each change told."""
    status = ""
    try:
        async with aclosing(client.events(task_id)) as changes:
            async for task in changes:
                if task.status != status:
                    status = task.status
                    tell(f"{task_id} is {status}")
    except Unreachable as error:
        raise Unable(f"The broker is silent ({error}). The task goes on without us: {task_id}") from None
    return task


@asynccontextmanager
async def _some_broker(settings: Settings) -> AsyncIterator[AsyncClient]:
    """The broker that runs, or one for the moment.

    With a key it works on the real data, so that nothing paid for can be lost; pretend pictures leave no trace.
    """
    async with AsyncExitStack() as stack:
        client = await stack.enter_async_context(running_broker(settings))
        if client is None:
            note(
                f"No broker answers at {address(settings.host, settings.port)}, so this command is one for the moment."
            )
            own = _pretending(settings, stack) if settings.sandboxed else _unreachable(settings)
            client = (await stack.enter_async_context(broker_for_a_moment(own))).client
        yield client


def _pretending(settings: Settings, stack: AsyncExitStack) -> Settings:
    note("No provider key: the sandbox paints a PRETEND PICTURE. Set NANO_BANANA_API_KEY for a real one.", style="bold")
    folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="broker-"))
    return settings.model_copy(update={"data_dir": Path(folder), "database_url": SecretStr(""), "blob_url": ""})


def _unreachable(settings: Settings) -> Settings:
    """No tunnel leads to a port that is new each time, so the provider is asked instead of calling us."""
    return settings.model_copy(update={"webhook_base_url": "", "tunnel_api": "", "check_after": settings.poll_every})


def _check_readable(path: Path) -> None:
    try:
        path.open("rb").close()
    except OSError as error:
        raise Unable(f"{path} cannot be read: {error.strerror}.") from None


def _check_place(out: Path | None) -> None:
    if out is not None and not out.is_dir() and not out.absolute().parent.is_dir():
        raise Unable(f"There is no folder {out.parent} to save the image in.")


async def _save(client: AsyncClient, out: Path | None, tasks: Sequence[Task]) -> None:
    found = list(_found(tasks))
    for number, (name, image) in enumerate(found, 1):
        path = _place(out, name, number if len(found) > 1 else None)
        try:
            await client.download(image, path)
        except OSError as error:
            raise Unable(f"{path} cannot be written: {error.strerror}. The image is at {image.url}") from None
        say(str(path))


def _found(tasks: Sequence[Task]) -> Iterator[tuple[str, Result]]:
    """A name for every image."""
    for task in tasks:
        for number, image in enumerate(task.images, 1):
            yield f"{task.id}{f'-{number}' if number > 1 else ''}{Path(image.name).suffix}", image


def _place(out: Path | None, name: str, number: int | None) -> Path:
    """number: which of several images; None when there is only one."""
    if out is None:
        return Path(name)
    if out.is_dir():
        return out / name
    return out if number is None else out.with_stem(f"{out.stem}-{number}")
