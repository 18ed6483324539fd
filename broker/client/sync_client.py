"""Client for programs without asyncio: notebooks, scripts, threads.

`Client` runs an `AsyncClient` on an event loop in a thread, so that each method is written once and works where another
event loop is running, as in a notebook.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine, Iterator
from concurrent.futures import CancelledError, Future
from functools import partial, wraps
from typing import Any, Concatenate, ParamSpec, TypeVar, cast

import anyio
from anyio.from_thread import BlockingPortal

from broker.client.async_client import DEFAULT_BASE, AsyncClient

P = ParamSpec("P")
T = TypeVar("T")


async def _run_portal(client: AsyncClient, ready: Future[BlockingPortal]) -> None:
    async with client, BlockingPortal() as portal:
        ready.set_result(portal)
        await portal.sleep_until_stopped()


def _stop_portal(portal: BlockingPortal, thread: threading.Thread) -> None:
    """Cancel running calls, close the client and stop its event loop."""
    portal.call(portal.stop, True)
    thread.join()


def _as_blocking(
    method: Callable[Concatenate[AsyncClient, P], Coroutine[Any, Any, T]],
) -> Callable[Concatenate[Client, P], T]:
    @wraps(method)
    def call(self: Client, /, *args: P.args, **kwargs: P.kwargs) -> T:
        return self._run(partial(method, self._client, *args, **kwargs))

    return call


def _as_iterator(
    method: Callable[Concatenate[AsyncClient, P], AsyncGenerator[T]],
) -> Callable[Concatenate[Client, P], Iterator[T]]:
    @wraps(method)
    def call(self: Client, /, *args: P.args, **kwargs: P.kwargs) -> Iterator[T]:
        # an abandoned generator is closed by its event loop
        items = method(self._client, *args, **kwargs)
        while (item := self._run(cast(Any, partial(anext, items, None)))) is not None:
            yield item

    return call


class Client:
    """Client of one broker: `Client().generate("a red fox")[0]`.

    Has the parameters and methods of `AsyncClient`, without awaiting. Any number of threads may share one. Close it
    with `with` or `close`.
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
        self.base = self._client.base
        ready: Future[BlockingPortal] = Future()
        thread = threading.Thread(
            target=anyio.run, args=(_run_portal, self._client, ready), name="broker-client", daemon=True
        )
        thread.start()
        self._portal = ready.result()
        self._close = weakref.finalize(self, _stop_portal, self._portal, thread)  # also at the exit of the interpreter

    generate = _as_blocking(AsyncClient.generate)
    create = _as_blocking(AsyncClient.create)
    dry_run = _as_blocking(AsyncClient.dry_run)
    get = _as_blocking(AsyncClient.get)
    wait = _as_blocking(AsyncClient.wait)
    events = _as_iterator(AsyncClient.events)
    tasks = _as_blocking(AsyncClient.tasks)
    cancel = _as_blocking(AsyncClient.cancel)
    delete = _as_blocking(AsyncClient.delete)
    pin = _as_blocking(AsyncClient.pin)
    unpin = _as_blocking(AsyncClient.unpin)
    retry = _as_blocking(AsyncClient.retry)
    images = _as_blocking(AsyncClient.images)
    image = _as_blocking(AsyncClient.image)
    download = _as_blocking(AsyncClient.download)
    ask = _as_blocking(AsyncClient.ask)
    alive = _as_blocking(AsyncClient.alive)

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections. Tasks continue."""
        self._close()

    def _run(self, function: Callable[[], Awaitable[T]]) -> T:
        """Return the result of a coroutine function. An interrupt of the caller cancels the coroutine."""
        future = self._portal.start_task_soon(function)
        try:
            return future.result()
        except CancelledError:
            raise RuntimeError("This client is closed: make a new one.") from None
        finally:
            future.cancel()
