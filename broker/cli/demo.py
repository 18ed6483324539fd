"""`broker demo`: the whole way of two images through real HTTP, in a few seconds and without a key."""

from __future__ import annotations

import io
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import anyio
import PIL.Image

from broker.bootstrap import load_settings
from broker.cli.house import Moment, broker_for_a_moment, quiet_logs
from broker.cli.screen import Unable, complain, say
from broker.client import BrokerError, Image, Task
from broker.client.errors import describe_failure
from storage.callbacks import Entry

LOOK_EVERY = 0.5
PATIENCE_SECONDS = 30.0
FOLDER = Path("data/demo")
SIZE = (1344, 768)
PROMPT = "a red fox reading a newspaper in a banana grove, morning light"
CHANGE = "the same fox, now at night under a paper lantern"


@dataclass(kw_only=True)
class Story:
    """Tells each step with the seconds since the beginning."""

    begin: float = field(default_factory=anyio.current_time)

    def tell(self, text: str) -> None:
        say(f"{anyio.current_time() - self.begin:6.2f} s  {text}")


async def demo() -> int:
    """0 when both images were made, called back for, stored, and are what was ordered."""
    story = Story()
    try:
        with tempfile.TemporaryDirectory(prefix="broker-demo-") as folder:
            settings = load_settings(isolated=True, data_dir=Path(folder))
            quiet_logs(settings)
            async with broker_for_a_moment(settings) as moment:
                story.tell(f"broker at {moment.client.base}, sandbox provider at {moment.services.provider.base_url}")
                await _both_ways(moment, story)
    except (Unable, BrokerError) as error:
        complain(f"The demo failed: {error}")
        return 1
    story.tell("everything is closed again. `broker serve` is the real thing.")
    return 0


async def _both_ways(moment: Moment, story: Story) -> None:
    first = await _make(moment, story, "text-to-image", PROMPT)
    await _make(moment, story, "image-to-image", CHANGE, first)


async def _make(moment: Moment, story: Story, mode: str, prompt: str, *references: Image) -> Image:
    """One image from the order to a file that is there when the demo is gone."""
    story.tell(f"{mode}: POST /api/generate/image")
    order = await moment.client.create(prompt, images=references, aspect_ratio="16:9")
    story.tell(f"order accepted, durable before the answer: {order.id}")
    task = await _ended(moment, order.id, story.tell)
    _check_callback(await moment.services.hooks.newest(limit=10, task_id=order.id))
    story.tell("callback received and believed: its token was right")
    (image,) = await moment.client.images(task)
    path = image.url.removeprefix(moment.client.base)
    story.tell(f"image stored: {_checked(image.content)}, {len(image.content) / 1024:.0f} KiB, GET {path}")
    story.tell(f"it lies at {_keep(image, FOLDER / f'{mode}{Path(image.name).suffix}')}")
    return image


async def _ended(moment: Moment, task_id: str, tell: Callable[[str], None]) -> Task:
    """Polls as a front end does, and tells each status."""
    status = ""
    with anyio.move_on_after(PATIENCE_SECONDS):
        while True:
            task = await moment.client.get(task_id)
            if task.status != status:
                status = task.status
                tell(f"GET /api/task/{task_id[:12]}…: {status}")
            if status == "completed":
                return task
            if status in {"failed", "canceled"}:
                raise Unable(describe_failure(task))
            await anyio.sleep(LOOK_EVERY)
    raise Unable(f"after {PATIENCE_SECONDS:g} s the task is still {status or 'unknown'}")


def _check_callback(hooks: list[Entry]) -> None:
    """The image must have come by webhook, not by asking."""
    if not any(hook.verdict == "accept" for hook in hooks):
        raise Unable(f"no callback was believed: {[hook.reason for hook in hooks] or 'none came'}")


def _checked(content: bytes) -> str:
    """Format and size, read by a decoder that has nothing to do with ours."""
    try:
        with PIL.Image.open(io.BytesIO(content)) as image:
            image.load()
            if image.size != SIZE:
                raise Unable(f"the image has {image.size} pixels, {SIZE} were ordered")
            return f"{image.format} of {image.width} × {image.height} pixels"
    except OSError as error:
        raise Unable(f"the image cannot be decoded: {error}") from None


def _keep(image: Image, path: Path) -> Path:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        return image.save(path).resolve()
    except OSError as error:
        raise Unable(f"{path} cannot be written: {error.strerror}") from None
