"""Asynchronous client; `Client` runs this one on an event loop in a thread."""

from __future__ import annotations

import asyncio
import hashlib
import json as jsonlib
import secrets
from collections.abc import AsyncGenerator, Awaitable, Iterable, Mapping
from contextlib import AsyncExitStack, aclosing
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Final, TypeAlias, TypedDict, TypeVar, Unpack, cast
from urllib.parse import quote

import aiofiles
import anyio
from httpx_sse import EventSource, ServerSentEvent

from broker.client.errors import BrokerApiError, ChecksumMismatch, Unreachable, WaitTimeout, task_error
from broker.client.models import Document, Image, InvalidResponse, Order, Page, Result, Task
from broker.client.references import Reference, References
from broker.client.transport import MAX_HOLD_SECONDS, ASGIApp, Sleep, Transport

T = TypeVar("T")

DEFAULT_BASE: Final = "http://127.0.0.1:8000"
"""Default address of `broker serve`."""
MIN_POLL_SECONDS: Final = 1.0
"""Least time between two polls, for brokers that do not hold requests."""
HEALTH_TIMEOUT_SECONDS: Final = 3.0

TaskRef: TypeAlias = "str | Task | Order"
"""A task, its id, or an order, which stands for its first task."""


class OrderOptions(TypedDict, total=False):
    """Options of an order."""

    images: Reference | Iterable[Reference]
    """References: paths, bytes, Pillow images, images of a broker, or URLs (which always come last)."""
    model: str | None
    aspect_ratio: str | None
    resolution: str | None
    output_format: str | None
    n: int
    """Number of images, one task each."""
    seed: int | None
    callback_url: str | None
    """Receives a webhook when a task ends."""
    idempotency_key: str | None
    """Random unless given; orders with the same key are one order."""


