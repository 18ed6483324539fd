"""Every example of docs/dialects.md makes an image; those in Node are run by `python -m tests.dialects`."""

from __future__ import annotations

import asyncio
import gc
import shutil
import warnings
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from anyio import to_thread
from PIL import Image

from tests.dialects.documentation import Example, read_examples
from tests.dialects.matrix import KEY, SETTINGS, base_url, replicate_for_users
from tests.support.brokers import RunningBroker, open_broker
from tests.support.tls_front import fal_environment, tls_front

pytestmark = pytest.mark.anyio


@pytest.fixture
async def broker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[RunningBroker]:
    """A broker that the examples find in their environment, and an empty folder for their images."""
    (tmp_path / "images").mkdir()
    monkeypatch.chdir(tmp_path / "images")
    async with replicate_for_users() as more, open_broker(tmp_path / "data", **SETTINGS, **more) as broker:
        with tls_front(base_url(broker)) as front, fal_environment(front, KEY):
            monkeypatch.setenv("BROKER_URL", base_url(broker))
            monkeypatch.setenv("BROKER_HOST_WITH_TLS", front.host)
            monkeypatch.setenv("BROKER_KEY", KEY)
            yield broker


def check_image(example: Example) -> None:
    path = Path("image.png")
    assert path.exists(), example.name
    with Image.open(path) as image:
        image.load()
    path.unlink()


def run_script(example: Example) -> None:
    """Run a script in this process, which is quicker; connections that it leaves open would end with its own."""
    exec(compile(example.text, example.name, "exec"), {"__name__": "example"})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        gc.collect()


async def test_python_examples_make_an_image(broker: RunningBroker) -> None:
    for example in read_examples("python"):
        await to_thread.run_sync(run_script, example)
        check_image(example)


@pytest.mark.skipif(shutil.which("curl") is None, reason="there is no curl here")
async def test_curl_examples_make_an_image(broker: RunningBroker) -> None:
    for example in read_examples("sh"):
        process = await asyncio.create_subprocess_exec("bash", "-euo", "pipefail", "-c", example.text)
        assert await process.wait() == 0, example.name
        check_image(example)
