"""The matrix of clients and providers: each cell is orders from text and from images, over real HTTP."""

from __future__ import annotations

import asyncio
import io
import json
import shutil
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from anyio import to_thread
from PIL import Image
from pydantic import SecretStr

from broker.sandbox.engine import Options
from broker.sandbox.server import serve_sandbox
from tests.dialects import clients
from tests.support.brokers import RunningBroker
from tests.support.emulators import PROVIDERS, broker_before

KEY: Final = "key-of-a-caller-0123456789"
SETTINGS: Final[dict[str, Any]] = {
    "api_keys": (SecretStr(KEY),),
    "registration": "open",
    "check_after": 0.2,
    "task_deadline": 20,
}
NODE_FOLDER: Final = Path(__file__).parents[1] / "e2e"
NODE_CLIENTS: Final = tuple(sorted(path.stem for path in NODE_FOLDER.glob("clients/*.mjs")))


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One client at one provider."""

    client: str
    provider: str


def short_matrix() -> dict[str, list[str]]:
    """Return clients by provider, so that each client and each provider occurs."""
    names, providers = clients.NAMES, tuple(PROVIDERS)
    length = max(len(names), len(providers))
    pairs = {(providers[n % len(providers)], names[n % len(names)]) for n in range(length)}
    return {provider: sorted(name for other, name in pairs if other == provider) for provider in providers}


@asynccontextmanager
async def replicate_for_users() -> AsyncIterator[dict[str, Any]]:
    """Serve Replicate, which refuses the keys of users; yield the settings of a broker that asks it about them."""
    async with serve_sandbox(options=Options(dialect="replicate", api_key="key")) as url:
        yield {"replicate_url": f"{url}/v1"}


@asynccontextmanager
async def open_column(provider: str, folder: Path) -> AsyncIterator[RunningBroker]:
    """Run the broker before the emulator of a provider, for all of its clients."""
    async with AsyncExitStack() as stack:
        more = {} if provider == "replicate" else await stack.enter_async_context(replicate_for_users())
        yield await stack.enter_async_context(broker_before(provider, folder, **SETTINGS, **more))


async def run_python(name: str, broker: RunningBroker) -> None:
    """Complete all orders of a Python client. Raises what the SDK raises, and AssertionError."""
    client, url = clients.load_client(name), base_url(broker)
    before = len(await broker.provider_jobs())
    if hasattr(client, "complete_flow"):
        made = await to_thread.run_sync(client.complete_flow, url, _picture())
    else:
        made = [
            await to_thread.run_sync(client.text_to_image, url, KEY, f"a red fox by {name}"),
            await to_thread.run_sync(client.image_to_image, url, KEY, f"a blue fox by {name}", _picture()),
        ]
    for image in made:
        _assert_image(image)
    assert len(await broker.provider_jobs()) - before == len(made), "each image is one order"


async def run_node(name: str, broker: RunningBroker) -> None:
    """Complete both orders with a client in Node."""
    before = len(await broker.provider_jobs())
    process = await asyncio.create_subprocess_exec(
        *(shutil.which("node") or "node", str(NODE_FOLDER / "run.mjs"), name, base_url(broker), KEY),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    out, err = await process.communicate(_picture())
    assert process.returncode == 0, err.decode()[-2000:]
    for image in json.loads(out):
        _assert_image(bytes.fromhex(image))
    assert len(await broker.provider_jobs()) - before == 2, "each call is one order"


def table(failures: dict[Cell, str], names: Sequence[str]) -> str:
    """Return the matrix as text: `ok`, or the number of a failure that follows."""
    width = max(len(name) for name in names)
    lines = [" " * width + "".join(f"  {provider:>13}" for provider in PROVIDERS)]
    numbers = {cell: number for number, cell in enumerate(failures, 1)}
    for name in names:
        marks = [numbers.get(Cell(client=name, provider=provider)) for provider in PROVIDERS]
        lines.append(f"{name:<{width}}" + "".join(f"  {f'FAILED {mark}' if mark else 'ok':>13}" for mark in marks))
    lines += [f"{number}. {cell.client} at {cell.provider}: {failures[cell]}" for cell, number in numbers.items()]
    return "\n".join(lines)


def base_url(broker: RunningBroker) -> str:
    return str(broker.client.base_url).rstrip("/")


def _assert_image(data: bytes) -> None:
    with Image.open(io.BytesIO(data)) as image:
        image.load()
        assert min(image.size) > 100, image.size


def _picture() -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (120, 80), "red").save(out, "png")
    return out.getvalue()
