"""Responses: JSON, and connections that close early."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from starlette.responses import Response
from starlette.types import Receive, Scope, Send


def json_response(body: Any, *, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """Return JSON in ASCII: a prompt may contain a lone surrogate, which UTF-8 cannot encode."""
    return Response(json.dumps(body), status, headers, media_type="application/json")


class HangUp(Response):
    """Close the connection: without a response, or halfway through the content.

    The server has to put `hang_up` into the request's state, as `serve_sandbox` does.
    """

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if self.body:
            half = bytes(self.body[: len(self.body) // 2])
            await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
            await send({"type": "http.response.body", "body": half, "more_body": True})
        scope["state"]["hang_up"]()
        while (await receive())["type"] != "http.disconnect":
            pass
