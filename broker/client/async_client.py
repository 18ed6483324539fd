"""Asynchronous client; `Client` runs this one on an event loop in a thread."""

from __future__ import annotations

import asyncio
import hashlib
import re
import secrets
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, Mapping
from contextlib import aclosing
from dataclasses import replace
from functools import cache
from pathlib import Path
from ssl import SSLContext
from typing import Any, Final, TypeAlias, TypedDict, TypeVar, Unpack
from urllib.parse import quote

import httpx
from httpx_sse import EventSource
from pydantic import TypeAdapter
from pydantic.alias_generators import to_camel
from tenacity import (
    AsyncRetrying,
    RetryCallState,
    retry_if_exception,
    stop_before_delay,
    wait_exception,
    wait_exponential_jitter,
)

from broker.client import errors
from broker.client.models import Document, Image, Order, Page, Result, Task, TaskDocument
from broker.client.references import Reference, read_references

T = TypeVar("T")

DEFAULT_BASE: Final = "http://127.0.0.1:8000"
"""Default address of `broker serve`."""
HOLD_SECONDS: Final = 25
"""Duration of a long poll, and more than the silence between two comments of an event stream."""
POLL_PAUSE_SECONDS: Final = 1.0
"""Pause between two polls or event streams, for brokers that end them at once."""
UNKNOWN_BROKER_SECONDS: Final = 2.0
"""Patience until the first response: a mistyped address must not cost the time of a restart."""
MAX_CONNECTIONS: Final = 32
"""Half of the broker's limit per address."""
CONNECT_TIMEOUT_SECONDS: Final = 10.0
HEALTH_TIMEOUT_SECONDS: Final = 3.0

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
    provider: str | None
    """The only provider that may get the order."""
    priority: str | None
    """`low`, `normal` or `high`, among the caller's own tasks."""
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
        app: Callable[..., Awaitable[None]] | None = None,
    ) -> None:
        if not re.fullmatch(r"https?://[^\s/?#@]+(/[^\s?#@]*)?", base):  # never quoted: it may contain a password
            raise ValueError("base must be the broker's address and nothing else, like http://127.0.0.1:8000")
        self.base = base.rstrip("/")
        self._timeout = timeout
        self._sleep = sleep
        self._headers = {"Authorization": f"Bearer {key}"} if key else {}
        self._headers |= {"Accept-Language": language} if language else {}
        self._http = httpx.AsyncClient(
            transport=httpx.ASGITransport(app) if app else None,
            verify=tls_context(),
            base_url=self.base,
            trust_env=False,
            follow_redirects=True,
            limits=httpx.Limits(max_connections=MAX_CONNECTIONS),
            event_hooks={"response": [_reject_downgrade, self._note_response]},
        )
        self._patience, self._has_responded = patience, False
        self._send_repeatedly = AsyncRetrying(
            sleep=sleep,
            retry=retry_if_exception(errors.is_transient),
            wait=wait_exception(_retry_after) + wait_exponential_jitter(0.2, max=5, jitter=0.2),
            stop=self._is_hopeless,
            reraise=True,
        ).wraps(self._send)

    async def _note_response(self, _: httpx.Response) -> None:
        self._has_responded = True

    def _is_hopeless(self, state: RetryCallState) -> bool:
        patience = self._patience if self._has_responded else min(self._patience, UNKNOWN_BROKER_SECONDS)
        return stop_before_delay(patience)(state)

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
            errors.check_completed(task, made)
        return made

    async def create(self, prompt: str, **options: Unpack[OrderOptions]) -> Order:
        """Order images, with the `OrderOptions` as keywords.

        The order is durable when this returns. After a lost response the order is sent again with the same key,
        and when no attempt succeeds, a note of the error names the key.
        """
        key = options.pop("idempotency_key", None) or secrets.token_hex(16)
        sent: dict[str, Any] = {"headers": {"Idempotency-Key": key}, "files": await _order_parts(prompt, options)}
        try:
            order = await self._fetch(Order, "POST", "/api/generate/image", **sent)
        except errors.Unreachable as error:
            error.add_note(f"Ordering again with idempotency_key={key!r} is safe: an order that arrived is returned.")
            raise
        return replace(order, key=key)

    async def dry_run(self, prompt: str, **options: Unpack[OrderOptions]) -> Document:
        """Return the request that a provider would get, with its quote and routes. Nothing is ordered."""
        options.pop("idempotency_key", None)
        parts = [*await _order_parts(prompt, options), ("dryRun", (None, "true"))]
        document = await self._fetch(Document, "POST", "/api/generate/image", files=parts)
        preview: Document = document["data"]
        return preview

    async def get(self, task: TaskRef) -> Task:
        """Return the task. Raises `BrokerApiError` with status 404, or 410 once it has expired."""
        return (await self._fetch(TaskDocument, "GET", _task_path(task))).data

    async def wait(self, task: TaskRef, *, timeout: float | None = None) -> Task:
        """Return the task once it has ended, with or without an image. timeout: seconds, then `WaitTimeout`."""
        path = f"{_task_path(task)}?wait={HOLD_SECONDS}"
        try:
            async with asyncio.timeout(timeout):
                while not (current := (await self._fetch(TaskDocument, "GET", path, hold=HOLD_SECONDS)).data).ended:
                    await self._sleep(POLL_PAUSE_SECONDS)
                return current
        except TimeoutError:
            raise errors.WaitTimeout(task if isinstance(task, str) else task.id, timeout or 0.0) from None

    async def events(self, task: TaskRef) -> AsyncGenerator[Task]:
        """Yield the task now and after each change, until it has ended."""
        url, headers = f"{_task_path(task)}/events", {"Accept": "text/event-stream"}
        while True:
            response = await self._send_repeatedly("GET", url, headers=headers, hold=HOLD_SECONDS, stream=True)
            try:
                async with aclosing(response), aclosing(EventSource(response).aiter_sse()) as changes:
                    with errors.translate_errors(self.base):
                        async for event in changes:
                            if event.data:
                                headers["Last-Event-ID"] = event.id
                                current = self._parse(TaskDocument, event.data).data
                                yield current
                                if current.ended:
                                    return
            except errors.Unreachable as error:
                if not error.passing:
                    raise
            await self._sleep(POLL_PAUSE_SECONDS)

    async def tasks(
        self,
        *,
        status: str | None = None,
        search: str | None = None,
        model: str | None = None,
        limit: int = 20,
        cursor: str | None = None,
    ) -> Page:
        """Return a page of tasks, newest first.

        search: words that occur in the prompt. limit: at most 100. cursor: of the previous page.
        """
        given = {"limit": limit, "status": status, "q": search, "model": model, "cursor": cursor}
        params = {name: value for name, value in given.items() if value is not None}
        return await self._fetch(Page, "GET", "/api/tasks", params=params)

    async def cancel(self, task: TaskRef) -> Task:
        """Cancel a task; a canceled one is returned. Raises `BrokerApiError` with status 409 when it is too late."""
        try:
            return (await self._fetch(TaskDocument, "DELETE", _task_path(task), params={"cancelOnly": "true"})).data
        except errors.BrokerApiError as error:
            # an earlier attempt may have succeeded although its response was lost
            if error.status == 409 and (current := await self.get(task)).status == "canceled":
                return current
            raise

    async def delete(self, task: TaskRef) -> None:
        """Delete a task that has ended, with its images. Raises `BrokerApiError` with status 409 for another one."""
        try:
            await self._send_repeatedly("DELETE", _task_path(task), params={"deleteOnly": "true"})
        except errors.BrokerApiError as error:
            if error.status != 410:  # deleted: by an earlier attempt whose response was lost, too
                raise

    async def pin(self, task: TaskRef) -> Task:
        """Keep a task beyond retention; its `expires_at` is None then."""
        return (await self._fetch(TaskDocument, "POST", f"{_task_path(task)}/pin")).data

    async def unpin(self, task: TaskRef) -> Task:
        """Hand a task back to retention, which deletes it at once if its time is over."""
        return (await self._fetch(TaskDocument, "POST", f"{_task_path(task)}/unpin")).data

    async def retry(self, task: TaskRef) -> Order:
        """Order a failed task again; repeated calls return the same new task. Raises `BrokerApiError` for others."""
        return await self._fetch(Order, "POST", f"{_task_path(task)}/retry")

    async def images(self, task: TaskRef) -> list[Image]:
        """Wait for a task and return its images. Raises `TaskFailed`."""
        ended = await self.wait(task)
        errors.check_completed(ended)
        return await _gather_all(self.image(result) for result in ended.images)

    async def image(self, result: Result) -> Image:
        """Download an image. Raises `ChecksumMismatch` unless the bytes are those that the broker stored."""
        # without the key: images are public, and the URL may lead to a foreign store
        response = await self._send_repeatedly("GET", result.url)
        if result.sha256 is not None and hashlib.sha256(response.content).hexdigest() != result.sha256:
            raise errors.ChecksumMismatch(f"{result.name} has other bytes than the broker stores: is there a proxy?")
        return Image(**vars(result), content=response.content)

    async def download(self, result: Result, path: str | Path) -> Path:
        """Download an image into a file, or into a folder under its own name; return the path.

        An existing file is replaced only once the image is complete and verified. Raises OSError.
        """
        return await asyncio.to_thread((await self.image(result)).save, path)

    async def ask(self, method: str, path: str, /, **options: Any) -> Document:
        """Send any other request and return the JSON object of its response, empty for none. Only GET is retried.

        options: of `httpx.request`, for example params, headers and json.
        """
        send = self._send_repeatedly if method == "GET" else self._send
        content = (await send(method, path, **options)).content
        return self._parse(Document, content) if content else {}

    async def alive(self) -> bool:
        """Return whether a broker answers at `base`. Sends one request with a short time-out, without the key."""
        try:
            async with asyncio.timeout(HEALTH_TIMEOUT_SECONDS):
                response = await self._send("GET", f"{self.base}/health")
            return self._parse(Document, response.content).get("status") == "healthy"
        except (errors.BrokerError, TimeoutError):
            return False

    async def _fetch(self, cls: type[T], method: str, path: str, *, repeat: bool = True, **options: Any) -> T:
        """Send a request to the broker and return its response as a value. repeat: the request is idempotent."""
        send = self._send_repeatedly if repeat else self._send
        return self._parse(cls, (await send(method, path, **options)).content)

    async def _send(
        self,
        method: str,
        url: str,
        *,
        headers: Mapping[str, str] = {},
        hold: float = 0.0,
        stream: bool = False,
        **options: Any,
    ) -> httpx.Response:
        """Send one request. Raises `BrokerError` unless the response is a success.

        url: a path of the broker; the key is not sent to complete URLs. hold: seconds that the broker may be silent.
        """
        own = self._headers if url.startswith("/") else {}
        timeout = httpx.Timeout(self._timeout + hold, connect=CONNECT_TIMEOUT_SECONDS)
        with errors.translate_errors(self.base):
            request = self._http.build_request(method, url, headers={**own, **headers}, timeout=timeout, **options)
            response = await self._http.send(request, stream=stream)
            if not response.is_success:
                await response.aread()
                raise errors.api_error(response)
            return response

    def _parse(self, cls: type[T], content: bytes | str) -> T:
        with errors.translate_errors(self.base):
            value: T = _adapter_of(cls).validate_json(content, context=self.base)
            return value