class AsyncClient:
    """Client of one broker, for one event loop.

    base: URL of the broker. key: one of its BROKER_API_KEYS; not needed on the same machine when none are set.
    language: of its messages, `en`, `zh` or `ru`. timeout: seconds for one request. patience: seconds for which
    idempotent requests are repeated while the broker is unreachable or busy, for example during a restart; orders are
    included, since each carries an idempotency key. sleep: replaces `asyncio.sleep`. app: ASGI application to call
    instead of the network.

    Every method raises `BrokerError`. Close it with `async with` or `aclose`.
    """

    def __init__(
        self,
        base: str = DEFAULT_BASE,
        *,
        key: str | None = None,
        language: str | None = None,
        timeout: float = 120.0,
        patience: float = 90.0,
        sleep: Sleep = asyncio.sleep,
        app: ASGIApp | None = None,
    ) -> None:
        self._transport = Transport(
            base, key=key, language=language, timeout=timeout, patience=patience, sleep=sleep, app=app
        )

    @property
    def base(self) -> str:
        return self._transport.base

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.base!r})"

    async def __aenter__(self) -> AsyncClient:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Close the connections. Tasks continue."""
        await self._transport.aclose()

    async def generate(
        self, prompt: str, *, timeout: float | None = None, **options: Unpack[OrderOptions]
    ) -> list[Image]:
        """Order images, wait for them, and download them. Options as in `create`.

        timeout: seconds to wait, then `WaitTimeout`; None waits until the broker ends the task, which it always does.
        Raises `TaskFailed` when a task has no image; its `made` are the images of the other tasks.
        """
        order = await self.create(prompt, **options)
        tasks = await _gather_all(self.wait(task_id, timeout=timeout) for task_id in order.ids)
        made = await _gather_all(self.image(result) for task in tasks for result in task.images)
        for task in tasks:
            if task.status != "completed":
                raise task_error(task, made)
        return made

    async def create(self, prompt: str, **options: Unpack[OrderOptions]) -> Order:
        """Order images: images, model, aspect_ratio, resolution, output_format, n, seed, callback_url, idempotency_key.

        The order is durable when this returns. After a lost response the order is sent again with the same key,
        and when no attempt succeeds, a note of the error names the key.
        """
        references = await References.read(options.get("images", ()))
        seed = options.get("seed")
        form = [
            ("prompt", prompt),
            ("model", options.get("model")),
            ("aspectRatio", options.get("aspect_ratio")),
            ("resolution", options.get("resolution")),
            ("outputFormat", options.get("output_format")),
            ("numberOfImages", str(options.get("n", 1))),
            ("seed", None if seed is None else str(seed)),
            ("callbackUrl", options.get("callback_url")),
            *(("imageUrls", link) for link in references.links),
        ]
        parts: list[Any] = [
            (name, (None, value.encode("utf-8", "replace"))) for name, value in form if value is not None
        ]
        parts += [("image", (f"image-{number}", content)) for number, content in enumerate(references.files, 1)]
        return await self._send_order(parts, options.get("idempotency_key") or secrets.token_hex(16))

    async def _send_order(self, parts: list[Any], key: str) -> Order:
        was_sent = False

        async def attempt() -> Order:
            nonlocal was_sent
            try:
                document = await self._transport.request(
                    "POST", "/api/generate/image", headers={"Idempotency-Key": key}, files=parts
                )
            except Unreachable as error:
                was_sent = was_sent or error.sent
                raise
            with self._transport.translate_errors():
                return Order.parse(document, key)

        try:
            return await self._transport.retry(attempt)
        except Unreachable as error:
            if was_sent:
                error.add_note(f"The order may have arrived. Ordering again with idempotency_key={key!r} is safe.")
            raise

    async def get(self, task: TaskRef) -> Task:
        """Return the task. Raises `BrokerApiError` with status 404, or 410 once it has expired."""
        return self._parse_task(await self._request_with_retries("GET", _task_path(task)))

    async def wait(self, task: TaskRef, *, timeout: float | None = None) -> Task:
        """Return the task once it has ended, with or without an image. timeout: seconds, then `WaitTimeout`."""
        params = {"wait": f"{MAX_HOLD_SECONDS:g}"}
        try:
            async with asyncio.timeout(timeout):
                while True:
                    started_at = asyncio.get_running_loop().time()
                    document = await self._request_with_retries(
                        "GET", _task_path(task), params=params, hold=MAX_HOLD_SECONDS
                    )
                    current = self._parse_task(document)
                    if current.ended:
                        return current
                    await self._pause_since(started_at)
        except TimeoutError:
            raise WaitTimeout(task if isinstance(task, str) else task.id, timeout or 0.0) from None

    async def events(self, task: TaskRef) -> AsyncGenerator[Task]:
        """Yield the task now and after each change, until it has ended."""
        path, last_event_id = f"{_task_path(task)}/events", None
        while True:
            started_at, is_open = asyncio.get_running_loop().time(), False
            try:
                async with AsyncExitStack() as stack:
                    events = await self._transport.retry(partial(self._open_events, stack, path, last_event_id))
                    is_open = True
                    async for event in events:
                        if event.data:
                            last_event_id = event.id or last_event_id
                            current = self._parse_task(_parse_event(event.data))
                            yield current
                            if current.ended:
                                return
            except Unreachable as error:
                if not is_open or not error.passing:  # opening has its own retries
                    raise
            await self._pause_since(started_at)

    async def _open_events(
        self, stack: AsyncExitStack, path: str, last_event_id: str | None
    ) -> AsyncGenerator[ServerSentEvent]:
        response = await stack.enter_async_context(self._transport.stream_events(path, last_event_id))
        return await stack.enter_async_context(aclosing(cast(Any, EventSource(response).aiter_sse())))

    async def tasks(self, *, status: str | None = None, limit: int = 20, cursor: str | None = None) -> Page:
        """Return a page of tasks, newest first. limit: at most 100. cursor: of the previous page."""
        params = {"limit": str(limit), "status": status, "cursor": cursor}
        document = await self._request_with_retries(
            "GET", "/api/tasks", params={name: value for name, value in params.items() if value is not None}
        )
        with self._transport.translate_errors():
            return Page.parse(document, self.base)

    async def cancel(self, task: TaskRef) -> Task:
        """Cancel a task; a canceled one is returned. Raises `BrokerApiError` with status 409 when it is too late."""
        try:
            return self._parse_task(await self._request_with_retries("DELETE", _task_path(task)))
        except BrokerApiError as error:
            # an earlier attempt may have succeeded although its response was lost
            if error.status == 409 and (current := await self.get(task)).status == "canceled":
                return current
            raise

    async def retry(self, task: TaskRef) -> Order:
        """Order a failed task again; repeated calls return the same new task. Raises `BrokerApiError` for others."""
        document = await self._request_with_retries("POST", f"{_task_path(task)}/retry")
        with self._transport.translate_errors():
            return Order.parse(document)

    async def images(self, task: TaskRef) -> list[Image]:
        """Wait for a task and return its images. Raises `TaskFailed`."""
        ended = await self.wait(task)
        if ended.status != "completed":
            raise task_error(ended)
        return await _gather_all(self.image(result) for result in ended.images)

    async def image(self, result: Result) -> Image:
        """Download an image. Raises `ChecksumMismatch` unless the bytes are those that the broker stored."""

        async def attempt() -> bytes:
            async with aclosing(self._verified_chunks(result)) as chunks:
                return b"".join([chunk async for chunk in chunks])

        content = await self._transport.retry(attempt)
        return Image(**{**vars(result), "content": content})

    async def download(self, result: Result, path: str | Path) -> Path:
        """Download an image into a file, or into a folder under its own name; return the path.

        An existing file is replaced only once the image is complete and verified. Raises OSError.
        """
        target = Path(path)
        target = target / result.name if await anyio.Path(target).is_dir() else target
        draft = target.with_name(f".{target.name}.{secrets.token_hex(4)}")

        async def attempt() -> None:
            async with aclosing(self._verified_chunks(result)) as chunks, aiofiles.open(draft, "wb") as file:
                async for chunk in chunks:
                    await file.write(chunk)

        try:
            await self._transport.retry(attempt)
            await anyio.Path(draft).replace(target)
        finally:
            with anyio.CancelScope(shield=True):
                await anyio.Path(draft).unlink(missing_ok=True)
        return target

    async def _verified_chunks(self, result: Result) -> AsyncGenerator[bytes]:
        digest, length = hashlib.sha256(), 0
        async with self._transport.stream_image(result.url) as response:
            async for chunk in response.aiter_bytes():
                digest.update(chunk)
                length += len(chunk)
                if result.size is not None and length > result.size:
                    break  # the rest cannot make it right
                yield chunk
        complete = result.size is None or length == result.size
        if not complete or (result.sha256 is not None and digest.hexdigest() != result.sha256.lower()):
            raise ChecksumMismatch(f"{result.name} arrived with other bytes than the broker stores: is there a proxy?")

    async def ask(
        self,
        method: str,
        path: str,
        *,
        params: Mapping[str, str] | None = None,
        headers: Mapping[str, str] | None = None,
        json: Any = None,
    ) -> Document:
        """Send any other request and return the JSON object of its response. Only GET and HEAD are retried."""
        send = self._request_with_retries if method in {"GET", "HEAD"} else self._transport.request
        return await send(method, path, params=params, headers=headers, json=json)

    async def alive(self) -> bool:
        """Return whether a broker answers at `base`; sends one request with a short time-out."""
        return await self._transport.is_healthy(HEALTH_TIMEOUT_SECONDS)

    async def _request_with_retries(self, method: str, path: str, **options: Any) -> Document:
        return await self._transport.retry(partial(self._transport.request, method, path, **options))

    def _parse_task(self, document: Document) -> Task:
        with self._transport.translate_errors():
            return Task.parse(document.get("data"), self.base)

    async def _pause_since(self, started_at: float) -> None:
        elapsed = asyncio.get_running_loop().time() - started_at
        await self._transport.sleep(max(0.0, MIN_POLL_SECONDS - elapsed))


def _task_path(task: TaskRef) -> str:
    return f"/api/task/{quote(task if isinstance(task, str) else task.id, safe='')}"


def _parse_event(text: str) -> Document:
    """Raises `InvalidResponse`."""
    try:
        document = jsonlib.loads(text)
    except (ValueError, RecursionError):
        document = None
    if not isinstance(document, Mapping):
        raise InvalidResponse("an event is not a JSON object")
    return document


async def _gather_all(several: Iterable[Awaitable[T]]) -> list[T]:
    """Run all concurrently and return the results in order. The first error cancels the others."""
    running = [asyncio.ensure_future(one) for one in several]
    try:
        return list(await asyncio.gather(*running))
    finally:
        for one in running:
            one.cancel()
        await asyncio.gather(*running, return_exceptions=True)
