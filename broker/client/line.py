"""The line to one broker: a request once, or again until it is heard; each trouble becomes an error of the tree."""

from __future__ import annotations

import asyncio
import random
import re
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, aclosing, asynccontextmanager, contextmanager
from typing import Any, Final, TypeAlias, TypeVar
from urllib.parse import urljoin, urlsplit

from broker.client import events
from broker.client.errors import BrokerError, Damaged, Refused, Unreachable
from broker.client.events import Event
from broker.client.results import Document, Malformed
from broker.errors import NotSent, ProviderError
from broker.net.api_client import ApiClient, FilePart, Form, HttpResponse, Stream

T = TypeVar("T")
Sleep: TypeAlias = Callable[[float], Awaitable[None]]

CONNECTIONS: Final = 32
"""Half of what a broker grants one address."""
HELD: Final = 24
"""Of those, for requests that wait for news; the others have room in any case."""

STRANGER_SECONDS: Final = 2.0
"""Patience with a broker that was never heard: probably it is not there."""
FIRST_PAUSE: Final = 0.2
LONGEST_PAUSE: Final = 5.0
DAMAGED_TRIES: Final = 3
LONGEST_HOLD: Final = 25.0
SILENCE_SECONDS: Final = 60.0
"""In a stream a broker gives a sign of life every fifteen."""
MOST_ANSWER_BYTES: Final = 64 * 2**20
MOST_ERROR_BYTES: Final = 2**20

_PASSING: Final = frozenset({429, 502, 503, 504})
_REDIRECTS: Final = frozenset({301, 302, 303, 307, 308})
_MOST_REDIRECTS: Final = 3


class Line:
    """base: the broker's address. timeout: seconds for one request. patience: seconds for which a broker may be
    silent or busy, once it was heard. sleep: how a pause is made."""

    def __init__(
        self,
        base: str,
        *,
        key: str | None = None,
        language: str | None = None,
        timeout: float,
        patience: float,
        sleep: Sleep = asyncio.sleep,
    ) -> None:
        self.base = _checked(base)
        self.sleep = sleep
        self._patience = patience
        self._heard = False
        self._trust = {"Authorization": f"Bearer {key}"} if key else {}
        self._speech = {"Accept-Language": language} if language else {}
        self._timeout = timeout
        self._held = asyncio.Semaphore(HELD)
        self._quick = asyncio.Semaphore(CONNECTIONS - HELD)
        self._api = ApiClient(
            timeout=timeout + LONGEST_HOLD, max_connections=CONNECTIONS, max_answer_bytes=MOST_ANSWER_BYTES
        )

    async def aclose(self) -> None:
        await self._api.aclose()

    @contextmanager
    def trouble(self) -> Iterator[None]:
        """What goes wrong within, as an error of the tree."""
        try:
            yield
        except NotSent as error:
            cure = "" if error.permanent else f". Is there a broker at {self.base}? `broker serve` starts one."
            raise Unreachable(f"{error}{cure}", passing=not error.permanent, sent=False) from None
        except ProviderError as error:
            raise Unreachable(str(error)) from None
        except (Malformed, events.TooLong) as error:
            raise Unreachable(f"What answers at {self.base} is no broker: {error}.", passing=False) from None

    # -- again and again

    async def persist(self, attempt: Callable[[], Awaitable[T]]) -> T:
        """The same until it succeeds or there is no use in it. Only for what is safe to repeat."""
        tries = self.tries()
        while True:
            try:
                return await attempt()
            except BrokerError as error:
                await tries.after(error)

    def tries(self) -> Tries:
        return Tries(self)

    @property
    def patience(self) -> float:
        return self._patience if self._heard else min(self._patience, STRANGER_SECONDS)

    # -- once

    async def ask(
        self,
        method: str,
        path: str,
        *,
        params: Mapping[str, str] | None = None,
        headers: Mapping[str, str] | None = None,
        json: Any = None,
        form: Form | None = None,
        files: Sequence[FilePart] = (),
        hold: float = 0.0,
    ) -> Document:
        """The object that a request is answered with. hold: seconds for which the broker may keep it."""
        async with self._held if hold else self._quick:
            with self.trouble():
                answer = await self._api.request(
                    method,
                    self.base + path,
                    headers={**self._speech, **self._trust, **(headers or {})},
                    params=params,
                    json=json,
                    form=form,
                    files=files,
                    timeout=self._timeout + hold,
                )
                return self._document(answer)

    async def alive(self, seconds: float) -> bool:
        """Whether a broker answers here, and not nobody or something else."""
        try:
            health = (await self._api.request("GET", f"{self.base}/health", timeout=seconds)).json()
        except ProviderError:
            return False
        self._heard = isinstance(health, dict) and health.get("status") == "healthy"
        return self._heard

    @asynccontextmanager
    async def follow(self, path: str, last: str | None) -> AsyncGenerator[AsyncIterator[Event]]:
        """The events of a stream after the one with the id `last`, to the end of the stream."""
        headers = {"Accept": "text/event-stream", **self._speech, **({"Last-Event-ID": last} if last else {})}
        opening = self._api.stream("GET", self.base + path, headers=headers, silence=SILENCE_SECONDS)
        async with self._held:
            with self.trouble():
                async with opening as stream:
                    await self._check(stream)
                    async with aclosing(events.read(stream.chunks)) as reading:
                        yield reading

    @asynccontextmanager
    async def image(self, url: str) -> AsyncGenerator[Stream]:
        """An image on its way. No key goes along: the door is open, and the store we may be sent to is a stranger."""
        async with self._quick:
            with self.trouble():
                async with AsyncExitStack() as stack:
                    stream = await self._arrive(stack, url)
                    await self._check(stream)
                    yield stream

    async def _arrive(self, stack: AsyncExitStack, url: str) -> Stream:
        """The first answer that is no redirect, its connection held open by the stack."""
        for _ in range(_MOST_REDIRECTS + 1):
            stream = await stack.enter_async_context(self._api.stream("GET", url, silence=SILENCE_SECONDS))
            if stream.status not in _REDIRECTS:
                return stream
            await stack.aclose()
            url = follow(url, stream.headers.get("location", ""))
        raise Malformed("its images are always somewhere else")

    # -- answers and errors

    async def _check(self, stream: Stream) -> None:
        """Raises `Refused` unless what comes is what was asked for."""
        self._heard = True
        if not 200 <= stream.status < 300:
            body = bytearray()
            async for chunk in stream.chunks:
                body += chunk
                if len(body) > MOST_ERROR_BYTES:
                    break
            raise self._refusal(HttpResponse(status=stream.status, headers=stream.headers, body=bytes(body)))

    def _document(self, answer: HttpResponse) -> Document:
        self._heard = True
        if not 200 <= answer.status < 300:
            raise self._refusal(answer)
        document = _object(answer)
        if document is None:
            raise Malformed("its answer is no JSON object")
        return document

    def _refusal(self, answer: HttpResponse) -> Refused:
        said = _object(answer) or {}
        passing = answer.status in _PASSING
        return Refused(
            str(said.get("error") or f"{self.base} answered with HTTP {answer.status}."),
            status=answer.status,
            code=_word(said, "code"),
            field=_word(said, "field"),
            retryable=bool(said.get("retryable", passing)),
            retry_after=_seconds(answer.headers.get("retry-after", "")),
            details=said.get("details") or (),
        )


