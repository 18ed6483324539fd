"""HTTP of the client: one configured httpx client, rules for retries, and every failure as a `BrokerError`."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Any, Final, TypeAlias, cast
from urllib.parse import urlsplit

import httpx
from httpx_sse import SSEError
from pydantic import TypeAdapter, ValidationError
from tenacity import RetryCallState, wait_exponential, wait_random

from broker.client.errors import BrokerApiError, Unreachable
from broker.client.models import ErrorDocument

ASGIApp: TypeAlias = Callable[..., Awaitable[None]]

MAX_CONNECTIONS: Final = 32
"""Half of the broker's limit per address."""
CONNECT_TIMEOUT_SECONDS: Final = 10.0

_TRANSIENT_STATUSES: Final = frozenset({429, 502, 503, 504})
_BACK_OFF: Final = wait_exponential(multiplier=0.2, max=5) + wait_random(0, 0.2)
_ERROR_ADAPTER: Final = TypeAdapter(ErrorDocument)


def open_http(app: ASGIApp | None) -> httpx.AsyncClient:
    """Return the client of one broker. app: called instead of the network."""
    return httpx.AsyncClient(
        transport=httpx.ASGITransport(cast(Any, app)) if app else None,
        trust_env=False,
        follow_redirects=True,
        limits=httpx.Limits(max_connections=MAX_CONNECTIONS),
        event_hooks={"response": [_reject_downgrade]},
    )


async def _reject_downgrade(response: httpx.Response) -> None:
    """Refuse a redirect from https to another scheme."""
    target = response.url.join(response.headers.get("location", ""))
    if response.url.scheme == "https" and response.has_redirect_location and target.scheme != "https":
        raise Unreachable(f"{response.url.host} redirects from https to another scheme.", passing=False)


def validate_base(base: str) -> str:
    """Return the URL without a trailing slash. Raises ValueError that never quotes a password."""
    parts = urlsplit(base)
    is_plain = not (parts.username or parts.password or parts.query or parts.fragment)
    if parts.scheme not in ("http", "https") or not parts.hostname or not is_plain:
        raise ValueError("base must be the broker's address and nothing else, like http://127.0.0.1:8000")
    return base.rstrip("/")


@contextmanager
def translate_errors(base: str) -> Iterator[None]:
    """Raise every failure inside as a `BrokerError`."""
    try:
        yield
    except (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout) as error:
        reason = str(error) or type(error).__name__
        raise Unreachable(
            f"No connection ({reason}). Is there a broker at {base}? `broker serve` starts one."
        ) from None
    except (httpx.InvalidURL, httpx.LocalProtocolError, UnicodeEncodeError):
        # their messages quote values, for example a key with a line break
        message = "The request cannot be sent: check the key (header Authorization), the language and the address."
        raise Unreachable(message, passing=False) from None
    except (ValidationError, SSEError, httpx.TooManyRedirects) as error:
        detail = error.errors()[0]["msg"] if isinstance(error, ValidationError) else error
        raise Unreachable(f"What answers at {base} is not a broker: {detail}", passing=False) from None
    except httpx.HTTPError as error:
        raise Unreachable(f"{base} sent no complete response ({type(error).__name__}).") from None


def check_status(response: httpx.Response) -> None:
    """Raise `BrokerApiError` unless the response is a success."""
    status = response.status_code
    if response.is_success:
        return
    try:
        document = _ERROR_ADAPTER.validate_json(response.content)
    except ValidationError:  # of a proxy
        document = ErrorDocument(error=f"HTTP {status} from {response.url}", retryable=status in _TRANSIENT_STATUSES)
    retry_after = response.headers.get("retry-after", "")
    raise BrokerApiError(
        document.error,
        status=status,
        code=document.code,
        field=document.field,
        retryable=document.retryable,
        retry_after=float(retry_after) if retry_after.isdecimal() else None,
    )


def is_transient(error: BaseException) -> bool:
    """Return whether the same request may succeed at once or after a pause."""
    if isinstance(error, BrokerApiError):
        return error.status in _TRANSIENT_STATUSES and error.retryable
    return isinstance(error, Unreachable) and error.passing


def pause_seconds(state: RetryCallState) -> float:
    """Return the broker's Retry-After plus an exponential pause with jitter."""
    error = state.outcome.exception() if state.outcome else None
    return (getattr(error, "retry_after", None) or 0.0) + _BACK_OFF(state)
