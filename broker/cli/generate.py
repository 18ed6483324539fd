"""`broker generate`: order, wait, save."""

from __future__ import annotations

import tempfile
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import anyio
from pydantic import SecretStr

from broker.cli.client import Client, address, running_broker
from broker.cli.house import broker_for_a_moment, quiet_logs
from broker.cli.screen import Unable, complain, note, progress, say
from broker.errors import ProviderError
from broker.settings import Settings, load

LOOK_EVERY = 0.5
SILENCE_SECONDS = 120.0
ENDED = frozenset({"completed", "failed", "canceled"})


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
    settings = load()
    quiet_logs(settings)
    _check_place(wish.out)
    fields, images = _fields(wish), [_read(path) for path in wish.images]
    async with _some_broker(settings) as client:
        ids = await client.create(fields, images)
        for task_id in ids:
            note(f"order accepted: {task_id}")
        tasks = await ended(client, ids)
        await _save(client, wish.out, [task for task in tasks if task["status"] == "completed"])
    failures = [task for task in tasks if task["status"] != "completed"]
    for task in failures:
        complain(failure(task))
    return 1 if failures else 0


async def ended(client: Client, ids: Sequence[str]) -> list[dict[str, Any]]:
    """The tasks as they are when the last of them has ended."""
    with progress("waiting for the image") as tell:
        return [await end_of(client, task_id, tell) for task_id in ids]


async def end_of(client: Client, task_id: str, tell: Callable[[str], None]) -> dict[str, Any]:
    """The task when it has ended, each change told. A broker that is silent for a while may be starting anew."""
    status, heard_at = "", anyio.current_time()
    while True:
        try:
            task: dict[str, Any] = (await client.task(task_id))["data"]
        except ProviderError as error:
            if anyio.current_time() > heard_at + SILENCE_SECONDS:
                raise Unable(f"The broker is silent ({error}). The task goes on without us: {task_id}") from None
        else:
            heard_at = anyio.current_time()
            if task["status"] != status:
                status = task["status"]
                tell(f"{task_id} is {status}")
            if status in ENDED:
                return task
        await anyio.sleep(LOOK_EVERY)


def failure(task: dict[str, Any]) -> str:
    """Why a task did not end well, and what it means for the bill."""
    detail = task.get("errorDetail") or {}
    facts = [f"code {detail['code']}"] if detail.get("code") else []
    facts += [f"billed: {detail['billed']}"] if detail.get("billed") else []
    facts += ["worth another try"] if detail.get("retryable") else []
    return f"{task['id']} is {task['status']}: {task.get('error') or 'no reason given'} ({', '.join(facts)})"


@asynccontextmanager
async def _some_broker(settings: Settings) -> AsyncIterator[Client]:
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


def _fields(wish: Wish) -> dict[str, str]:
    fields = {
        "prompt": wish.prompt,
        "model": wish.model,
        "aspectRatio": wish.aspect_ratio,
        "resolution": wish.resolution,
        "numberOfImages": str(wish.count),
    }
    return {name: value for name, value in fields.items() if value is not None}


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise Unable(f"{path} cannot be read: {error.strerror}.") from None


def _check_place(out: Path | None) -> None:
    if out is not None and not out.is_dir() and not out.absolute().parent.is_dir():
        raise Unable(f"There is no folder {out.parent} to save the image in.")


async def _save(client: Client, out: Path | None, tasks: Sequence[dict[str, Any]]) -> None:
    found = list(_found(tasks))
    for number, (name, url) in enumerate(found, 1):
        path = _place(out, name, number if len(found) > 1 else None)
        content = await client.image(url)
        try:
            path.write_bytes(content)
        except OSError as error:
            raise Unable(f"{path} cannot be written: {error.strerror}. The image is at {client.base}{url}") from None
        say(str(path))


def _found(tasks: Sequence[dict[str, Any]]) -> Iterator[tuple[str, str]]:
    """A name and the address of every image."""
    for task in tasks:
        for number, result in enumerate(task["results"], 1):
            suffix = Path(result["url"]).suffix
            yield f"{task['id']}{f'-{number}' if number > 1 else ''}{suffix}", result["url"]


def _place(out: Path | None, name: str, number: int | None) -> Path:
    """number: which of several images; None when there is only one."""
    if out is None:
        return Path(name)
    if out.is_dir():
        return out / name
    return out if number is None else out.with_stem(f"{out.stem}-{number}")
