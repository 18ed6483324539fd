"""The openai SDK at a broker, and what tests of the OpenAI dialect ask about."""

from __future__ import annotations

import base64
import io
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, TypeVar

from anyio import to_thread
from openai import OpenAI
from PIL import Image

from broker.sandbox.engine import Options
from tests.dialects.matrix import base_url
from tests.support.brokers import RunningBroker, open_broker

T = TypeVar("T")


def picture(colour: str = "red") -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (120, 80), colour).save(out, "png")
    return out.getvalue()


def size_of(b64: str | None) -> tuple[int, int]:
    with Image.open(io.BytesIO(base64.b64decode(b64 or "", validate=True))) as image:
        image.load()
        return image.size


@asynccontextmanager
async def broker_in(folder: Path, duration: float = 0.02, **settings: Any) -> AsyncIterator[RunningBroker]:
    options = Options(duration=duration, callback_spacing=0.02, creates_per_window=10_000)
    async with open_broker(folder, options=options, task_deadline=20, **settings) as broker:
        yield broker


def sdk_for(broker: RunningBroker | str, **options: Any) -> OpenAI:
    """Return the SDK for a broker, or for what is at an address."""
    url = broker if isinstance(broker, str) else base_url(broker)
    return OpenAI(base_url=f"{url}/v1", **{"api_key": "any while none is set", "max_retries": 0, **options})


async def call(client: OpenAI, use: Callable[[OpenAI], T]) -> T:
    """Use the SDK in a thread, and close it."""
    with client:
        return await to_thread.run_sync(use, client)


async def inputs_of(broker: RunningBroker) -> list[dict[str, Any]]:
    return [job["request"]["input"] for job in await broker.provider_jobs()]
