"""The client, written once: `AsyncClient` for programs that await; `Client` runs this one in a thread."""

from __future__ import annotations

import asyncio
import hashlib
import json
import secrets
from collections.abc import AsyncGenerator, Awaitable, Iterable, Mapping
from contextlib import aclosing
from pathlib import Path
from types import TracebackType
from typing import Any, Final, TypeAlias, TypeVar
from urllib.parse import quote

import aiofiles
import anyio

from broker.client.errors import Damaged, Refused, TimedOut, Unreachable, ending
from broker.client.line import LONGEST_HOLD, Line, Sleep
from broker.client.references import Reference, References
from broker.client.results import Document, Image, Malformed, Order, Page, Result, Task

T = TypeVar("T")

BASE: Final = "http://127.0.0.1:8000"
"""Where `broker serve` listens unless told otherwise."""
LOOK_SECONDS: Final = 1.0
"""At least between two looks, even where a broker never holds a request."""
ALIVE_SECONDS: Final = 3.0

Named: TypeAlias = "str | Task | Order"
"""An order of several images stands for its first task."""
"""A task or its id."""


class AsyncClient:
    """Orders images from a broker and brings them home.

    base: the broker's address. key: one of its BROKER_API_KEYS; needed unless it runs on this machine without any.
    language: of its sentences, `en`, `zh` or `ru`. timeout: seconds for one request. patience: seconds for which the
    broker may be silent or busy, as when it starts anew; what is safe to repeat is repeated as long. An order is: it
    carries a key of its own, so that it is one order however often it is sent. sleep: how a pause is made.

    Everything raises `BrokerError`. It belongs to the event loop that first uses it. Close it with `async with` or
    `aclose`.
    """

    def __init__(
        self,
        base: str = BASE,
        *,
        key: str | None = None,
        language: str | None = None,
        timeout: float = 120.0,
        patience: float = 90.0,
        sleep: Sleep = asyncio.sleep,
    ) -> None:
        self._line = Line(base, key=key, language=language, timeout=timeout, patience=patience, sleep=sleep)

    @property
    def base(self) -> str:
        return self._line.base

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.base!r})"

    async def __aenter__(self) -> AsyncClient:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Close the connections. Tasks go on without us."""
        await self._line.aclose()

    # -- from the wish to the image

    async def generate(
        self,
        prompt: str,
        *,
        images: Reference | Iterable[Reference] = (),
        model: str | None = None,
        aspect_ratio: str | None = None,
        resolution: str | None = None,
        output_format: str | None = None,
        n: int = 1,
        seed: int | None = None,
        callback_url: str | None = None,
        idempotency_key: str | None = None,
        timeout: float | None = None,
    ) -> list[Image]:
        """Order, wait, download. The rest as `create`.

        timeout: seconds to wait for the end, else `TimedOut`; None is until the broker ends it, which it always does.
        Raises `TaskFailed` when one of the tasks has no image; its `made` are those of the others.
        """
        order = await self.create(
            prompt,
            images=images,
            model=model,
            aspect_ratio=aspect_ratio,
            resolution=resolution,
            output_format=output_format,
            n=n,
            seed=seed,
            callback_url=callback_url,
            idempotency_key=idempotency_key,
        )
        tasks = await _all(self.wait(task_id, timeout=timeout) for task_id in order.ids)
        made = await _all(self.image(result) for task in tasks for result in task.images)
        for task in tasks:
            if task.status != "completed":
                raise ending(task, made)
        return made

    async def create(
        self,
        prompt: str,
        *,
        images: Reference | Iterable[Reference] = (),
        model: str | None = None,
        aspect_ratio: str | None = None,
        resolution: str | None = None,
        output_format: str | None = None,
        n: int = 1,
        seed: int | None = None,
        callback_url: str | None = None,
        idempotency_key: str | None = None,
    ) -> Order:
        """Order images. When this returns, the broker has the order safe.

        images: one or several to start from – paths, bytes, Pillow images, images of ours, or web addresses (which
        come last, whatever their place). n: how many images, one task each. callback_url: told when a task ends.
        idempotency_key: made anew for each call unless given; the same one orders only once.
        """
        references = await References.read(images)
        form = {
            "prompt": prompt,
            "model": model,
            "aspectRatio": aspect_ratio,
            "resolution": resolution,
            "outputFormat": output_format,
            "numberOfImages": str(n),
            "seed": None if seed is None else str(seed),
            "callbackUrl": callback_url,
            "imageUrls": references.links or None,
        }
        key = idempotency_key or secrets.token_hex(16)
        return await self._send({name: value for name, value in form.items() if value is not None}, references, key)

    async def _send(self, form: Mapping[str, Any], references: References, key: str) -> Order:
        """The order until it is heard. Where even that fails, the error says how to go on without a second bill."""
        sent = False

        async def attempt() -> Order:
            nonlocal sent
            try:
                document = await self._line.ask(
                    "POST",
                    "/api/generate/image",
                    headers={"Idempotency-Key": key},
                    form=form,
                    files=references.parts(),
                )
            except Unreachable as error:
                sent = sent or error.sent
                raise
            with self._line.trouble():
                return Order.of(document, key)

        try:
            return await self._line.persist(attempt)
        except Unreachable as error:
            if sent:
                error.add_note(f"The order may have arrived. Ordering again with idempotency_key={key!r} is safe.")
            raise

    # -- looking

    async def get(self, task: Named) -> Task:
        """The task as it is now. `Refused` with status 404 or 410 where there is none (any more)."""
        return await self._look(task, {})

    async def wait(self, task: Named, *, timeout: float | None = None) -> Task:
        """The task when it has ended, well or not. timeout: in seconds, then `TimedOut`."""
        try:
            async with asyncio.timeout(timeout):
                while True:
                    began = asyncio.get_running_loop().time()
                    now = await self._look(task, {"wait": f"{LONGEST_HOLD:g}"})
                    if now.ended:
                        return now
                    await self._rest(began)
        except TimeoutError:
            raise TimedOut(_id(task), timeout or 0.0) from None

    async def events(self, task: Named) -> AsyncGenerator[Task]:
        """The task as it is, and again after each change, until it has ended."""
        tries, path = self._line.tries(), f"/api/task/{_id(task)}/events"
        last: str | None = None
        while True:
            began = asyncio.get_running_loop().time()
            try:
                async with self._line.follow(path, last) as stream:
                    tries.heard()
                    async for event in stream:
                        now, last = self._task(_object(event.data)), event.id
                        yield now
                        if now.ended:
                            return
            except (Unreachable, Refused) as error:
                await tries.after(error)
            await self._rest(began)

    async def tasks(self, *, status: str | None = None, limit: int = 20, cursor: str | None = None) -> Page:
        """Tasks, newest first. limit: up to 100. cursor: that of an earlier page, for the one after it."""
        params = {"limit": str(limit), "status": status, "cursor": cursor}
        given = {name: value for name, value in params.items() if value is not None}
        document = await self._line.persist(lambda: self._line.ask("GET", "/api/tasks", params=given))
        with self._line.trouble():
            return Page.of(document, self.base)

    async def _look(self, task: Named, params: Mapping[str, str]) -> Task:
        hold = LONGEST_HOLD if params else 0.0
        path = f"/api/task/{_id(task)}"
        return self._task(await self._line.persist(lambda: self._line.ask("GET", path, params=params, hold=hold)))

    def _task(self, document: Document) -> Task:
        with self._line.trouble():
            return Task.of(document.get("data"), self.base)

    async def _rest(self, began: float) -> None:
        """Between two looks, for brokers that do not hold a request and streams that end at once."""
        await self._line.sleep(max(0.0, began + LOOK_SECONDS - asyncio.get_running_loop().time()))

    # -- changing

    async def cancel(self, task: Named) -> Task:
        """Cancel a task; one that is canceled already is fine. `Refused` with status 409 when it is too late."""
        path = f"/api/task/{_id(task)}"
        try:
            return self._task(await self._line.persist(lambda: self._line.ask("DELETE", path)))
        except Refused as error:
            # our own first try may have been heard although its answer was lost
            if error.status == 409 and (now := await self.get(task)).status == "canceled":
                return now
            raise

    async def retry(self, task: Named) -> Order:
        """A task that failed, once more as a new one; asked for twice, the same new one. `Refused` for any other."""
        path = f"/api/task/{_id(task)}/retry"
        document = await self._line.persist(lambda: self._line.ask("POST", path))
        with self._line.trouble():
            return Order.of(document)

    # -- images

    async def images(self, task: Named) -> list[Image]:
        """The images of a task, once it has ended. Raises `TaskFailed`."""
        ended = await self.wait(task)
        if ended.status != "completed":
            raise ending(ended)
        return await _all(self.image(result) for result in ended.images)

    async def image(self, result: Result) -> Image:
        """The bytes of an image. Raises `Damaged` when they are not those that the broker stored."""

        async def attempt() -> bytes:
            async with aclosing(self._checked(result)) as chunks:
                return b"".join([chunk async for chunk in chunks])

        content = await self._line.persist(attempt)
        facts = {name: value for name, value in vars(result).items() if name != "content"}
        return Image(**facts, content=content)

    async def download(self, result: Result, path: str | Path) -> Path:
        """The same straight into a file, or under its own name into a folder; where it is then.

        A file of that name is replaced when the image is whole and right, and not before. Raises OSError.
        """
        place = Path(path)
        place = place / result.name if await anyio.Path(place).is_dir() else place

        async def attempt() -> None:
            async with aclosing(self._checked(result)) as chunks, aiofiles.open(draft, "wb") as file:
                async for chunk in chunks:
                    await file.write(chunk)

        draft = place.with_name(f".{place.name}.{secrets.token_hex(4)}")
        try:
            await self._line.persist(attempt)
            await anyio.Path(draft).replace(place)
        finally:
            with anyio.CancelScope(shield=True):
                await anyio.Path(draft).unlink(missing_ok=True)
        return place

    async def _checked(self, result: Result) -> AsyncGenerator[bytes]:
        digest, length = hashlib.sha256(), 0
        async with self._line.image(result.url) as stream:
            async for chunk in stream.chunks:
                digest.update(chunk)
                length += len(chunk)
                if result.size is not None and length > result.size:
                    break  # no need to see how much more there is: it is not what the broker keeps
                yield chunk
        whole = result.size is None or length == result.size
        if not whole or (result.sha256 is not None and digest.hexdigest() != result.sha256.lower()):
            raise Damaged(f"{result.name} arrived with other bytes than the broker keeps: what is on the way to it?")

    # -- anything else

    async def ask(
        self,
        method: str,
        path: str,
        *,
        params: Mapping[str, str] | None = None,
        headers: Mapping[str, str] | None = None,
        json: Any = None,
    ) -> Document:
        """Any other request; the object that it is answered with. Only what changes nothing is repeated."""

        async def attempt() -> Document:
            return await self._line.ask(method, path, params=params, headers=headers, json=json)

        return await (self._line.persist(attempt) if method in {"GET", "HEAD"} else attempt())

    async def alive(self) -> bool:
        """Whether a broker answers at our address. Asks once, and briefly."""
        return await self._line.alive(ALIVE_SECONDS)


def _id(task: Named) -> str:
    """Fit for a path, whatever it is."""
    return quote(task if isinstance(task, str) else task.id, safe="")


def _object(text: str) -> Document:
    """Raises `Malformed`."""
    try:
        document = json.loads(text)
    except (ValueError, RecursionError):
        document = None
    if not isinstance(document, Mapping):
        raise Malformed("an event is no JSON object")
    return document


async def _all(several: Iterable[Awaitable[T]]) -> list[T]:
    """Together, the results in order. The first error ends the others."""
    running = [asyncio.ensure_future(one) for one in several]
    try:
        return list(await asyncio.gather(*running))
    finally:
        for one in running:
            one.cancel()
        await asyncio.gather(*running, return_exceptions=True)
