"""`broker demo`: two images over real HTTP from order to file, in a few seconds and without a key."""

from __future__ import annotations

import io
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

import anyio
import PIL.Image

from broker.bootstrap import load_settings
from broker.cli.connection import quiet_logs
from broker.cli.console import CommandError, print_error, print_line
from broker.cli.embedded import EmbeddedBroker, run_embedded_broker
from broker.cli.exit_codes import ExitCode
from broker.client import BrokerError, Image, Task
from broker.client.errors import describe_failure
from storage.callbacks import CallbackRecord

POLL_SECONDS = 0.5
TIMEOUT_SECONDS = 30.0
FOLDER = Path("data/demo")
SIZE = (1344, 768)
PROMPT = "a red fox reading a newspaper in a banana grove, morning light"
CHANGE = "the same fox, now at night under a paper lantern"


@dataclass(kw_only=True)
class Narrator:
    """Printer of steps with the seconds since the start."""

    started_at: float = field(default_factory=anyio.current_time)

    def print_step(self, text: str) -> None:
        print_line(f"{anyio.current_time() - self.started_at:6.2f} s  {text}")


async def demo() -> int:
    """Make two images; NOT_DONE unless each arrived by callback, is stored, and has the ordered size."""
    narrator = Narrator()
    try:
        with tempfile.TemporaryDirectory(prefix="broker-demo-") as folder:
            settings = load_settings(isolated=True, data_dir=Path(folder))  # no key: no costs
            quiet_logs(settings)
            async with run_embedded_broker(settings) as broker:
                narrator.print_step(
                    f"broker at {broker.client.base}, sandbox provider at {broker.services.provider.base_url}"
                )
                await _make_both(broker, narrator)
    except (CommandError, BrokerError) as error:
        print_error(f"The demo failed: {error}")
        return ExitCode.NOT_DONE
    narrator.print_step("everything is closed. `broker serve` is the real thing.")
    return ExitCode.DONE


async def _make_both(broker: EmbeddedBroker, narrator: Narrator) -> None:
    first = await _make_image(broker, narrator, "text-to-image", PROMPT)
    await _make_image(broker, narrator, "image-to-image", CHANGE, first)


async def _make_image(broker: EmbeddedBroker, narrator: Narrator, mode: str, prompt: str, *references: Image) -> Image:
    """Order one image and save it to a file that remains after the demo."""
    narrator.print_step(f"{mode}: POST /api/generate/image")
    order = await broker.client.create(prompt, images=references, aspect_ratio="16:9")
    narrator.print_step(f"order accepted, durable before the answer: {order.id}")
    task = await _poll_until_completed(broker, order.id, narrator)
    _check_callback(await broker.services.callbacks.list_newest(limit=10, task_id=order.id))
    narrator.print_step("callback received and accepted: its token is valid")
    (image,) = await broker.client.images(task)
    path = image.url.removeprefix(broker.client.base)
    narrator.print_step(f"image stored: {_check_image(image.content)}, {len(image.content) / 1024:.0f} KiB, GET {path}")
    narrator.print_step(f"saved to {_save_image(image, FOLDER / f'{mode}{Path(image.name).suffix}')}")
    return image


async def _poll_until_completed(broker: EmbeddedBroker, task_id: str, narrator: Narrator) -> Task:
    """Poll as a front end does, and print each status."""
    status = ""
    with anyio.move_on_after(TIMEOUT_SECONDS):
        while True:
            task = await broker.client.get(task_id)
            if task.status != status:
                status = task.status
                narrator.print_step(f"GET /api/task/{task_id[:12]}…: {status}")
            if status == "completed":
                return task
            if status in {"failed", "canceled"}:
                raise CommandError(describe_failure(task))
            await anyio.sleep(POLL_SECONDS)
    raise CommandError(f"after {TIMEOUT_SECONDS:g} s the task is still {status or 'unknown'}")


def _check_callback(callbacks: list[CallbackRecord]) -> None:
    """Require that the image arrived by callback and not by polling."""
    if not any(callback.verification == "accept" for callback in callbacks):
        raise CommandError(f"no callback was accepted: {[callback.reason for callback in callbacks] or 'none arrived'}")


def _check_image(content: bytes) -> str:
    """Return format and size as Pillow reads them; raise `CommandError` if they are wrong."""
    try:
        with PIL.Image.open(io.BytesIO(content)) as image:
            image.load()
            if image.size != SIZE:
                raise CommandError(f"the image has {image.size} pixels, {SIZE} were ordered")
            return f"{image.format} of {image.width} × {image.height} pixels"
    except OSError as error:
        raise CommandError(f"the image cannot be decoded: {error}") from None


def _save_image(image: Image, path: Path) -> Path:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        return image.save(path).resolve()
    except OSError as error:
        raise CommandError(f"{path} cannot be written: {error.strerror}") from None
