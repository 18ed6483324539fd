"""Asynchronous client; `Client` runs this one on an event loop in a thread."""

from __future__ import annotations

import asyncio
import hashlib
import secrets
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, Mapping
from contextlib import aclosing, nullcontext
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import Any, Final, TypeAlias, TypedDict, TypeVar, Unpack
from urllib.parse import quote

import httpx
from httpx_sse import EventSource
from pydantic import TypeAdapter
from pydantic.alias_generators import to_camel
from tenacity import AsyncRetrying, RetryCallState, retry_if_exception, stop_before_delay

from broker.client import transport
from broker.client.errors import BrokerApiError, BrokerError, ChecksumMismatch, Unreachable, WaitTimeout, task_error
from broker.client.models import Document, Image, Order, Page, Result, Task, TaskDocument
from broker.client.references import Reference, read_references

T = TypeVar("T")

DEFAULT_BASE: Final = "http://127.0.0.1:8000"
"""Default address of `broker serve`."""
HOLD_SECONDS: Final = 25
"""Duration of a long poll."""
MIN_POLL_SECONDS: Final = 1.0
"""Least time between two polls, for brokers that do not hold requests."""
MAX_WAITING_CONNECTIONS: Final = 24
"""Limit of long polls and event streams, so that other requests always find a connection."""
STREAM_TIMEOUT_SECONDS: Final = 60.0
"""Longest silence in an event stream; a broker sends a comment every fifteen seconds."""
HEALTH_TIMEOUT_SECONDS: Final = 3.0
UNKNOWN_BROKER_PATIENCE_SECONDS: Final = 2.0
"""Patience with a broker that has never answered: the address is probably wrong."""

