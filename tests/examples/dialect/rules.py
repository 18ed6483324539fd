"""Authentication rule and error shape of the example dialect."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Mapping, Sequence

from pydantic import SecretStr
from starlette.requests import HTTPConnection
from starlette.responses import Response

from broker.api.http.responses import error_headers, json_response
from broker.errors import ApiError
from broker.principal import Principal
from tests.examples.dialect.schemas import ErrorBody, Problem


class ExampleAuthenticator:
    """A caller sends one of BROKER_API_KEYS as `X-Example-Key`."""

    def __init__(self, keys: Sequence[SecretStr], secret: bytes) -> None:
        self._secret = secret
        self._digests = [self._digest(key.get_secret_value()) for key in keys]

    async def authenticate(self, request: HTTPConnection) -> Principal | None:
        """Return the operator's principal, or None without a known key."""
        digest = self._digest(request.headers.get("x-example-key", ""))
        if not any(hmac.compare_digest(known, digest) for known in self._digests):
            return None
        name = f"example:{digest.hex()[:8]}"
        return Principal(owner=f"house:{name}", is_admin=True, name=name)

    def _digest(self, key: str) -> bytes:
        return hmac.new(self._secret, b"example:" + key.encode(), hashlib.sha256).digest()


def render_error(_: HTTPConnection, error: ApiError, headers: Mapping[str, str]) -> Response:
    """Return an error in the shape of the dialect."""
    body = ErrorBody(problem=Problem(kind=error.code, text=error.message))
    return json_response(body.to_document(), error.status, {**error_headers(error), **headers})
