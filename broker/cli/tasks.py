"""`broker task`, `tasks` and `cancel`: through the running broker, else straight from the database."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from typing import Any, Protocol

import anyio

from broker.api.views import Views
from broker.cli.client import address, running_broker
from broker.cli.generate import ENDED, failure
from broker.cli.house import quiet_logs
from broker.cli.screen import Unable, clear, complain, note, say, say_json
from broker.settings import Settings, load
from broker.wiring import Services, absent, open_services

LOOK_EVERY = 1.0
Document = dict[str, Any]


class Source(Protocol):
    """Where tasks are seen and canceled: the broker that runs, or the database. Answers are those of the API."""

    async def task(self, task_id: str) -> Document: ...

    async def tasks(self, *, status: str | None, limit: int) -> Document: ...

    async def cancel(self, task_id: str) -> Document: ...


class Shelf:
    """The same without a broker that runs."""

    def __init__(self, services: Services) -> None:
        self._broker = services.broker
        self._views = Views(services.broker)

    async def task(self, task_id: str) -> Document:
        return {"success": True, "data": await self._views.document(await self._broker.get(task_id), "en")}

    async def tasks(self, *, status: str | None, limit: int) -> Document:
        tasks = await self._broker.newest(status=status, limit=limit, before=None)
        return {"success": True, "data": [await self._views.document(task, "en") for task in tasks]}

    async def cancel(self, task_id: str) -> Document:
        return {"success": True, "data": await self._views.document(await self._broker.cancel(task_id), "en")}


async def show(task_id: str, *, as_json: bool, watch: bool) -> int:
    """0, or 1 if the watched task did not end well."""
    async with _source() as source:
        document: Document = {}
        async for document in looks(lambda: source.task(task_id), watch):
            say_json(document) if as_json else _tell(document["data"])
            if document["data"]["status"] in ENDED:
                break
    return int(watch and document["data"]["status"] != "completed")


async def show_all(*, status: str | None, limit: int, as_json: bool, watch: bool) -> None:
    """The newest tasks; when watching, again after every change."""
    async with _source() as source:
        async for document in looks(lambda: source.tasks(status=status, limit=limit), watch):
            if as_json:
                say_json(document)
            else:
                _list(document["data"], watch)


async def cancel(task_id: str) -> None:
    """Raises `Unable` or `Refusal` when it is too late."""
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


async def looks(look: Callable[[], Awaitable[Document]], watch: bool) -> AsyncIterator[Document]:
    """What is seen at first, and with `watch` each change of it."""
    seen: Document | None = None
    while True:
        document = await look()
        if document != seen:
            yield document
        if not watch:
            return
        seen = document
        await anyio.sleep(LOOK_EVERY)


def _tell(task: Document) -> None:
    facts = {
        "task": task["id"],
        "status": f"{task['status']} ({', '.join(_progress(task['progress']))})",
        "model": f"{task['model']}, {task['mode']}, by {task['provider']}, attempt {task['attempts']}",
        "prompt": task["prompt"],
        "created": task["createdAt"],
        "updated": task["updatedAt"],
        **{f"image {n}": result["url"] for n, result in enumerate(task["results"], 1)},
    }
    for name, value in facts.items():
        say(f"{name:<10} {value}")
    if task["error"]:
        complain(failure(task))


def _progress(progress: Document) -> Iterator[str]:
    yield progress["stage"]
    if (place := progress.get("position")) is not None:
        yield f"place {place}"
    if word := progress.get("providerState"):
        yield f"the provider says {word}"
    if (percent := progress.get("percent")) is not None:
        yield f"{percent} %"
    if (seconds := progress.get("etaSeconds")) is not None:
        yield f"about {seconds} s left"


def _list(tasks: list[Document], watch: bool) -> None:
    if watch:
        clear()
    if not tasks:
        note("No tasks.")
    for task in tasks:
        say(f"{task['id']}  {task['status']:<10}  {task['createdAt']}  {task['model']}  {_short(task['prompt'])}")


def _short(prompt: str) -> str:
    line = " ".join(prompt.split())
    return line if len(line) <= 40 else line[:39] + "…"
