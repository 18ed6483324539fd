"""Client against a complete broker: both modes, restarts, and idempotent orders."""

from __future__ import annotations

import asyncio
import io
import re
from collections.abc import AsyncIterator
from contextlib import aclosing
from itertools import pairwise
from pathlib import Path
from typing import Any

import PIL.Image
import pytest

from broker.client import AsyncClient, BrokerApiError, Client, Task, TaskCanceled, TaskFailed
from broker.sandbox.engine import Options
from broker.sandbox.server import serve_sandbox
from tests.support.api import png
from tests.support.brokers import RunningBroker, open_broker
from tests.support.servers.s3 import S3Server

pytestmark = pytest.mark.anyio

KEY = "a-key-of-a-trusted-caller"
README = Path(__file__).parent.parent.parent / "README.md"


@pytest.fixture
async def broker(tmp_path: Path) -> AsyncIterator[RunningBroker]:
    async with open_broker(tmp_path, api_keys=(KEY,)) as broker:
        yield broker


@pytest.fixture
async def client(broker: RunningBroker) -> AsyncIterator[AsyncClient]:
    async with AsyncClient(str(broker.client.base_url), key=KEY) as client:
        yield client


def pixel_size(content: bytes) -> tuple[int, int]:
    with PIL.Image.open(io.BytesIO(content)) as image:
        image.load()
        return image.size


async def test_text_to_image_then_image_to_image(client: AsyncClient, broker: RunningBroker) -> None:
    (fox,) = await client.generate("a red fox", aspect_ratio="16:9")
    assert pixel_size(fox.content) == (1344, 768) == (fox.width, fox.height)
    assert (fox.media_type, fox.size) == ("image/png", len(fox.content))
    night = await client.generate("at night", images=[fox, PIL.Image.new("RGB", (64, 64))], n=2)
    assert len({image.url for image in night}) == 2
    page = await client.tasks(limit=2)
    assert [task.mode for task in page.tasks] == ["image-to-image"] * 2
    assert page.cursor is not None
    assert [task.mode for task in (await client.tasks(cursor=page.cursor)).tasks] == ["text-to-image"]


async def test_synchronous_client(broker: RunningBroker, tmp_path: Path) -> None:
    def notebook() -> list[str]:
        with Client(str(broker.client.base_url), key=KEY) as client:
            fox = client.generate("a red fox")[0]
            path = fox.save(tmp_path / "fox.png")
            order = client.create("at night", images=[path])
            client.download(client.wait(order.id).images[0], tmp_path / "night.png")
            return [task.status for task in client.events(order.id)]

    assert await asyncio.to_thread(notebook) == ["completed"]
    assert pixel_size((tmp_path / "night.png").read_bytes()) == pixel_size((tmp_path / "fox.png").read_bytes())


async def test_the_example_of_the_readme_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (example,) = re.findall(r"### From Python\n\n```python\n(.*?)```", README.read_text("utf-8"), re.DOTALL)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "fox.png").write_bytes(png())
    async with open_broker(tmp_path / "data") as broker:
        program = example.replace("Client()", f"Client({str(broker.client.base_url)!r})")
        namespace: dict[str, Any] = {}
        await asyncio.to_thread(exec, program, namespace)
        namespace["client"].close()
    assert (tmp_path / "night.png").read_bytes() == namespace["fox"].content


async def test_images_are_downloaded_from_the_bucket(tmp_path: Path, s3_server: S3Server) -> None:
    bucket: dict[str, Any] = {
        "blob_url": f"s3://{s3_server.new_bucket()}/images",
        "blob_links": "presigned",
        "s3_endpoint": s3_server.url,
        "s3_access_key": "test",
        "s3_secret_key": "test",
    }
    async with (
        open_broker(tmp_path, api_keys=(KEY,), task_deadline=30, **bucket) as broker,
        AsyncClient(str(broker.client.base_url), key=KEY) as client,
    ):
        (fox,) = await client.generate("a red fox")
        assert (await broker.client.get(fox.url)).status_code == 307
        assert pixel_size(fox.content) == (fox.width, fox.height)


