"""A browser's front end of the old days works unchanged: both modes, a failure, a refusal, from another origin."""

from __future__ import annotations

import asyncio
import json
import re
import shutil
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.api import png
from tests.support.brokers import RunningBroker, open_broker

NODE = shutil.which("node")
POLLER = Path(__file__).with_name("poller.mjs")
ORIGIN = "https://front.example"

pytestmark = [pytest.mark.anyio, pytest.mark.skipif(NODE is None, reason="there is no Node here")]


@pytest.fixture
async def broker(tmp_path: Path) -> AsyncIterator[RunningBroker]:
    async with open_broker(tmp_path / "data", cors_origins=(ORIGIN,)) as broker:
        yield broker


async def polled(broker: RunningBroker, mode: str, prompt: str, *image: str, origin: str = ORIGIN) -> dict[str, Any]:
    """Return the outcome that the page shows."""
    assert NODE is not None
    process = await asyncio.create_subprocess_exec(
        *(NODE, str(POLLER), str(broker.client.base_url), origin, mode, prompt, *image),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    out, err = await process.communicate()
    assert (process.returncode, err) == (0, b"")
    outcome: dict[str, Any] = json.loads(out)
    return outcome


async def test_the_old_front_end_works_unchanged(broker: RunningBroker, tmp_path: Path) -> None:
    """Its five outcomes at once, since each of them looks only every three seconds."""
    (tmp_path / "fox.png").write_bytes(png())
    text, image, flagged, empty, stranger = await asyncio.gather(
        polled(broker, "text-to-image", "a red fox"),
        polled(broker, "image-to-image", "at night", str(tmp_path / "fox.png")),
        polled(broker, "text-to-image", "a fox [mood:flagged]"),
        polled(broker, "text-to-image", ""),
        polled(broker, "text-to-image", "a red fox", origin="https://evil.example"),
    )
    for made in (text, image):
        assert re.fullmatch(r"/uploads/images/generated_[0-9a-f]{43}\.png", made["url"])
        assert (made["type"], made["bytes"] > 1000) == ("image/png", True)
    assert text["url"] != image["url"]
    assert "safety filter" in flagged["error"]
    assert empty == {"error": "The prompt is empty: say what the image should show."}
    assert stranger == {"error": "Failed to fetch"}
    jobs = await broker.provider_jobs()
    assert len(jobs) <= 3