class Tries:
    """How long the same is tried. Each sign of life begins the time anew."""

    def __init__(self, line: Line) -> None:
        self._line = line
        self.heard()

    def heard(self) -> None:
        self._since = asyncio.get_running_loop().time()
        self._failures = 0

    async def after(self, error: BrokerError) -> None:
        """Pause before the next try. Raises the error where another makes no sense, or would come too late."""
        self._failures += 1
        pause = self._pause(error)
        waited = asyncio.get_running_loop().time() - self._since
        if not self._may_pass(error) or waited + pause > self._line.patience:
            raise error
        await self._line.sleep(pause)

    def _may_pass(self, error: BrokerError) -> bool:
        match error:
            case Unreachable():
                return error.passing
            case Refused():
                return error.status in _PASSING and error.retryable
            case Damaged():
                return self._failures < DAMAGED_TRIES
            case _:
                return False

    def _pause(self, error: BrokerError) -> float:
        """Longer each time, and never the same for two callers who failed together."""
        longest = min(LONGEST_PAUSE, FIRST_PAUSE * 2.0 ** min(self._failures - 1, 10))
        asked = error.retry_after or 0.0 if isinstance(error, Refused) else 0.0
        return asked + random.uniform(longest / 2, longest)  # noqa: S311


def _checked(base: str) -> str:
    """Without a slash at the end. Raises ValueError; what it says never holds a password."""
    parts = urlsplit(base)
    plain = not (parts.username or parts.password or parts.query or parts.fragment)
    if parts.scheme not in ("http", "https") or not parts.hostname or not plain:
        raise ValueError("base must be the broker's address and nothing else, like http://127.0.0.1:8000")
    return base.rstrip("/")


def _object(answer: HttpResponse) -> Document | None:
    try:
        said = answer.json()
    except ProviderError:
        return None
    return said if isinstance(said, Mapping) else None


def _word(said: Document, key: str) -> str | None:
    value = said.get(key)
    return value if isinstance(value, str) else None


def _seconds(text: str) -> float | None:
    return float(text) if re.fullmatch(r"[0-9]{1,9}", text.strip()) else None


def follow(url: str, location: str) -> str:
    """Where a redirect leads; from https never to anything else."""
    there = urljoin(url, location)
    if url.startswith("https:") and not there.startswith("https:"):
        raise Malformed("it sends us from https to another kind of address for an image")
    return there
