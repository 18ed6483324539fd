"""An extra dialect brings its own endpoints, authentication and error shape, without an edit elsewhere."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import httpx
import pytest
from pydantic import BaseModel
from starlette.requests import HTTPConnection, Request
from starlette.responses import JSONResponse, Response

from broker.api.http.auth import STRANGER, Caller
from broker.api.http.endpoint import Dialect, Endpoint, caller_of, json_success
from broker.app import build_app
from broker.bootstrap import load_settings, open_services
from broker.errors import ApiError
from broker.services import Services

pytestmark = pytest.mark.anyio

KEY = {"x-demo-key": "right"}


class Detail(BaseModel):
    detail: str


class Echo(BaseModel):
    caller: str


def authenticate(request: HTTPConnection) -> Caller:
    return Caller(name="demo", trusted=True) if request.headers.get("x-demo-key") == "right" else STRANGER


def render_error(_: HTTPConnection, error: ApiError, headers: Mapping[str, str]) -> Response:
    return JSONResponse({"detail": error.message}, error.status, headers=dict(headers))


async def echo(request: Request) -> Response:
    """Return the caller."""
    if "fail" in request.query_params:
        raise RuntimeError("unforeseen")
    return JSONResponse({"caller": caller_of(request).name})


def demo_dialect(_: Services) -> Dialect:
    return Dialect(
        name="demo",
        authenticate=authenticate,
        render_error=render_error,
        error_model=Detail,
        endpoints=[
            Endpoint("GET", "/demo/echo", echo, access="caller", tag="demo", responses={200: json_success("it", Echo)})
        ],
    )


async def test_an_extra_dialect_is_mounted_with_its_own_rules(tmp_path: Path) -> None:
    chosen: dict[str, Any] = {"data_dir": tmp_path, "tunnel_api": "http://127.0.0.1:9", "api_url": "http://127.0.0.1:9"}
    settings = load_settings(
        env_file=None, api_key="a-key-of-the-tests", webhook_base_url="https://broker.example", **chosen
    )
    async with open_services(settings, extra_dialects=[demo_dialect]) as services:
        transport = httpx.ASGITransport(build_app(services), client=("127.0.0.1", 1))
        async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1:8000") as client:
            answer = await client.get("/demo/echo", headers=KEY)
            assert (answer.status_code, answer.json()) == (200, {"caller": "demo"})
            refused = await client.get("/demo/echo")
            assert (refused.status_code, list(refused.json())) == (401, ["detail"])
            wrong = await client.post("/demo/echo")
            assert (wrong.status_code, wrong.headers["allow"], list(wrong.json())) == (405, "GET, HEAD", ["detail"])
            broken = await client.get("/demo/echo?fail", headers=KEY)
            assert (broken.status_code, list(broken.json())) == (500, ["detail"])
            assert "success" in (await client.get("/demo/nothing")).json()
            document = (await client.get("/openapi.json")).json()
            error = document["paths"]["/demo/echo"]["get"]["responses"]["401"]["content"]["application/json"]
            assert error["schema"] == {"$ref": "#/components/schemas/Detail"}
