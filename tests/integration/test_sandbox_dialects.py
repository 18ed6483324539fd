"""Emulators of the providers beside kie.ai: documented behaviour that the broker's own tests do not reach."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
import pytest

from broker.sandbox.callbacks import CallbackDelivery, CallbackFormat
from broker.sandbox.dialects import DIALECTS
from broker.sandbox.dialects.replicate.records import ReplicateCallbacks
from broker.sandbox.dialects.wavespeed.records import WaveSpeedCallbacks
from broker.sandbox.engine import Options
from broker.sandbox.jobs import Job
from broker.sandbox.orders import JobOrder
from broker.sandbox.server import serve_sandbox
from tests.support.clock import ManualClock

pytestmark = pytest.mark.anyio

PROMPT = {"prompt": "p"}
FIRST, LATER = "/v1/models/google/nano-banana/predictions", "/v1/models/google/nano-banana-2/predictions"
ORDERS: dict[str, tuple[str, dict[str, Any]]] = {
    "replicate": (FIRST, {"input": PROMPT}),
    "wavespeed": ("/api/v3/google/nano-banana/text-to-image", PROMPT),
    "nanobananaapi": ("/api/v1/nanobanana/generate-2", PROMPT),
}
"""A valid order of each dialect."""


@asynccontextmanager
async def sandbox_of(dialect: str, **options: Any) -> AsyncIterator[httpx.AsyncClient]:
    chosen = {"duration": 0.01, "callback_spacing": 0.01, "api_key": "key", **options}
    async with (
        serve_sandbox(options=Options(dialect=dialect, **chosen)) as url,
        httpx.AsyncClient(base_url=url, headers={"Authorization": "Bearer key"}, verify=False) as client,
    ):
        yield client


async def settled(client: httpx.AsyncClient) -> list[Any]:
    """Return the jobs when all have ended."""
    async with asyncio.timeout(15):
        while True:
            jobs: list[Any] = (await client.get("/sandbox/jobs")).json()["jobs"]
            if all(job["settled"] for job in jobs):
                return jobs


def code_of(response: httpx.Response) -> int:
    """Return the code that decides: the body's, or else the HTTP status."""
    body = response.json()
    return int(body.get("code") or response.status_code)


@pytest.mark.parametrize("dialect", ORDERS)
async def test_key_is_required(dialect: str) -> None:
    path, body = ORDERS[dialect]
    async with sandbox_of(dialect) as client:
        for header, codes in (("", {401}), ("Bearer wrong", {401}), ("Key key", {401}), ("Bearer key", {200, 201})):
            assert code_of(await client.post(path, json=body, headers={"Authorization": header})) in codes
        assert len(await settled(client)) == 1


INVALID: list[tuple[str, str, dict[str, Any]]] = [
    ("replicate", "/v1/models/google/nano-banana-9/predictions", {"input": PROMPT}),
    ("replicate", FIRST, PROMPT),
    ("replicate", FIRST, {"input": {"prompt": "p", "resolution": "2K"}}),
    ("replicate", LATER, {"input": {"prompt": "p", "resolution": "2k"}}),
    ("replicate", LATER, {"input": {"prompt": "p", "image_input": ["x"]}}),
    (
        "replicate",
        "/v1/models/google/nano-banana/predictions",
        {"input": PROMPT, "webhook": "http://x.example/"},
    ),
    (
        "replicate",
        "/v1/models/google/nano-banana/predictions",
        {"input": PROMPT, "webhook_events_filter": [""]},
    ),
    ("wavespeed", "/api/v3/google/nano-banana-9/edit", PROMPT),
    ("wavespeed", "/api/v3/google/nano-banana/edit", PROMPT),
    ("wavespeed", "/api/v3/google/nano-banana-pro/text-to-image", {"prompt": "p", "resolution": "2K"}),
    ("wavespeed", "/api/v3/google/nano-banana-pro/text-to-image", {"prompt": "p", "aspect_ratio": "auto"}),
    ("nanobananaapi", "/api/v1/nanobanana/generate-9", PROMPT),
    ("nanobananaapi", "/api/v1/nanobanana/generate", PROMPT),
    ("nanobananaapi", "/api/v1/nanobanana/generate", {"prompt": "p", "type": "TEXTTOIMAGE"}),
    ("nanobananaapi", "/api/v1/nanobanana/generate", {"prompt": "p", "type": "IMAGETOIAMGE"}),
    ("nanobananaapi", "/api/v1/nanobanana/generate-pro", {"prompt": "p", "image_size": "1:1"}),
]


