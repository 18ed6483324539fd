"""Client for programs without asyncio: notebooks, scripts, threads.

`Client` runs an `AsyncClient` on an event loop in a thread, so that each method is written once and works where another
event loop is running, as in a notebook.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine, Iterator
from concurrent.futures import CancelledError, Future
from contextlib import suppress
from functools import wraps
from typing import Any, Concatenate, Final, ParamSpec, TypeVar, cast

import anyio
from anyio.from_thread import BlockingPortal

from broker.client.async_client import DEFAULT_BASE, AsyncClient

P = ParamSpec("P")
T = TypeVar("T")

_CLOSED: Final = "This client is closed, or was made before a fork: make a new one."
_END: Final = object()


class _LoopThread:
    """Event loop of a client in a daemon thread."""

    def __init__(self, client: AsyncClient) -> None:
        self._lock = threading.Lock()
        ready: Future[BlockingPortal] = Future()
        self._thread = threading.Thread(
            target=anyio.run, args=(_run_portal, client, ready), name="broker-client", daemon=True
        )
        self._thread.start()
        self._portal = ready.result()

    def call(self, function: Callable[..., Awaitable[T]], *args: Any, **kwargs: Any) -> T:
        """Return the result of a coroutine function. An interrupt of the caller cancels the coroutine."""
        with self._lock:
            if not self._thread.is_alive():
                raise RuntimeError(_CLOSED)
            future = self._portal.start_task_soon(lambda: function(*args, **kwargs))
        try:
            return future.result()
        except CancelledError:
            raise RuntimeError(_CLOSED) from None
        finally:
            future.cancel()

    def close(self) -> None:
        """Cancel running calls, close the client and stop the loop."""
        if threading.current_thread() is self._thread:  # the garbage collector runs anywhere; no thread can join itself
            threading.Thread(target=self.close, daemon=True).start()
            return
        with self._lock:
            if self._thread.is_alive():
                self._portal.call(self._portal.stop, True)
                self._thread.join()


async def _run_portal(client: AsyncClient, ready: Future[BlockingPortal]) -> None:
    async with client, BlockingPortal() as portal:
        ready.set_result(portal)
        await portal.sleep_until_stopped()


def _as_blocking(
    method: Callable[Concatenate[AsyncClient, P], Coroutine[Any, Any, T]],
) -> Callable[Concatenate[Client, P], T]:
    @wraps(method)
    def call(self: Client, /, *args: P.args, **kwargs: P.kwargs) -> T:
        return self._loop.call(method, self._client, *args, **kwargs)

    return call


def _as_iterator(
    method: Callable[Concatenate[AsyncClient, P], AsyncGenerator[T]],
) -> Callable[Concatenate[Client, P], Iterator[T]]:
    @wraps(method)
    def call(self: Client, /, *args: P.args, **kwargs: P.kwargs) -> Iterator[T]:
        items = method(self._client, *args, **kwargs)
        try:
            while (item := self._loop.call(cast(Any, anext), items, _END)) is not _END:
                yield item
        finally:
            with suppress(RuntimeError):  # closed, or the cancelled step still runs and closes the generator itself
                self._loop.call(items.aclose)

    return call


class Client:
    """Client of one broker: `Client().generate("a red fox")[0]`.

    Has the parameters and methods of `AsyncClient`, without awaiting. Any number of threads may share one. Close it
    with `with` or `close`; an unreferenced one closes itself.
    """

    def __init__(
        self,
        base: str = DEFAULT_BASE,
        *,
        key: str | None = None,
        language: str | None = None,
        timeout: float = 120.0,
        patience: float = 90.0,
    ) -> None:
        self._client = AsyncClient(base, key=key, language=language, timeout=timeout, patience=patience)
        self._loop = _LoopThread(self._client)
        self._finalizer = weakref.finalize(self, self._loop.close)  # also runs at the exit of the interpreter

    generate = _as_blocking(AsyncClient.generate)
    create = _as_blocking(AsyncClient.create)
    get = _as_blocking(AsyncClient.get)
    wait = _as_blocking(AsyncClient.wait)
    events = _as_iterator(AsyncClient.events)
    tasks = _as_blocking(AsyncClient.tasks)
    cancel = _as_blocking(AsyncClient.cancel)
    retry = _as_blocking(AsyncClient.retry)
    images = _as_blocking(AsyncClient.images)
    image = _as_blocking(AsyncClient.image)
    download = _as_blocking(AsyncClient.download)
    ask = _as_blocking(AsyncClient.ask)
    alive = _as_blocking(AsyncClient.alive)

    @property
    def base(self) -> str:
        return self._client.base

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.base!r})"

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections. Tasks continue."""
        self._finalizer()
