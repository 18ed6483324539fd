"""The emulator of fal: what its documentation says, as a client of fal sees it."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
import pytest

from broker.sandbox.engine import Options
from broker.sandbox.server import serve_sandbox

pytestmark = pytest.mark.anyio

APP = "fal-ai/nano-banana"
PNG = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
)
PIXEL = f"data:image/png;base64,{base64.b64encode(PNG).decode()}"


@asynccontextmanager
async def open_fal(**options: Any) -> AsyncIterator[httpx.AsyncClient]:
    chosen = {"duration": 0.01, "callback_spacing": 0.01, "api_key": "id:secret", "creates_per_window": 100, **options}
    async with (
        serve_sandbox(options=Options(dialect="fal", **chosen)) as url,
        httpx.AsyncClient(base_url=url, headers={"Authorization": "Key id:secret"}, verify=False) as client,
    ):
        yield client


async def submit(client: httpx.AsyncClient, app: str = APP, **fields: Any) -> dict[str, Any]:
    response = await client.post(f"/{app}", json={"prompt": "a fox", **fields})
    assert response.status_code == 200, response.text
    ticket: dict[str, Any] = response.json()
    return ticket


async def ended(client: httpx.AsyncClient, ticket: dict[str, Any]) -> dict[str, Any]:
    """Return the last status of a request: 202 while it runs, 200 then."""
    async with asyncio.timeout(15):
        while True:
            response = await client.get(ticket["status_url"])
            status: dict[str, Any] = response.json()
            assert response.status_code == (200 if status["status"] == "COMPLETED" else 202)
            if status["status"] == "COMPLETED":
                return status


@pytest.mark.parametrize(
    ("app", "fields"),
    [
        ("fal-ai/nano-banana", {}),
        ("fal-ai/gemini-25-flash-image", {"aspect_ratio": "16:9"}),
        ("fal-ai/nano-banana-pro", {"resolution": "2K", "aspect_ratio": "auto", "output_format": "jpeg"}),
        ("fal-ai/nano-banana-2", {"resolution": "0.5K", "aspect_ratio": "8:1", "output_format": "webp"}),
        ("google/nano-banana-2-lite", {"num_images": 2}),
        ("google/nano-banana-2.1/edit", {"image_urls": [PIXEL], "seed": 7}),
    ],
)
async def test_request_is_queued_and_has_an_output(app: str, fields: dict[str, Any]) -> None:
    async with open_fal() as client:
        ticket = await submit(client, app, **fields)
        assert (ticket["status"], ticket["queue_position"]) == ("IN_QUEUE", 0)
        assert ticket["response_url"].endswith(f"/{app.removesuffix('/edit')}/requests/{ticket['request_id']}")
        assert "error" not in await ended(client, ticket)
        images = (await client.get(ticket["response_url"])).json()["images"]
        assert len(images) == fields.get("num_images", 1)
        image = await client.get(images[0]["url"])
        assert image.headers["content-type"] == f"image/{fields.get('output_format', 'png')}"


@pytest.mark.parametrize("header", [{}, {"Authorization": "Bearer id:secret"}, {"Authorization": "Key other"}])
async def test_key_is_needed_with_its_own_scheme(header: dict[str, str]) -> None:
    async with open_fal() as client:
        client.headers.pop("authorization")
        response = await client.post(f"/{APP}", json={"prompt": "a fox"}, headers=header)
        assert (response.status_code, list(response.json())) == (401, ["detail"])


@pytest.mark.parametrize(
    ("app", "fields", "status"),
    [
        ("fal-ai/unknown", {}, 404),
        (f"{APP}/paint", {}, 404),
        (APP, {"aspect_ratio": "auto"}, 422),
        (APP, {"resolution": "1K"}, 422),
        (APP, {"image_urls": [PIXEL]}, 422),
        (APP, {"fal_webhook": "x"}, 422),
        (APP, {"num_images": 5}, 422),
        (APP, {"output_format": "jpg"}, 422),
        (f"{APP}/edit", {}, 422),
        (f"{APP}/edit", {"image_urls": [PIXEL] * 4}, 422),
        (f"{APP}/edit", {"image_urls": ["ftp://x"]}, 422),
        ("fal-ai/nano-banana-2", {"resolution": "2k"}, 422),
    ],
)
async def test_invalid_input_is_rejected_with_details(app: str, fields: dict[str, Any], status: int) -> None:
    async with open_fal() as client:
        response = await client.post(f"/{app}", json={"prompt": "a fox", **fields})
        assert response.status_code == status
        assert isinstance(response.json()["detail"], list if status == 422 else str)
        assert (await client.get("/sandbox/jobs")).json()["jobs"] == []


async def test_request_is_found_below_its_app_only() -> None:
    """The sub-path is no part of it."""
    async with open_fal() as client:
        name = (await submit(client, f"{APP}/edit", image_urls=[PIXEL]))["request_id"]
        paths = (f"{APP}/requests/{name}", f"{APP}/edit/requests/{name}", f"fal-ai/nano-banana-2/requests/{name}")
        assert [(await client.get(f"/{path}/status")).status_code in {200, 202} for path in paths] == [
            True,
            False,
            False,
        ]


async def test_running_request_has_no_result_and_can_be_canceled_once() -> None:
    async with open_fal() as client:
        ticket = await submit(client, prompt="a fox [mood:slow:60]")
        result = await client.get(ticket["response_url"])
        assert (result.status_code, result.json()["detail"]) == (400, "Request is still in progress")
        canceled = await client.put(ticket["cancel_url"])
        assert (canceled.status_code, canceled.json()["status"]) == (202, "CANCELLATION_REQUESTED")
        assert (await ended(client, ticket))["error_type"] == "client_cancelled"
        again = await client.put(ticket["cancel_url"])
        assert (again.status_code, again.json()["status"]) == (400, "ALREADY_COMPLETED")
        unknown = await client.put(f"/{APP}/requests/unknown/cancel")
        assert unknown.status_code == 404


@pytest.mark.parametrize(
    ("mood", "status", "kind"),
    [
        ("flagged", 422, "content_policy_violation"),
        ("failed", 422, "no_media_generated"),
        ("internal", 500, "internal_server_error"),
    ],
)
async def test_failed_request_is_completed_with_an_error(mood: str, status: int, kind: str) -> None:
    async with open_fal() as client:
        ticket = await submit(client, prompt=f"a fox [mood:{mood}]")
        assert (await ended(client, ticket))["error"] == f"Invalid status code: {status}"
        result = await client.get(ticket["response_url"])
        assert (result.status_code, result.headers["x-fal-error-type"]) == (status, kind)
        if status == 422:
            assert result.json()["detail"][0]["type"] == kind


@pytest.mark.parametrize("number", range(4))
async def test_success_without_a_result_has_several_forms(number: int) -> None:
    async with open_fal() as client:
        ticket = await submit(client, prompt=f"a fox [mood:noresult:{number}]")
        await ended(client, ticket)
        output = (await client.get(ticket["response_url"])).json()
        assert not any(image["url"] for image in output.get("images") or [])


async def test_uploaded_file_is_a_reference() -> None:
    async with open_fal() as client:
        fields = {"file_name": "../a b.png", "content_type": "image/png"}
        path = "/storage/upload/initiate"
        assert (await client.post(path, json=fields)).status_code == 422
        links = (await client.post(path, params={"storage_type": "fal-cdn-v3"}, json=fields)).json()
        bare = links["upload_url"].partition("?")[0]
        assert (await client.put(bare, content=PNG)).status_code == 403
        client.headers.pop("authorization")
        assert (await client.put(links["upload_url"], content=PNG)).status_code == 200
        assert (await client.get(links["file_url"])).content == PNG


async def test_keys_are_published_and_rotate_on_request() -> None:
    async with open_fal() as client:
        path = "/.well-known/jwks.json"
        client.headers.pop("authorization")
        (first,) = (await client.get(path)).json()["keys"]
        headers = {"Authorization": "Key id:secret"}
        await client.post(f"/{APP}", json={"prompt": "a fox [mood:rotated]"}, headers=headers)
        both = (await client.get(path)).json()["keys"]
        assert (len(both), both[-1]) == (2, first)
        assert both[0]["x"] != first["x"]
        await client.post(f"/{APP}", json={"prompt": "a fox [mood:keys_down]"}, headers=headers)
        assert (await client.get(path)).status_code == 503