async def test_invalid_order_is_rejected() -> None:
    for dialect in ORDERS:
        async with sandbox_of(dialect) as client:
            for path, body in [(path, body) for name, path, body in INVALID if name == dialect]:
                assert code_of(await client.post(path, json=body)) in {400, 404, 422}, (path, body)
            assert await settled(client) == []


async def test_prediction_loses_its_data_after_an_hour(clock: ManualClock) -> None:
    async with sandbox_of("replicate", now=clock.now) as client:
        path, body = ORDERS["replicate"]
        created = (await client.post(path, json=body)).json()
        await settled(client)
        kept = (await client.get(f"/v1/predictions/{created['id']}")).json()
        clock.advance(3601)
        lost = (await client.get(f"/v1/predictions/{created['id']}")).json()
    assert (kept["status"], kept["data_removed"], isinstance(kept["output"], str)) == ("succeeded", False, True)
    assert (lost["status"], lost["data_removed"], lost["output"], lost["input"]) == ("succeeded", True, None, {})


async def test_canceled_prediction_ends_and_costs_nothing() -> None:
    async with sandbox_of("replicate") as client:
        body = {"version": "google/nano-banana", "input": {"prompt": "[mood:slow:60]"}}
        created = (await client.post("/v1/predictions", json=body)).json()
        path = f"/v1/predictions/{created['id']}"
        assert (await client.post(f"{path}/cancel")).status_code == 200
        await settled(client)
        assert (await client.get(path)).json()["status"] == "canceled"
        assert (await client.post("/v1/predictions/unknown/cancel")).status_code == 404


async def test_wrong_parameter_of_nanobananaapi_is_a_server_error() -> None:
    async with sandbox_of("nanobananaapi") as client:
        assert code_of(await client.get("/api/v1/nanobanana/record-info", params={"task_id": "x"})) == 500
        assert code_of(await client.get("/api/v1/nanobanana/record-info", params={"taskId": "x"})) == 422


@pytest.mark.parametrize(
    ("callbacks", "delivery_id", "at", "body", "signature"),
    [
        (
            ReplicateCallbacks(secret="whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"),
            "msg_p5jXN8AQM9LWM0D4loKWxJek",
            1614265330,
            b'{"test": 2432232314}',
            "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=",
        ),
        (
            WaveSpeedCallbacks(secret="whsec_wavespeed-test-key"),
            "pred_abc",
            1769670760,
            b'{"id":"pred_abc","status":"completed"}',
            "v3,1db6bb7c8c8c866e7735fb8a879c4e47ad07f3c4541b7b07db4d896c51aa36cb",
        ),
    ],
    ids=["replicate", "wavespeed"],
)
async def test_signature_matches_the_vector(
    callbacks: CallbackFormat, delivery_id: str, at: int, body: bytes, signature: str
) -> None:
    order = JobOrder(prompt="p", sizes=((1, 1),), image_format="png", price=0)
    job = Job(id="j", request={}, order=order, faults={}, earlier=0, created_at=0)
    delivery = CallbackDelivery(id=delivery_id, job=job, body=body, timestamp=at, is_wrong=False)
    assert callbacks.sign(delivery)["webhook-signature"] == signature


def test_variables_name_the_settings_of_each_provider() -> None:
    for dialect in DIALECTS.values():
        *urls, key = dialect.variables("http://127.0.0.1:1", "key").values()
        assert all(url.startswith("http://127.0.0.1:1") for url in urls)
        assert key == "key"