async def _reject_downgrade(response: httpx.Response) -> None:
    """Refuse a redirect from https to another scheme."""
    target = response.url.join(response.headers.get("location", ""))
    if response.url.scheme == "https" and response.has_redirect_location and target.scheme != "https":
        raise errors.Unreachable(f"{response.url.host} redirects from https to another scheme.", passing=False)


@cache
def tls_context() -> SSLContext:
    """Return the one context of the process: reading the certificates takes 20 ms and some megabytes."""
    return httpx.create_ssl_context(trust_env=False)


def _retry_after(error: BaseException) -> float:
    return getattr(error, "retry_after", None) or 0.0


def _task_path(task: TaskRef) -> str:
    return f"/api/task/{quote(task if isinstance(task, str) else task.id, safe='')}"


async def _order_parts(prompt: str, options: OrderOptions) -> list[Any]:
    """Return the parts of the form of an order."""
    fields: dict[str, Any] = {"prompt": prompt, **options}
    references = await asyncio.to_thread(read_references, fields.pop("images", ()))
    fields["number_of_images"] = fields.pop("n", 1)
    # parts without a file name are fields; so the form is multipart even without a reference
    parts = [(to_camel(name), (None, str(value))) for name, value in fields.items() if value is not None]
    return [*parts, *references]


async def _gather_all(several: Iterable[Awaitable[T]]) -> list[T]:
    """Run all concurrently and return the results in order. The first error cancels the others."""
    running = [asyncio.ensure_future(one) for one in several]
    try:
        return list(await asyncio.gather(*running))
    finally:
        for one in running:
            one.cancel()
