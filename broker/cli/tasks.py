"""`broker task`, `tasks` and `cancel`: through the running broker, else straight from the database."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import asynccontextmanager
from typing import Protocol, TypeVar

import anyio

from broker.api.views import Views
from broker.cli.client import address, running_broker
from broker.cli.house import quiet_logs
from broker.cli.screen import Unable, clear, complain, note, say, say_json
from broker.client import Page, Task
from broker.client.errors import failure
from broker.settings import Settings, load
from broker.wiring import Services, absent, open_services
from storage.tasks import Task as Row

LOOK_EVERY = 1.0
T = TypeVar("T")


class Source(Protocol):
    """Where tasks are seen and canceled: the broker that runs, or the database."""

    async def get(self, task: str) -> Task: ...

    async def tasks(self, *, status: str | None, limit: int) -> Page: ...

    async def cancel(self, task: str) -> Task: ...


class Shelf:
    """The same without a broker that runs."""

    def __init__(self, services: Services) -> None:
        self._broker = services.broker
        self._views = Views(services.broker)

    async def get(self, task: str) -> Task:
        return await self._seen(await self._broker.get(task))

    async def tasks(self, *, status: str | None, limit: int) -> Page:
        rows = await self._broker.newest(status=status, limit=limit, before=None)
        return Page(tasks=tuple([await self._seen(row) for row in rows]))

    async def cancel(self, task: str) -> Task:
        return await self._seen(await self._broker.cancel(task))

    async def _seen(self, row: Row) -> Task:
        return Task.of(await self._views.document(row, "en"))


async def show(task_id: str, *, as_json: bool, watch: bool) -> int:
    """0, or 1 if the watched task did not end well."""
    async with _source() as source:
        async for task in looks(lambda: source.get(task_id), watch):
            say_json({"success": True, "data": task.raw}) if as_json else _tell(task)
            if task.ended:
                break
    return int(watch and task.status != "completed")


async def show_all(*, status: str | None, limit: int, as_json: bool, watch: bool) -> None:
    """The newest tasks; when watching, again after every change."""
    async with _source() as source:
        async for page in looks(lambda: source.tasks(status=status, limit=limit), watch):
            if as_json:
                say_json({"success": True, "data": [task.raw for task in page.tasks], "nextCursor": page.cursor})
            else:
                _list(page.tasks, watch)


async def cancel(task_id: str) -> None:
    """Raises `BrokerError` or `Refusal` when it is too late."""
    async with _source() as source:
        await source.cancel(task_id)
    say(f"{task_id} is canceled.")


@asynccontextmanager
async def _source() -> AsyncIterator[Source]:
    settings = load()
    quiet_logs(settings)
    async with running_broker(settings) as client:
        if client is not None:
            yield client
            return
    async with open_services(settled(settings), joins=False) as services:
        yield Shelf(services)


def settled(settings: Settings) -> Settings:
    """Nobody needs to reach us for this. Raises `Unable` in a folder where there is nothing to see."""
    path = absent(settings)
    if path is not None:
        where = address(settings.host, settings.port)
        raise Unable(
            f"No broker answers at {where}, and there is no database {path.resolve()}: is this the right folder?"
        )
    return settings.model_copy(update={"webhook_base_url": "", "tunnel_api": ""})


async def looks(look: Callable[[], Awaitable[T]], watch: bool) -> AsyncIterator[T]:
    """What is seen at first, and with `watch` each change of it."""
    seen: T | None = None
    while True:
        now = await look()
        if now != seen:
            yield now
        if not watch:
            return
        seen = now
        await anyio.sleep(LOOK_EVERY)


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
        complain(failure(task))


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
