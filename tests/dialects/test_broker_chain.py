"""A broker before a broker: the front one takes the other for kie.ai."""

from __future__ import annotations

import asyncio
import base64
import socket
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr

from broker.sandbox.engine import Options
from tests.support.api import png
from tests.support.brokers import RunningBroker, open_broker
from tests.support.faulty_http import Visit, serve

pytestmark = pytest.mark.anyio

KEY = "key-of-the-front-0123456789"
SECRET = "whsec_" + base64.b64encode(b"s" * 32).decode()
QUICK = Options(duration=0.05, callback_spacing=0.05, creates_per_window=10_000)
NO_POLLING: dict[str, Any] = {"check_after": 30, "task_deadline": 30}
"""The journey is over before the first poll."""
RESET_ON_CLOSE = struct.pack("ii", 1, 0)


@pytest.fixture
async def back(tmp_path: Path) -> AsyncIterator[RunningBroker]:
    settings: dict[str, Any] = {"api_keys": (SecretStr(KEY),), "webhook_secrets": (SecretStr(SECRET),)}
    async with open_broker(tmp_path / "back", options=QUICK, callback_allow=("127.0.0.1",), **settings) as broker:
        yield broker


@asynccontextmanager
async def front_of(back: RunningBroker, folder: Path, **settings: Any) -> AsyncIterator[RunningBroker]:
    """Run a broker whose kie.ai is another broker; loopback needs an exemption as a source of results."""
    url = str(back.client.base_url).rstrip("/")
    fixed: dict[str, Any] = {"kie_keys": KEY, "webhook_key": SECRET, "download_allow": ("127.0.0.1",)}
    async with open_broker(folder / "front", **{**fixed, "sandbox": url, **settings}) as broker:
        yield broker


async def test_order_completes_by_callback_with_the_image_and_cost_of_the_broker_behind(
    tmp_path: Path, back: RunningBroker
) -> None:
    async with front_of(back, tmp_path, **NO_POLLING) as front:
        task = await front.wait_end(await front.create_task("a red fox", model="nano-banana-pro", resolution="2K"))
        assert (task["status"], task["cost"]["amount"]) == ("completed", 18), task
        image = await front.client.get(task["result"])
        (callback,) = (await front.client.get("/api/callbacks")).json()["data"]
        (job,) = await back.provider_jobs()
        flagged = await front.wait_end(await front.create_task("a red fox [mood:flagged]"))
        assert (flagged["status"], flagged["errorDetail"]["code"]) == ("failed", "safety_input"), flagged
    assert (image.headers["content-type"], callback["verification"]) == ("image/png", "accept")
    behind = (await back.client.get("/api/tasks", headers={"Authorization": f"Bearer {KEY}"})).json()["data"]
    assert [one["model"] for one in behind] == ["nano-banana", "nano-banana-pro"]
    assert job["request"]["input"]["resolution"] == "2K"


async def test_callback_with_the_signature_of_another_key_is_rejected(tmp_path: Path, back: RunningBroker) -> None:
    """Its token is right; the order still completes, by polling."""
    async with front_of(back, tmp_path, webhook_key="another-key") as front:
        task = await front.wait_end(await front.create_task("a red fox"))
        assert task["status"] == "completed", task
        callbacks = (await front.client.get("/api/callbacks")).json()["data"]
    assert {(one["verification"], one["status"]) for one in callbacks} == {("reject", 401)}


async def test_orders_complete_by_polling_also_with_an_uploaded_reference(tmp_path: Path, back: RunningBroker) -> None:
    async with front_of(back, tmp_path, with_callbacks=False) as front:
        picture = f"data:image/png;base64,{base64.b64encode(png()).decode()}"
        for number, fields in enumerate(({}, {"images": [picture]}), 1):
            task = await front.wait_end(await front.create_task("a red fox", **fields))
            assert task["status"] == "completed", task
            assert len(await back.provider_jobs()) == number
        (reference,) = (await back.provider_jobs())[-1]["request"]["input"]["image_urls"]
        assert (await front.client.get(reference)).content == png(), "uploaded to the one behind"


@pytest.mark.parametrize("with_callbacks", [True, False])
async def test_answer_that_was_cut_off_makes_no_second_order(
    tmp_path: Path, back: RunningBroker, *, with_callbacks: bool
) -> None:
    """By callback the front learns of the job; without callbacks it submits again, and joins the order behind."""
    orders = 0

    async def cut_off_once(visit: Visit) -> None:
        """Pass a connection on; the first order's is reset in both directions as soon as the answer has begun."""
        nonlocal orders
        is_order = visit.head.startswith(b"POST")
        body = await visit.read_body() if is_order else b""
        orders += is_order
        reader, writer = await asyncio.open_connection(back.client.base_url.host, back.client.base_url.port)
        if is_order and orders == 1:
            writer.write(visit.head + body)
            await reader.readexactly(10)
            writer.transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET_ON_CLOSE)
            writer.transport.abort()
            visit.reset()
            return
        writer.write(visit.head.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n") + body)
        await visit.send(await reader.read(-1))
        writer.close()

    async with serve(cut_off_once) as proxy:
        settings = {"api_url": proxy.url("").rstrip("/"), "resubmit_unknown": not with_callbacks}
        async with front_of(back, tmp_path, with_callbacks=with_callbacks, **settings) as front:
            task = await front.wait_end(await front.create_task("a red fox"))
            assert task["status"] == "completed", task
    assert (orders, len(await back.provider_jobs())) == (1 if with_callbacks else 2, 1)
