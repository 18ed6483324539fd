"""Our own addresses in each dialect: an earlier result, and an uploaded file, become references without a request.

The broker is on a loopback address, which a guarded fetch refuses: an order that is accepted has not fetched anything.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any, Final

import httpx
import pytest
from pydantic import SecretStr

from broker.sandbox.engine import Options
from storage.sql.scope import EVERYTHING
from tests.support.brokers import RunningBroker, open_broker
from tests.support.samples import encoded

pytestmark = pytest.mark.anyio

KEY = "key-of-a-caller-0123456789"
BEARER = {"Authorization": f"Bearer {KEY}"}
GEMINI = "gemini-2.5-flash-image"

Body = Callable[[str, str], dict[str, Any]]
"""Prompt and address → JSON."""


def chat_content(prompt: str, address: str) -> list[dict[str, Any]]:
    return [{"type": "text", "text": prompt}, {"type": "image_url", "image_url": {"url": address}}]


ORDERS: Final[Mapping[str, tuple[str, Body]]] = {
    "native": ("/api/generate/image", lambda prompt, address: {"prompt": prompt, "imageUrls": [address]}),
    "gemini": (
        f"/v1beta/models/{GEMINI}:generateContent",
        lambda prompt, address: {"contents": [{"parts": [{"text": prompt}, {"fileData": {"fileUri": address}}]}]},
    ),
    "openai images": (
        "/v1/images/edits",
        lambda prompt, address: {"model": "nano-banana", "prompt": prompt, "image": [address]},
    ),
    "openai chat": (
        "/v1/chat/completions",
        lambda prompt, address: {
            "model": "nano-banana",
            "modalities": ["image", "text"],
            "messages": [{"role": "user", "content": chat_content(prompt, address)}],
        },
    ),
    "replicate": (
        "/v1/models/google/nano-banana/predictions",
        lambda prompt, address: {"input": {"prompt": prompt, "image_input": [address]}},
    ),
    "fal": ("/fal/fal-ai/nano-banana/edit", lambda prompt, address: {"prompt": prompt, "image_urls": [address]}),
    "kie": (
        "/api/v1/jobs/createTask",
        lambda prompt, address: {
            "model": "google/nano-banana-edit",
            "input": {"prompt": prompt, "image_urls": [address]},
        },
    ),
    "image service": (
        "/api/v1/images/generate",
        lambda prompt, address: {"prompt": prompt, "reference_images": [address]},
    ),
}
"""By dialect: path and body of an order with a reference at an address."""


@pytest.fixture(scope="module")
async def broker(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[RunningBroker]:
    options = Options(duration=0.02, callback_spacing=0.02, creates_per_window=10_000)
    async with open_broker(
        tmp_path_factory.mktemp("addresses"), options=options, api_keys=(SecretStr(KEY),), with_callbacks=False
    ) as opened:
        opened.client.headers.update(BEARER)
        yield opened


async def send(broker: RunningBroker, dialect: str, prompt: str, address: str) -> httpx.Response:
    path, make_body = ORDERS[dialect]
    return await broker.client.post(path, json=make_body(prompt, address))


@pytest.mark.parametrize("dialect", ORDERS)
async def test_own_address_is_the_image_itself(broker: RunningBroker, dialect: str) -> None:
    made = await broker.wait_end(await broker.create_task(f"the first image of {dialect}"))
    upload = {"content": ("fox.png", encoded("PNG"), "image/png")}
    file = (await broker.client.post("/v1/files", files=upload)).json()
    base = str(broker.client.base_url).rstrip("/")
    expected = [made["results"][0]["sha256"]] * 2 + [file["etag"]]
    addresses = [made["result"], f"{base}{made['result']}", file["urls"]["get"]]
    for number, address in enumerate(addresses):
        prompt = f"order {number} of {dialect}"
        answer = await send(broker, dialect, prompt, address)
        assert answer.status_code in {200, 201, 202}, (address, answer.text)
        rows = await broker.services.tables.newest_tasks.list_newest(EVERYTHING, status=None, limit=100, before=None)
        (task,) = [row for row in rows if row.prompt == prompt]
        assert [reference["sha256"] for reference in task.references] == [expected[number]], address


@pytest.mark.parametrize("dialect", ORDERS)
async def test_own_address_without_an_image_is_refused(broker: RunningBroker, dialect: str) -> None:
    gone = f"{str(broker.client.base_url).rstrip('/')}/v1/files/{'0' * 32}"
    answer = await send(broker, dialect, f"gone in {dialect}", gone)
    assert "may have expired" in answer.text
    if dialect != "kie":  # its errors are in the body of a success
        assert 400 <= answer.status_code < 500
    rows = await broker.services.tables.newest_tasks.list_newest(EVERYTHING, status=None, limit=100, before=None)
    assert not [row for row in rows if row.prompt.startswith("gone")]