_adapter_of: Callable[[Any], TypeAdapter[Any]] = cache(TypeAdapter)

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
    language: of its messages, `en`, `zh` or `ru`. timeout: seconds to wait for the next bytes of a response. patience:
    seconds for which idempotent requests are repeated while the broker is unreachable or busy, for example during a
    restart; orders are included, since each carries an idempotency key. sleep: replaces `asyncio.sleep`. app: ASGI
    application to call instead of the network.

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
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        app: transport.ASGIApp | None = None,
    ) -> None:
        self.base = transport.validate_base(base)
        self._timeout = timeout
        self._patience = patience
        self._sleep = sleep
        self._headers = {"Authorization": f"Bearer {key}"} if key else {}
        self._headers |= {"Accept-Language": language} if language else {}
        self._http = transport.open_http(app)
        self._has_answered = False
        self._waiting = asyncio.Semaphore(MAX_WAITING_CONNECTIONS)
        """Held by each long poll and event stream."""

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.base!r})"

    async def __aenter__(self) -> AsyncClient:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Close the connections. Tasks continue."""
        await self._http.aclose()

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
        fields: dict[str, Any] = {"prompt": prompt, **options}
        key = fields.pop("idempotency_key", None) or secrets.token_hex(16)
        references = await read_references(fields.pop("images", ()))
        fields["number_of_images"] = fields.pop("n", 1)
        # parts without a file name are fields; so the form is multipart even without a reference
        parts = [
            (to_camel(name), (None, str(value).encode("utf-8", "replace")))
            for name, value in fields.items()
            if value is not None
        ]
        try:
            order = await self._request(
                Order, "POST", "/api/generate/image", headers={"Idempotency-Key": key}, files=[*parts, *references]
            )
        except Unreachable as error:
            error.add_note(f"Ordering again with idempotency_key={key!r} is safe: an order that arrived is returned.")
            raise
        return replace(order, key=key)

    async def get(self, task: TaskRef) -> Task:
        """Return the task. Raises `BrokerApiError` with status 404, or 410 once it has expired."""
        return (await self._request(TaskDocument, "GET", _task_path(task))).data

    async def wait(self, task: TaskRef, *, timeout: float | None = None) -> Task:
        """Return the task once it has ended, with or without an image. timeout: seconds, then `WaitTimeout`."""
        path = f"{_task_path(task)}?wait={HOLD_SECONDS}"
        try:
            async with asyncio.timeout(timeout):
                while True:
                    started_at = asyncio.get_running_loop().time()
                    current = (await self._request(TaskDocument, "GET", path, hold=HOLD_SECONDS)).data
                    if current.ended:
                        return current
                    await self._pause_since(started_at)
        except TimeoutError:
            raise WaitTimeout(task if isinstance(task, str) else task.id, timeout or 0.0) from None

    async def events(self, task: TaskRef) -> AsyncGenerator[Task]:
        """Yield the task now and after each change, until it has ended."""
        url, headers = f"{self.base}{_task_path(task)}/events", {**self._headers, "Accept": "text/event-stream"}
        open_stream = partial(self._send, "GET", url, timeout=STREAM_TIMEOUT_SECONDS, stream=True, headers=headers)
        while True:
            started_at = asyncio.get_running_loop().time()
            async with self._waiting:
                response = await self._retry(open_stream)
                try:
                    async with aclosing(response), aclosing(EventSource(response).aiter_sse()) as events:
                        with transport.translate_errors(self.base):
                            async for event in events:
                                if event.data:
                                    headers["Last-Event-ID"] = event.id
                                    current = self._parse(TaskDocument, event.data).data
                                    yield current
                                    if current.ended:
                                        return
                except Unreachable as error:
                    if not error.passing:
                        raise
            await self._pause_since(started_at)

    async def tasks(self, *, status: str | None = None, limit: int = 20, cursor: str | None = None) -> Page:
        """Return a page of tasks, newest first. limit: at most 100. cursor: of the previous page."""
        params = {"limit": str(limit), "status": status, "cursor": cursor}
        return await self._request(
            Page, "GET", "/api/tasks", params={name: value for name, value in params.items() if value is not None}
        )

    async def cancel(self, task: TaskRef) -> Task:
        """Cancel a task; a canceled one is returned. Raises `BrokerApiError` with status 409 when it is too late."""
        try:
            return (await self._request(TaskDocument, "DELETE", _task_path(task))).data
        except BrokerApiError as error:
            # an earlier attempt may have succeeded although its response was lost
            if error.status == 409 and (current := await self.get(task)).status == "canceled":
                return current
            raise

    async def retry(self, task: TaskRef) -> Order:
        """Order a failed task again; repeated calls return the same new task. Raises `BrokerApiError` for others."""
        return await self._request(Order, "POST", f"{_task_path(task)}/retry")

    async def images(self, task: TaskRef) -> list[Image]:
        """Wait for a task and return its images. Raises `TaskFailed`."""
        ended = await self.wait(task)
        if ended.status != "completed":
            raise task_error(ended)
        return await _gather_all(self.image(result) for result in ended.images)

    async def image(self, result: Result) -> Image:
        """Download an image. Raises `ChecksumMismatch` unless the bytes are those that the broker stored."""
        # without the key: images are public, and the URL may lead to a foreign store
        response = await self._retry(partial(self._send, "GET", result.url, timeout=self._timeout))
        if result.sha256 is not None and hashlib.sha256(response.content).hexdigest() != result.sha256:
            raise ChecksumMismatch(f"{result.name} has other bytes than the broker stores: is there a proxy?")
        return Image(**vars(result), content=response.content)

    async def download(self, result: Result, path: str | Path) -> Path:
        """Download an image into a file, or into a folder under its own name; return the path.

        An existing file is replaced only once the image is complete and verified. Raises OSError.
        """
        return await asyncio.to_thread((await self.image(result)).save, path)

    async def ask(self, method: str, path: str, /, **options: Any) -> Document:
        """Send any other request and return the JSON object of its response. Only GET and HEAD are retried.

        options: of `httpx.request`, for example params, headers and json.
        """
        send = self._request if method in {"GET", "HEAD"} else self._request_once
        return await send(Document, method, path, **options)

    async def alive(self) -> bool:
        """Return whether a broker answers at `base`. Sends one request with a short time-out, without the key."""
        try:
            response = await self._send("GET", f"{self.base}/health", timeout=HEALTH_TIMEOUT_SECONDS)
            return self._parse(Document, response.content).get("status") == "healthy"
        except BrokerError:
            return False

    async def _request(self, cls: type[T], method: str, path: str, **options: Any) -> T:
        return await self._retry(partial(self._request_once, cls, method, path, **options))

    async def _request_once(
        self, cls: type[T], method: str, path: str, *, hold: float = 0, headers: Mapping[str, str] = {}, **options: Any
    ) -> T:
        """Send one request and return its response as a value. hold: seconds that the broker may delay it."""
        options["headers"] = {**self._headers, **headers}
        async with self._waiting if hold else nullcontext():
            response = await self._send(method, self.base + path, timeout=self._timeout + hold, **options)
        return self._parse(cls, response.content)

    async def _send(
        self, method: str, url: str, *, timeout: float, stream: bool = False, **options: Any
    ) -> httpx.Response:
        """Send one request. timeout: seconds of silence. Raises `BrokerError` unless the response is a success."""
        limits = httpx.Timeout(timeout, connect=min(timeout, transport.CONNECT_TIMEOUT_SECONDS))
        with transport.translate_errors(self.base):
            request = self._http.build_request(method, url, timeout=limits, **options)
            response = await self._http.send(request, stream=stream)
            self._has_answered = True
            if not response.is_success:
                await response.aread()
            transport.check_status(response)
            return response

    def _parse(self, cls: type[T], content: bytes | str) -> T:
        with transport.translate_errors(self.base):
            value: T = _adapter_of(cls).validate_json(content, context=self.base)
            return value

    async def _retry(self, attempt: Callable[[], Awaitable[T]]) -> T:
        """Repeat an idempotent request while its failure is transient and the patience lasts."""
        retrying = AsyncRetrying(
            sleep=self._sleep,
            retry=retry_if_exception(transport.is_transient),
            wait=transport.pause_seconds,
            stop=self._should_stop,
            reraise=True,
        )
        return await retrying(attempt)

    def _should_stop(self, state: RetryCallState) -> bool:
        patience = self._patience if self._has_answered else min(self._patience, UNKNOWN_BROKER_PATIENCE_SECONDS)
        return stop_before_delay(patience)(state)

    async def _pause_since(self, started_at: float) -> None:
        """Sleep until the next poll may start."""
        elapsed = asyncio.get_running_loop().time() - started_at
        await self._sleep(max(0.0, MIN_POLL_SECONDS - elapsed))


def _task_path(task: TaskRef) -> str:
    return f"/api/task/{quote(task if isinstance(task, str) else task.id, safe='')}"


async def _gather_all(several: Iterable[Awaitable[T]]) -> list[T]:
    """Run all concurrently and return the results in order. The first error cancels the others."""
    running = [asyncio.ensure_future(one) for one in several]
    try:
        return list(await asyncio.gather(*running))
    finally:
        for one in running:
            one.cancel()
        await asyncio.gather(*running, return_exceptions=True)
