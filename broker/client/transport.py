"""HTTP connection to one broker: httpx with retries, translating every failure into a `BrokerError`."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager, nullcontext
from typing import Any, Final, TypeAlias, TypeVar, cast
from urllib.parse import urlsplit

import httpx
from httpx_sse import SSEError
from tenacity import AsyncRetrying, RetryCallState, retry_if_exception, stop_before_delay

from broker.client.errors import BrokerApiError, ChecksumMismatch, Unreachable
from broker.client.models import Document, InvalidResponse

T = TypeVar("T")
Sleep: TypeAlias = Callable[[float], Awaitable[None]]
ASGIApp: TypeAlias = Callable[..., Awaitable[None]]

MAX_CONNECTIONS: Final = 32
"""Half of the broker's limit per address."""
MAX_WAITING_CONNECTIONS: Final = 24
"""Limit of long polls and event streams, so that other requests always find a connection."""

CONNECT_TIMEOUT_SECONDS: Final = 10.0
STREAM_TIMEOUT_SECONDS: Final = 60.0
"""Longest silence in a stream; a broker sends a comment every fifteen seconds."""
MAX_HOLD_SECONDS: Final = 25.0
UNKNOWN_BROKER_PATIENCE_SECONDS: Final = 2.0
"""Patience with a broker that has never answered: the address is probably wrong."""
FIRST_PAUSE_SECONDS: Final = 0.2
MAX_PAUSE_SECONDS: Final = 5.0
MAX_CHECKSUM_ATTEMPTS: Final = 3
MAX_REDIRECTS: Final = 3

_TRANSIENT_STATUSES: Final = frozenset({429, 502, 503, 504})


class Transport:
    """Requests to one broker; `AsyncClient` documents the parameters."""

    def __init__(
        self,
        base: str,
        *,
        key: str | None,
        language: str | None,
        timeout: float,
        patience: float,
        sleep: Sleep,
        app: ASGIApp | None,
    ) -> None:
        self.base = _validate_base(base)
        self.sleep = sleep
        self._timeout = timeout
        self._patience = patience
        self._has_answered = False
        self._headers = {
            **({"Authorization": f"Bearer {key}"} if key else {}),
            **({"Accept-Language": language} if language else {}),
        }
        self._waiting = asyncio.Semaphore(MAX_WAITING_CONNECTIONS)
        self._http = httpx.AsyncClient(
            transport=httpx.ASGITransport(cast(Any, app)) if app else None,
            trust_env=False,
            follow_redirects=True,
            max_redirects=MAX_REDIRECTS,
            limits=httpx.Limits(max_connections=MAX_CONNECTIONS),
            event_hooks={"response": [_reject_downgrade]},
        )

    async def aclose(self) -> None:
        await self._http.aclose()

    async def retry(self, attempt: Callable[[], Awaitable[T]]) -> T:
        """Repeat an idempotent request while its failure is transient and the patience lasts."""
        retrying = AsyncRetrying(
            sleep=self.sleep,
            retry=retry_if_exception(_is_transient),
            wait=_pause_seconds,
            stop=self._should_stop,
            reraise=True,
        )
        return await retrying(attempt)

    async def request(
        self, method: str, path: str, *, headers: Mapping[str, str] | None = None, hold: float = 0.0, **options: Any
    ) -> Document:
        """Send one request and return the JSON object of its response. hold: seconds that the broker may delay it."""
        seconds = self._timeout + hold
        with self.translate_errors():
            async with self._waiting if hold else nullcontext(), asyncio.timeout(seconds):
                response = await self._http.request(
                    method,
                    self.base + path,
                    headers={**self._headers, **(headers or {})},
                    timeout=httpx.Timeout(seconds, connect=CONNECT_TIMEOUT_SECONDS),
                    **options,
                )
            self._check_status(response)
            document = _json_object(response)
            if document is None:
                raise InvalidResponse("its answer is not a JSON object")
            return document

    @asynccontextmanager
    async def stream_events(self, path: str, last_event_id: str | None) -> AsyncGenerator[httpx.Response]:
        """Open an event stream that continues after `last_event_id`."""
        headers = {**self._headers, "Accept": "text/event-stream", "Cache-Control": "no-store"}
        if last_event_id:
            headers["Last-Event-ID"] = last_event_id
        async with self._waiting, self._open_stream(self.base + path, headers) as response:
            yield response

    @asynccontextmanager
    async def stream_image(self, url: str) -> AsyncGenerator[httpx.Response]:
        """Open an image. Without the key: images are public, and a redirect may lead to a foreign store."""
        async with self._open_stream(url, {}) as response:
            yield response

    async def is_healthy(self, timeout_seconds: float) -> bool:
        """Return whether a broker answers. Sends one request, without the key."""
        try:
            health = _json_object(await self._http.get(f"{self.base}/health", timeout=timeout_seconds))
        except httpx.HTTPError:
            return False
        self._has_answered = health is not None and health.get("status") == "healthy"
        return self._has_answered

    @asynccontextmanager
    async def _open_stream(self, url: str, headers: Mapping[str, str]) -> AsyncGenerator[httpx.Response]:
        timeout = httpx.Timeout(STREAM_TIMEOUT_SECONDS, connect=CONNECT_TIMEOUT_SECONDS)
        with self.translate_errors():
            async with self._http.stream("GET", url, headers=headers, timeout=timeout) as response:
                if not response.is_success:
                    await response.aread()
                self._check_status(response)
                yield response

    @contextmanager
    def translate_errors(self) -> Iterator[None]:
        """Raise every failure inside as a `BrokerError`."""
        try:
            yield
        except (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout) as error:
            cure = f"Is there a broker at {self.base}? `broker serve` starts one."
            raise Unreachable(f"No connection ({str(error) or type(error).__name__}). {cure}", sent=False) from None
        except (httpx.InvalidURL, httpx.LocalProtocolError, UnicodeEncodeError):
            # their messages quote values, for example a key with a line break
            message = "The request cannot be sent: check the key (header Authorization), the language and the address."
            raise Unreachable(message, passing=False, sent=False) from None
        except (InvalidResponse, SSEError) as error:
            raise Unreachable(f"What answers at {self.base} is not a broker: {error}.", passing=False) from None
        except httpx.TooManyRedirects:
            raise Unreachable(f"{self.base} redirects an image in circles.", passing=False) from None
        except (httpx.TimeoutException, TimeoutError):
            raise Unreachable(f"{self.base} sent no complete response in time.") from None
        except httpx.HTTPError:
            raise Unreachable(f"The connection to {self.base} broke.") from None

    def _check_status(self, response: httpx.Response) -> None:
        """Raise `BrokerApiError` unless the response is a success."""
        self._has_answered = True
        if response.is_success:
            return
        document = _json_object(response) or {}
        code, field = document.get("code"), document.get("field")
        retry_after = response.headers.get("retry-after", "")
        raise BrokerApiError(
            str(document.get("error") or f"{self.base} answered with HTTP {response.status_code}."),
            status=response.status_code,
            code=code if isinstance(code, str) else None,
            field=field if isinstance(field, str) else None,
            retryable=bool(document.get("retryable", response.status_code in _TRANSIENT_STATUSES)),
            retry_after=float(retry_after) if retry_after.isascii() and retry_after.isdigit() else None,
            details=document.get("details") or (),
        )

    def _should_stop(self, state: RetryCallState) -> bool:
        if isinstance(_error_of(state), ChecksumMismatch):
            return state.attempt_number >= MAX_CHECKSUM_ATTEMPTS
        patience = self._patience if self._has_answered else min(self._patience, UNKNOWN_BROKER_PATIENCE_SECONDS)
        return stop_before_delay(patience)(state)


