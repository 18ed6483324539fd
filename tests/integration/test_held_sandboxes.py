"""Emulators of providers that answer with the image: what they refuse, as the originals do."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
import pytest

from broker.sandbox.engine import Options
from broker.sandbox.server import serve_sandbox
from tests.api.test_api_create import DATA_URI

pytestmark = pytest.mark.anyio

PRO, FIRST, NEWEST = "gemini-3-pro-image", "gemini-2.5-flash-image", "gemini-nano-banana-2.1"
IMAGE = {"inlineData": {"mimeType": "image/png", "data": DATA_URI.partition(",")[2]}}
KEY = {"x-goog-api-key": "key", "authorization": "Bearer key"}


def content(*parts: Any, modalities: tuple[str, ...] = ("TEXT", "IMAGE"), **image_config: Any) -> dict[str, Any]:
    config = {"responseModalities": list(modalities), "imageConfig": image_config}
    return {"contents": [{"role": "user", "parts": [{"text": "a fox"}, *parts]}], "generationConfig": config}


@asynccontextmanager
async def sandbox_of(dialect: str) -> AsyncIterator[httpx.AsyncClient]:
    options = Options(dialect=dialect, duration=0.01, api_key="key")
    async with (
        serve_sandbox(options=options) as url,
        httpx.AsyncClient(base_url=url, headers=KEY, verify=False) as client,
    ):
        yield client


TURN = {"role": "model", "parts": [IMAGE]}
INVALID_CONTENT = [
    ("gemini-9-image", content(), 404),
    (PRO, {}, 400),
    (PRO, content(modalities=("TEXT",)), 400),
    (PRO, content(aspectRatio="8:1"), 400),
    (PRO, content(imageSize="2k"), 400),
    (NEWEST, content(imageSize="512"), 400),
    (FIRST, content(imageSize="1K"), 400),
    (FIRST, content(*[IMAGE] * 4), 400),
    (PRO, content(*[IMAGE] * 15), 400),
    (PRO, content({"inlineData": {"mimeType": "image/png", "data": "*"}}), 400),
    (PRO, content({"inlineData": {"mimeType": "text/plain", "data": "QQ=="}}), 400),
    (PRO, {**content(), "contents": [TURN, content()["contents"][0]]}, 400),
]


async def test_gemini_refuses_what_its_models_do_not_take() -> None:
    async with sandbox_of("gemini") as client:
        for model, body, status in INVALID_CONTENT:
            answer = await client.post(f"/v1beta/models/{model}:generateContent", json=body)
            assert (answer.status_code, answer.json()["error"]["code"]) == (status, status), body
        assert (await client.get("/v1beta/batches/none")).status_code == 404
        assert (await client.get("/sandbox/jobs")).json()["jobs"] == []


async def test_gemini_takes_both_spellings_and_every_place_of_a_key() -> None:
    snake = {
        "contents": [
            {
                "parts": [
                    {"text": "a fox"},
                    {"inline_data": {"mime_type": "image/png", "data": IMAGE["inlineData"]["data"]}},
                ]
            }
        ],
        "generation_config": {"response_modalities": ["IMAGE"], "image_config": {"aspect_ratio": "1:1"}},
    }
    path = f"/v1beta/models/{PRO}:generateContent"
    async with sandbox_of("gemini") as client:
        for headers, query in ((KEY, ""), ({"x-goog-api-key": "", "authorization": ""}, "?key=key")):
            answer = await client.post(path + query, json=snake, headers=headers)
            assert answer.json()["candidates"][0]["finishReason"] == "STOP"
        refused = await client.post(path, json=snake, headers={"x-goog-api-key": "wrong"})
        assert (refused.status_code, refused.json()["error"]["details"]) == (400, [{"reason": "API_KEY_INVALID"}])


INVALID_IMAGES: list[tuple[dict[str, Any], int]] = [
    ({"model": "google/none"}, 404),
    ({"prompt": ""}, 400),
    ({"n": 2}, 400),
    ({"resolution": "8K"}, 400),
    ({"aspect_ratio": "auto"}, 400),
    ({"input_references": [DATA_URI]}, 400),
]


async def test_openrouter_refuses_what_its_models_do_not_take() -> None:
    async with sandbox_of("openrouter") as client:
        order = {"model": f"google/{PRO}", "prompt": "a fox"}
        for fields, status in INVALID_IMAGES:
            answer = await client.post("/api/v1/images", json={**order, **fields})
            assert (answer.status_code, answer.json()["error"]["code"]) == (status, status), fields
        assert (await client.post("/api/v1/images/generations", json=order)).status_code == 404
        assert (await client.post("/api/v1/images", json=order, headers={"authorization": ""})).status_code == 401
        assert (await client.get("/sandbox/jobs")).json()["jobs"] == []


async def test_key_has_the_rest_of_its_limit() -> None:
    async with sandbox_of("openrouter") as client:
        assert (await client.get("/api/v1/key")).json()["data"]["limit_remaining"] == 1000.0
