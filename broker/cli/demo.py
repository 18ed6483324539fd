"""`broker demo`: two images over real HTTP from order to file, in a few seconds and without a key."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from contextlib import aclosing
from pathlib import Path
from typing import Final

import anyio

from broker.bootstrap import load_settings
from broker.cli.connection import quiet_logs
from broker.cli.console import CommandError, print_line
from broker.cli.embedded import run_embedded_broker
from broker.client import AsyncClient, Image
from broker.services import Services
from storage.ids import shorten_id

DEADLINE_SECONDS: Final = 30
FOLDER: Final = Path("data/demo")
SIZE: Final = (1344, 768)
PROMPT: Final = "a red fox reading a newspaper in a banana grove, morning light"
CHANGE: Final = "the same fox, now at night under a paper lantern"

PrintStep = Callable[[str], None]


async def demo() -> None:
    """Make two images; raise unless each arrived by callback, is stored, and has the ordered size."""
    started_at = anyio.current_time()

    def print_step(text: str) -> None:
        print_line(f"{anyio.current_time() - started_at:6.2f} s  {text}")

    with tempfile.TemporaryDirectory(prefix="broker-demo-") as folder:
        # isolated: without a provider key nothing costs
        settings = load_settings(isolated=True, data_dir=Path(folder), task_deadline=DEADLINE_SECONDS)
        quiet_logs(settings)
        async with run_embedded_broker(settings) as (services, client):
            print_step(f"broker at {client.base}, sandbox provider at {services.provider.base_url}")
            first = await _make_image(services, client, print_step, "text-to-image", PROMPT)
            await _make_image(services, client, print_step, "image-to-image", CHANGE, first)
    print_step("everything is closed. `broker serve` starts a lasting broker.")


async def _make_image(
    services: Services, client: AsyncClient, print_step: PrintStep, mode: str, prompt: str, *references: Image
) -> Image:
    """Order one image and save it to a file that remains after the demo."""
    print_step(f"{mode}: POST /api/generate/image")
    order = await client.create(prompt, images=references, aspect_ratio="16:9")
    print_step(f"order accepted, durable before the answer: {order.id}")
    async with aclosing(client.events(order)) as changes:
        async for task in changes:
            print_step(f"GET /api/task/{shorten_id(order.id)}…/events: {task.status}, {task.stage}")
    (image,) = await client.images(order)
    callbacks = await services.tables.callbacks.list_newest(limit=10, task_id=order.id)
    if not any(callback.verification == "accept" for callback in callbacks):
        raise CommandError(
            f"No callback was accepted: {[callback.reason for callback in callbacks] or 'none arrived'}."
        )
    print_step("callback received and accepted: its token is valid")
    if (image.width, image.height) != SIZE:
        raise CommandError(f"The image has {image.width} × {image.height} pixels, {SIZE} were ordered.")
    path = image.url.removeprefix(client.base)
    print_step(f"image stored: {image.width} × {image.height} pixels, {len(image.content) / 1024:.0f} KiB, GET {path}")
    await anyio.Path(FOLDER).mkdir(parents=True, exist_ok=True)
    saved = await anyio.to_thread.run_sync(image.save, FOLDER / f"{mode}{Path(path).suffix}")
    print_step(f"saved to {saved.absolute()}")
    return image
