"""The same client for programs that do not await: notebooks, scripts, threads.

`Client` holds an `AsyncClient` and an event loop of its own in a thread: each method is written once, and works where a
loop is running already, as in a notebook.
"""

from __future__ import annotations

import asyncio
import threading
import weakref
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine, Iterator
from concurrent.futures import CancelledError, Future
from functools import wraps
from queue import SimpleQueue
from types import TracebackType
from typing import Any, Concatenate, Final, ParamSpec, TypeVar

from broker.client.asynchronous import BASE, AsyncClient

P = ParamSpec("P")
T = TypeVar("T")

CLOSING_SECONDS: Final = 5.0
_CLOSED: Final = "This client is closed, or was made before a fork: make a new one."


class _End:
    """After the last item."""


class Background:
    """An event loop in a thread. at_end: awaited there when everything else is over.

    The thread is a daemon, since others are joined before anybody can tell them to end.
    """

    def __init__(self, at_end: Callable[[], Awaitable[None]]) -> None:
        ready: Future[asyncio.AbstractEventLoop] = Future()
        self._told = asyncio.Event()
        self._lock = threading.Lock()
        self._closed = False
        self._thread = threading.Thread(
            target=asyncio.run, args=(_live(ready, self._told, at_end),), name="broker-client", daemon=True
        )
        self._thread.start()
        self._loop = ready.result()

    def run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """The result of a coroutine. When the caller is interrupted, so is the coroutine."""
        future = self._start(coroutine)
        try:
            return future.result()
        except CancelledError:
            raise RuntimeError(_CLOSED) from None
        finally:
            future.cancel()

    def iterate(self, items: AsyncGenerator[T]) -> Iterator[T]:
        """What an asynchronous generator gives, which is closed when nobody wants more."""
        arrived: SimpleQueue[T | _End] = SimpleQueue()

        async def pump() -> None:
            async for item in items:  # canceled in here, where it closes itself
                arrived.put(item)

        future = self._start(pump())
        future.add_done_callback(lambda _: arrived.put(_End()))
        try:
            while not isinstance(item := arrived.get(), _End):
                yield item
            future.result()
        except CancelledError:
            raise RuntimeError(_CLOSED) from None
        finally:
            future.cancel()

    def close(self) -> None:
        """Cancel what is under way, close, and wait for it – unless it is the thread itself that found us forgotten."""
        with self._lock:
            self._closed = True
            if self._thread.is_alive():
                self._loop.call_soon_threadsafe(self._told.set)
        if threading.current_thread() is not self._thread:
            self._thread.join(CLOSING_SECONDS)

    def _start(self, coroutine: Coroutine[Any, Any, T]) -> Future[T]:
        with self._lock:
            if not self._closed and self._thread.is_alive():
                return asyncio.run_coroutine_threadsafe(coroutine, self._loop)
        coroutine.close()
        raise RuntimeError(_CLOSED)


async def _live(
    ready: Future[asyncio.AbstractEventLoop], told: asyncio.Event, at_end: Callable[[], Awaitable[None]]
) -> None:
    ready.set_result(asyncio.get_running_loop())
    await told.wait()
    others = asyncio.all_tasks() - {asyncio.current_task()}
    for task in others:
        task.cancel()
    await asyncio.gather(*others, return_exceptions=True)
    await at_end()


def _blocking(
    method: Callable[Concatenate[AsyncClient, P], Coroutine[Any, Any, T]],
) -> Callable[Concatenate[Client, P], T]:
    @wraps(method)
    def call(self: Client, /, *args: P.args, **kwargs: P.kwargs) -> T:
        return self._background.run(method(self._client, *args, **kwargs))

    return call


def _iterating(
    method: Callable[Concatenate[AsyncClient, P], AsyncGenerator[T]],
) -> Callable[Concatenate[Client, P], Iterator[T]]:
    @wraps(method)
    def call(self: Client, /, *args: P.args, **kwargs: P.kwargs) -> Iterator[T]:
        yield from self._background.iterate(method(self._client, *args, **kwargs))

    return call


class Client:
    """Orders images from a broker and brings them home: `Client().generate("a red fox")[0]`.

    As `AsyncClient`, whose methods it has, without the awaiting. Any number of threads may use it at once. Close it
    with `with` or `close`; one that is forgotten closes itself.
    """

    def __init__(
        self,
        base: str = BASE,
        *,
        key: str | None = None,
        language: str | None = None,
        timeout: float = 120.0,
        patience: float = 90.0,
    ) -> None:
        self._client = AsyncClient(base, key=key, language=language, timeout=timeout, patience=patience)
        self._background = Background(self._client.aclose)
        self._forgotten = weakref.finalize(self, self._background.close)  # also when the interpreter ends

    generate = _blocking(AsyncClient.generate)
    create = _blocking(AsyncClient.create)
    get = _blocking(AsyncClient.get)
    wait = _blocking(AsyncClient.wait)
    events = _iterating(AsyncClient.events)
    tasks = _blocking(AsyncClient.tasks)
    cancel = _blocking(AsyncClient.cancel)
    retry = _blocking(AsyncClient.retry)
    images = _blocking(AsyncClient.images)
    image = _blocking(AsyncClient.image)
    download = _blocking(AsyncClient.download)
    ask = _blocking(AsyncClient.ask)
    alive = _blocking(AsyncClient.alive)

    @property
    def base(self) -> str:
        return self._client.base

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.base!r})"

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections. Tasks go on without us."""
        self._forgotten()