async def test_same_idempotency_key_is_the_same_order(client: AsyncClient, broker: RunningBroker) -> None:
    orders = [await client.create("a fox", idempotency_key="order-4711") for _ in range(3)]
    assert orders == [orders[0]] * 3
    await client.wait(orders[0].id)
    assert len(await broker.provider_jobs()) == 1
    with pytest.raises(BrokerApiError) as caught:
        await client.create("another fox", idempotency_key="order-4711")
    assert (caught.value.status, caught.value.code) == (422, "idempotency_mismatch")


async def test_failed_and_canceled_tasks_raise(client: AsyncClient) -> None:
    with pytest.raises(TaskFailed) as caught:
        await client.generate("a fox [mood:flagged]")
    assert (caught.value.code, caught.value.billed) == ("safety_input", "no")
    again = await client.retry(caught.value.task)
    assert again == await client.retry(caught.value.task)
    assert (await client.wait(again.id)).status == "failed"
    order = await client.create("a fox [mood:slow:600]")
    assert (await client.cancel(order.id)).status == "canceled"
    assert (await client.cancel(order.id)).status == "canceled"
    with pytest.raises(TaskCanceled):
        await client.images(order.id)


async def test_missing_rights_are_api_errors(broker: RunningBroker) -> None:
    async with AsyncClient(str(broker.client.base_url), key="another-key") as client:
        with pytest.raises(BrokerApiError, match="BROKER_API_KEYS") as caught:
            await client.create("a fox")
        assert caught.value.status == 401
        with pytest.raises(BrokerApiError) as caught:
            await client.get("task_" + "0" * 43)
        assert caught.value.code == "task_not_found"


async def test_retry_after_is_respected(tmp_path: Path) -> None:
    """The order above the rate limit waits instead of failing."""
    pauses: list[float] = []

    async def record_pause(seconds: float) -> None:
        """Record the pause, and end the long one."""
        pauses.append(seconds)
        if seconds > 10:
            raise InterruptedError

    async with (
        open_broker(tmp_path, rate_per_minute=2) as broker,
        AsyncClient(str(broker.client.base_url), sleep=record_pause) as client,
    ):
        await client.create("a fox", n=2)
        with pytest.raises(InterruptedError):
            await client.create("a fox")
    assert 50 < pauses[-1] < 62


async def test_client_survives_a_restart_of_the_broker(tmp_path: Path) -> None:
    """A wait, an event stream and an order survive the restart."""
    options = Options(duration=1.0, callback_spacing=0.05, callback_retries=100, creates_per_window=10_000)
    async with serve_sandbox(options=options) as sandbox:
        async with open_broker(tmp_path, sandbox=sandbox) as broker:
            address = str(broker.client.base_url)
            client = AsyncClient(address)
            order = await client.create("a red fox")
            listening = asyncio.Event()
            waiter = asyncio.create_task(client.wait(order.id))
            listener = asyncio.create_task(_events(client, order.id, listening))
            await listening.wait()
        late_order = asyncio.create_task(client.generate("a blue fox"))
        async with open_broker(tmp_path, sandbox=sandbox, port=int(address.rpartition(":")[2])), client:
            async with asyncio.timeout(20):
                assert (await waiter).status == "completed"
                events = await listener
                assert len(await late_order) == 1
    assert events[-1].status == "completed"
    # what was received before the restart is not sent again
    assert all(event.raw != following.raw for event, following in pairwise(events))


async def _events(client: AsyncClient, task_id: str, listening: asyncio.Event) -> list[Task]:
    """Return the task after each change."""
    events: list[Task] = []
    async with aclosing(client.events(task_id)) as changes:
        async for task in changes:
            listening.set()
            events.append(task)
    return events
