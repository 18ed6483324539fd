"""uvicorn beside the worker: started together, stopped by a signal, drained within ten seconds.

Submissions that wait for a paid image get a minute.
"""

from __future__ import annotations

import asyncio
import signal
import socket
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from functools import partial
from typing import Any, Final, cast

import uvicorn

from broker.app import build_app
from broker.clock import seconds_to_beat
from broker.logs import log
from broker.net.hosts import local_base_url
from broker.server.deadlines import ConnectionLimits
from broker.server.parsers import protocol_class
from broker.server.protocol import CLOSE_HEADER
from broker.server.sockets import BACKLOG, refuse_handshakes, share_listener, socket_port
from broker.services import Services

TICK_SECONDS: Final = 1.0
"""Between two updates of the Date header."""
POLL_SECONDS: Final = 0.02
"""Between two looks for requests in progress when the server stops."""
DEFAULT_LIMITS: Final = ConnectionLimits()


async def serve(
    services: Services,
    sockets: Sequence[socket.socket],
    *,
    ready: Callable[[], None] = lambda: None,
    is_supervised: bool = False,
) -> None:
    """Run server and worker until SIGTERM or SIGINT, then drain. Re-raises an error that ends one of them early.

    ready: called when requests are answered and signals are handled. is_supervised: a second SIGTERM does not stop at
    once, only SIGINT does, because service managers send SIGTERM to the supervisor and to its processes.
    """
    limits = ConnectionLimits(max_per_peer=services.settings.connections_per_peer)
    async with _run_both(services, sockets, limits) as (stop, running):
        with _handle_signals(stop, is_supervised=is_supervised):
            ready()
            await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)


@asynccontextmanager
async def running_server(
    services: Services, sock: socket.socket, *, limits: ConnectionLimits = DEFAULT_LIMITS
) -> AsyncIterator[str]:
    """Run server and worker in this loop while the block runs; yield the base URL. For the demo and tests."""
    async with _run_both(services, [sock], limits):
        yield local_base_url(str(sock.getsockname()[0]), socket_port(sock))


@asynccontextmanager
async def _run_both(
    services: Services, sockets: Sequence[socket.socket], limits: ConnectionLimits
) -> AsyncIterator[tuple[Callable[[], None], Sequence[asyncio.Task[None]]]]:
    """Run server and worker; yield the function that stops both, and their tasks.

    On exit drain both and re-raise an error of either.
    """
    server = _build_server(services, limits)
    serving = asyncio.create_task(server.serve(list(sockets)), name="server")
    working = asyncio.create_task(services.worker.run(), name="worker")

    def stop() -> None:
        """Accept nothing new and answer waiting requests with the current state. A second call stops at once."""
        services.queries.closing = True
        services.worker.stop()
        server.stop()

    try:
        await _wait_first(server.listening.wait(), serving, working)
        async with services.url_monitor.run(), services.conversation_parts.keeper.run():
            yield stop, (serving, working)
    finally:
        if not server.should_exit:
            stop()
        ends = await asyncio.gather(working, serving, return_exceptions=True)
        for end in ends:
            if isinstance(end, BaseException):
                raise end


async def _wait_first(event: Any, *others: asyncio.Task[None]) -> None:
    """Wait for the event, or for the end of a task that should have caused it."""
    waiting = asyncio.ensure_future(event)
    try:
        await asyncio.wait({waiting, *others}, return_when=asyncio.FIRST_COMPLETED)
    finally:
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)


@contextmanager
def _handle_signals(stop: Callable[[], None], *, is_supervised: bool) -> Iterator[None]:
    loop, numbers = asyncio.get_running_loop(), (signal.SIGTERM, signal.SIGINT)
    stopping_on: list[signal.Signals] = []

    def on_signal(number: signal.Signals) -> None:
        if is_supervised and number == signal.SIGTERM and stopping_on:
            return
        log.info(f"stopping on {number.name}", action="server_stopping")
        stopping_on.append(number)
        stop()

    for number in numbers:
        loop.add_signal_handler(number, on_signal, number)
    try:
        yield
    finally:
        for number in numbers:
            loop.remove_signal_handler(number)


class _Server(uvicorn.Server):
    """uvicorn without its signal handlers, and without polling ten times a second for the stop flag."""

    def __init__(self, config: uvicorn.Config, last_request_seconds: float) -> None:
        super().__init__(config)
        self._last_request_seconds = last_request_seconds
        self.listening = asyncio.Event()
        self._stopping = asyncio.Event()

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup([listener for sock in sockets or () for listener in share_listener(sock)])
        self.listening.set()

    async def main_loop(self) -> None:
        tens = 0
        while not await self.on_tick(tens):  # updates the Date header
            tens += 10
            with suppress(TimeoutError):
                await asyncio.wait_for(self._stopping.wait(), seconds_to_beat(TICK_SECONDS))

    def stop(self) -> None:
        """Accept no more connections and finish requests in progress. A second call does not wait for them."""
        self.force_exit = self.should_exit
        self.should_exit = True
        self.config.encoded_headers.append(CLOSE_HEADER)
        self._stopping.set()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Answer the requests that clients have sent, then close.

        uvicorn's own closes at once: it resets connections that the kernel has accepted, and those whose request has
        not been read.
        """
        loop = asyncio.get_running_loop()
        listeners = [listener for server in self.servers for listener in server.sockets]
        # 1. accept the connections that clients are opening, and no others
        for listener in listeners:
            refuse_handshakes(listener)
        self._end_connections()
        await asyncio.sleep(self._last_request_seconds)
        # 2. asyncio drops a connection accepted just before its listener closes: first let it have its protocol
        for listener in listeners:
            loop.remove_reader(listener)
        for _ in range(2):
            await asyncio.sleep(0)
        for server in self.servers:
            server.close()
        for sock in sockets or []:
            sock.close()
        # 3. answer
        self._end_connections()
        with suppress(TimeoutError):
            await asyncio.wait_for(self._wait_until_idle(), self.config.timeout_graceful_shutdown)
        for task in self.server_state.tasks:
            task.cancel()

    async def _wait_until_idle(self) -> None:
        while self.server_state.connections or self.server_state.tasks:
            if self.force_exit:
                return
            await asyncio.sleep(POLL_SECONDS)

    def _end_connections(self) -> None:
        """Let every connection close after its response, or after a moment without a request."""
        for connection in list(self.server_state.connections):
            connection.shutdown()

    async def serve(self, sockets: list[socket.socket] | None = None) -> None:
        """Return when every request has been answered or cut off."""
        await super().serve(sockets)
        await asyncio.gather(*self.server_state.tasks, return_exceptions=True)


def _build_server(services: Services, limits: ConnectionLimits) -> _Server:
    app = build_app(services)
    protocol = partial(
        protocol_class(services.settings.http),
        limits=limits,
        peers=Counter(),
        find_ready=app.state.ready_polls.find,
    )
    return _Server(
        uvicorn.Config(
            app,
            http=cast(type[asyncio.Protocol], protocol),
            interface="asgi3",
            ws="none",
            lifespan="off",
            backlog=BACKLOG,
            access_log=False,
            log_config=None,
            log_level="error",
            proxy_headers=False,
            server_header=False,
            timeout_graceful_shutdown=limits.drain_seconds,
        ),
        limits.last_request_seconds,
    )
