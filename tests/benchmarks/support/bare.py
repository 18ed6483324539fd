"""The reference of every HTTP path: Starlette, one route, a constant answer of the size in the environment."""

from __future__ import annotations

import os

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

_SIZE = int(os.environ.get("ANSWER_BYTES", "400"))
_BODY = b'{"data":"' + b"x" * max(0, _SIZE - 11) + b'"}'


async def answer(_: Request) -> Response:
    return Response(_BODY, media_type="application/json")


app = Starlette(routes=[Route("/", answer)])
