"""An extra dialect takes a real order and shows its task; it needs no edit outside its folder."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import httpx
import pytest
from starlette.requests import Request
from starlette.responses import Response

from broker.api.http.endpoint import Dialect, Endpoint
from broker.services import Services
from tests.examples.dialect import example_dialect
from tests.examples.running import CALLER_KEY, running_broker

pytestmark = pytest.mark.anyio

KEY = {"x-example-key": CALLER_KEY}


async def fail(_: Request) -> Response:
    raise RuntimeError("unforeseen")


def dialect_with_a_defect(services: Services) -> Dialect:
    """Return the example with one more endpoint, whose handler fails."""
    dialect = example_dialect(services)
    defect = Endpoint("GET", "/example/defect", fail, access="public", tag="example", responses={})
    return replace(dialect, endpoints=[*dialect.endpoints, defect])


@pytest.fixture
async def client(tmp_path: Path) -> AsyncIterator[httpx.AsyncClient]:
    async with running_broker(tmp_path, dialects=[dialect_with_a_defect], api_keys=(CALLER_KEY,)) as broker:
        yield broker.client


async def test_order_of_an_extra_dialect_ends_with_an_image(client: httpx.AsyncClient) -> None:
    created = await client.post("/example/images", headers=KEY, json={"text": "a red fox", "shape": "16:9"})
    job = created.json()
    assert (created.status_code, job["state"], job["images"]) == (202, "running", [])
    native = await client.get(f"/api/task/{job['id']}", params={"wait": "10"})
    assert native.json()["data"]["aspectRatio"] == "16:9"
    done = (await client.get(f"/example/images/{job['id']}", headers=KEY)).json()
    assert (done["id"], done["state"]) == (job["id"], "done")
    (path,) = done["images"]
    assert (await client.get(path)).headers["content-type"] == "image/png"


async def test_errors_have_the_shape_of_the_dialect(client: httpx.AsyncClient) -> None:
    unauthorized = await client.post("/example/images", json={"text": "a red fox"})
    assert (unauthorized.status_code, unauthorized.json()["problem"]["kind"]) == (401, "unauthorized")
    invalid = await client.post("/example/images", headers=KEY, json={"shape": "1:1"})
    assert (invalid.status_code, invalid.json()["problem"]["text"]) == (400, "text is missing or has a wrong type.")
    rejected = await client.post("/example/images", headers=KEY, json={"text": "a red fox", "shape": "7:3"})
    assert (rejected.status_code, rejected.json()["problem"]["kind"]) == (400, "unsupported_parameter")
    missing = await client.get("/example/images/task_0", headers=KEY)
    assert (missing.status_code, missing.json()["problem"]["kind"]) == (404, "task_not_found")
    method = await client.delete("/example/images", headers=KEY)
    assert (method.status_code, method.headers["allow"], list(method.json())) == (405, "POST", ["problem"])
    defect = await client.get("/example/defect")
    assert (defect.status_code, defect.json()["problem"]["kind"]) == (500, "internal_error")


async def test_native_rules_stay_beside_an_extra_dialect(client: httpx.AsyncClient) -> None:
    assert "success" in (await client.get("/example/nothing")).json()
    assert (await client.get("/api/tasks", headers=KEY)).status_code == 401
    document = (await client.get("/openapi.json", headers={"authorization": f"Bearer {CALLER_KEY}"})).json()
    error = document["paths"]["/example/images"]["post"]["responses"]["401"]["content"]["application/json"]
    assert error["schema"] == {"$ref": "#/components/schemas/ErrorBody"}
