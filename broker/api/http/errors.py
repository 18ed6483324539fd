"""Exceptions to error responses, each in the shape of the dialect whose path was requested."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, HTTPConnection
from starlette.responses import Response

from broker.api.http.answers import allow_retry, mark_unfinished
from broker.api.http.endpoint import Dialect, dialect_of
from broker.errors import ApiError
from broker.logs import log
from broker.metrics import Metrics
from storage.errors import DatabaseReplaced, StorageError, StorageFull

RETRY_SECONDS: Final = 5.0
"""`Retry-After` while the database or the image store is out of reach."""
_ROUTING_ERRORS: Final = {
    404: ("not_found", "There is nothing at this address."),
    405: ("invalid_request", "This address does not support that method."),
}


class ErrorRenderer:
    """Renders errors in the dialect of the request, and counts them."""

    def __init__(self, dialects: Sequence[Dialect], metrics: Metrics) -> None:
        self._fallback, *self._others = dialects
        """For paths that no dialect has, unless another dialect recognizes its client."""
        self._metrics = metrics

    def render(self, request: HTTPConnection, error: ApiError, headers: Mapping[str, str] | None = None) -> Response:
        self._metrics.request_errors.labels(error.code).inc()
        dialect = dialect_of(request.scope)
        if dialect is None:
            dialect = next((one for one in self._others if one.is_client(request)), self._fallback)
        return dialect.render_error(request, error, headers or {})

    def response_to(self, request: HTTPConnection, error: Exception) -> Response | None:
        """Return the response to an exception that requests may end with; None for an unforeseen one."""
        match error:
            case ApiError():
                return self.render(request, error)
            case HTTPException():
                return self._on_http_exception(request, error)
            case StorageError():
                return self._on_storage_error(request, error)
            case ClientDisconnect():
                log.debug("the client disconnected", action="client_disconnected")
                return Response(status_code=400)  # not received by any client
        return None

    def _on_http_exception(self, request: HTTPConnection, error: HTTPException) -> Response:
        """Render an unknown path or method; the router of Starlette raises nothing else."""
        code, message = _ROUTING_ERRORS[error.status_code]
        return self.render(request, ApiError(code, message, status=error.status_code), error.headers)

    def _on_storage_error(self, request: HTTPConnection, error: StorageError) -> Response:
        log.error("the store cannot be used", action="store_unavailable", why=str(error))
        mark_unfinished(request)
        allow_retry(request)
        return self.render(request, _api_error(error))


def unavailable() -> ApiError:
    """Return the error of a database, a store or a process that cannot be used right now."""
    message = "The broker cannot do this right now. Try again in a few seconds."
    return ApiError("unavailable", message, retryable=True, retry_after=RETRY_SECONDS)


def _api_error(error: StorageError) -> ApiError:
    match error:
        case StorageFull():
            return _storage_full()
        case DatabaseReplaced():
            return ApiError(
                "unavailable",
                str(error),
                retryable=True,
                retry_after=RETRY_SECONDS,
                message_key="database_replaced",
            )
    return unavailable()


def _storage_full() -> ApiError:
    return ApiError("storage_full", "There is no space left to store this. Try again later.", retryable=True)


def internal_error() -> ApiError:
    """Return the error of an unforeseen exception, without its details."""
    return ApiError("internal_error", "Something went wrong in the broker. The operator finds the reason in the log.")