def _is_transient(error: BaseException) -> bool:
    match error:
        case Unreachable():
            return error.passing
        case BrokerApiError():
            return error.status in _TRANSIENT_STATUSES and error.retryable
        case _:
            return isinstance(error, ChecksumMismatch)


def _pause_seconds(state: RetryCallState) -> float:
    """Return the broker's Retry-After plus an exponential pause with jitter."""
    error = _error_of(state)
    requested = error.retry_after or 0.0 if isinstance(error, BrokerApiError) else 0.0
    longest = min(MAX_PAUSE_SECONDS, FIRST_PAUSE_SECONDS * 2.0 ** min(state.attempt_number - 1, 10))
    return requested + random.uniform(longest / 2, longest)  # noqa: S311


def _error_of(state: RetryCallState) -> BaseException | None:
    return state.outcome.exception() if state.outcome else None


def _validate_base(base: str) -> str:
    """Return the URL without a trailing slash. Raises ValueError that never quotes a password."""
    parts = urlsplit(base)
    plain = not (parts.username or parts.password or parts.query or parts.fragment)
    if parts.scheme not in ("http", "https") or not parts.hostname or not plain:
        raise ValueError("base must be the broker's address and nothing else, like http://127.0.0.1:8000")
    return base.rstrip("/")


async def _reject_downgrade(response: httpx.Response) -> None:
    """Refuse a redirect from https to another scheme."""
    if not response.has_redirect_location or response.url.scheme != "https":
        return
    if response.url.join(response.headers["location"]).scheme != "https":
        raise InvalidResponse("it redirects from https to another scheme")


def _json_object(response: httpx.Response) -> Document | None:
    try:
        document = response.json()
    except (ValueError, RecursionError):
        return None
    return document if isinstance(document, Mapping) else None
