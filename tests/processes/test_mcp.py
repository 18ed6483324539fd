"""`broker mcp`: the official client starts it as a child process, and uses every tool over stdio."""

from __future__ import annotations

import base64
import os
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import pytest
from mcp import Client, MCPError
from mcp.client.stdio import StdioServerParameters, stdio_client
from mcp.shared.dispatcher import ProgressFnT
from mcp_types import BlobResourceContents, CallToolResult, ImageContent, ResourceLink, TextContent
from PIL import Image
from pydantic import SecretStr

from broker.cli.console import CommandError
from broker.cli.mcp import serve_mcp
from broker.client import AsyncClient
from broker.mcp.images import MAX_PREVIEWS, ImageFiles
from broker.mcp.server import build_server
from broker.mcp.tools import MAX_CALL_SECONDS, BrokerTools
from broker.sandbox.engine import Options
from tests.support.brokers import RunningBroker, open_broker
from tests.support.samples import encoded
from tests.support.variables import settings_variables

pytestmark = pytest.mark.anyio

KEY = "key-of-a-caller-0123456789"


@pytest.fixture
async def broker(tmp_path: Path) -> AsyncIterator[RunningBroker]:
    options = Options(duration=0.05, callback_spacing=0.05, creates_per_window=1000)
    settings: dict[str, Any] = {"api_keys": (SecretStr(KEY),), "task_deadline": 60}
    async with open_broker(tmp_path / "broker", options=options, **settings) as broker:
        broker.client.headers["Authorization"] = f"Bearer {KEY}"
        yield broker


@asynccontextmanager
async def serving_mcp(folder: Path, *args: str, url: str, key: str = KEY) -> AsyncIterator[Client]:
    """Run the server in a child process, and connect the official client to it."""
    ours = {name: value for name, value in os.environ.items() if name not in settings_variables()}
    parameters = StdioServerParameters(
        command=sys.executable,
        args=["-W", "error", "-m", "broker", "mcp", "--out", str(folder / "results"), *args],
        env={**ours, "BROKER_URL": url, "BROKER_KEY": key},
        cwd=folder,
    )
    with (folder / "stderr.txt").open("w") as errors:
        async with Client(stdio_client(parameters, errlog=errors), read_timeout_seconds=30) as client:
            yield client


@asynccontextmanager
async def connected(
    folder: Path, broker: RunningBroker, *, key: str = KEY, call_seconds: float = MAX_CALL_SECONDS
) -> AsyncIterator[Client]:
    """Connect the official client to the server in this process."""
    async with AsyncClient(url_of(broker), key=key, patience=1) as own:
        files = ImageFiles(client=own, folder=folder / "results")
        tools = BrokerTools(client=own, files=files, call_seconds=call_seconds)
        async with Client(build_server(tools, files)) as client:
            yield client


def url_of(broker: RunningBroker) -> str:
    return str(broker.client.base_url).rstrip("/")


def text_of(answer: CallToolResult) -> str:
    return "\n".join(block.text for block in answer.content if isinstance(block, TextContent))


def outcome_of(answer: CallToolResult) -> dict[str, Any]:
    assert not answer.is_error, text_of(answer)
    assert answer.structured_content is not None
    content: dict[str, Any] = answer.structured_content
    return content


def error_of(answer: CallToolResult) -> str:
    assert answer.is_error
    return text_of(answer)


async def finish(client: Client, answer: CallToolResult, progress: ProgressFnT | None = None) -> CallToolResult:
    """Go on as the answer says, until its tasks are finished."""
    while next_step := outcome_of(answer)["next_step"]:
        (task,) = outcome_of(answer)["tasks"]
        assert f"Call get_task with {task['id']} " in next_step
        answer = await client.call_tool("get_task", {"task_id": task["id"]}, progress_callback=progress)
    return answer


async def test_official_client_uses_every_tool_over_stdio(tmp_path: Path, broker: RunningBroker) -> None:
    """Calls end in time, also those for slow tasks."""
    told: list[tuple[float, str]] = []

    async def tell(progress: float, total: float | None, message: str | None) -> None:
        told.append((progress, message or ""))

    async with serving_mcp(tmp_path, "--wait", "0.5", url=url_of(broker)) as client:
        tools = {tool.name for tool in (await client.list_tools()).tools}
        assert tools == {"generate", "edit", "get_task", "list_models"}
        models = outcome_of(await client.call_tool("list_models"))["models"]
        default = next(model for model in models if model["is_default"])
        assert (default["name"], "16:9" in default["aspect_ratios"]) == ("nano-banana", True)

        wanted = {"prompt": "a red fox [mood:slow:1]", "aspect_ratio": "16:9"}
        first = await client.call_tool("generate", wanted, progress_callback=tell)
        assert outcome_of(first)["is_finished"] is False
        assert "is ordered" in told[0][1]
        assert told == sorted(told, key=lambda one: one[0])
        answer = await finish(client, first, tell)
        assert any("is completed" in message for _, message in told)

        (task,) = outcome_of(answer)["tasks"]
        (saved,) = task["images"]
        with Image.open(saved["path"]) as image:
            assert (image.size, Path(saved["path"]).parent) == ((1344, 768), tmp_path / "results")
        text, link, preview = answer.content
        assert isinstance(text, TextContent)
        assert saved["path"] in text.text
        assert isinstance(link, ResourceLink)
        assert (link.uri, link.mime_type) == (saved["uri"], "image/png")
        assert isinstance(preview, ImageContent)
        own_address = f"{url_of(broker)}/uploads/images/{Path(saved['path']).name}"
        (resource,) = (await client.read_resource(link.uri)).contents
        assert isinstance(resource, BlobResourceContents)
        stored = (await broker.client.get(own_address)).content
        assert (base64.b64decode(resource.blob), resource.mime_type) == (stored, "image/png")

        (tmp_path / "sketch.png").write_bytes(encoded("PNG"))
        change = {"prompt": "at night", "images": ["sketch.png", saved["uri"], own_address]}
        edited = await finish(client, await client.call_tool("edit", change))
        (task,) = outcome_of(edited)["tasks"]
        assert (await broker.get_task(task["id"]))["mode"] == "image-to-image"
        assert isinstance(edited.content[-1], ImageContent)
        missing = await client.call_tool("edit", {"prompt": "x", "images": ["missing.png"]})
        assert "give the path of an image" in error_of(missing)
    assert len(await broker.provider_jobs()) == 2
    assert (tmp_path / "stderr.txt").read_text() == ""


async def test_repeated_call_is_one_order_until_its_result_is_delivered(tmp_path: Path, broker: RunningBroker) -> None:
    call = {"prompt": "a fox [mood:slow:0.6]"}
    async with connected(tmp_path, broker, call_seconds=0.2) as client:
        with anyio.move_on_after(0.1):
            await client.call_tool("generate", call)
        answers = [outcome_of(await client.call_tool("generate", call)) for _ in range(2)]
        (task_id,) = {answer["tasks"][0]["id"] for answer in answers}
        await broker.wait_end(task_id)
        delivered = outcome_of(await client.call_tool("get_task", {"task_id": task_id}))
        assert (delivered["is_finished"], len(delivered["tasks"][0]["images"])) == (True, 1)
        assert len(await broker.provider_jobs()) == 1
        other = outcome_of(await client.call_tool("generate", call))["tasks"][0]["id"]
        keyed = [outcome_of(await client.call_tool("generate", {**call, "idempotency_key": "k"})) for _ in range(2)]
        assert keyed[0]["tasks"][0]["id"] == keyed[1]["tasks"][0]["id"]
        assert len({task_id, other, keyed[0]["tasks"][0]["id"]}) == 3


async def test_several_images_are_answered_together(tmp_path: Path, broker: RunningBroker) -> None:
    async with connected(tmp_path, broker) as client:
        answer = await client.call_tool("generate", {"prompt": "a fox", "count": 6, "output_format": "jpg"})
        outcome = outcome_of(answer)
        assert [Path(task["images"][0]["path"]).suffix for task in outcome["tasks"]] == [".jpg"] * 6
        kinds = [type(block) for block in answer.content]
        assert (kinds.count(ResourceLink), kinds.count(ImageContent)) == (6, MAX_PREVIEWS)
        assert sum(len(block.data) for block in answer.content if isinstance(block, ImageContent)) < 400_000


async def test_errors_name_the_cure(tmp_path: Path, broker: RunningBroker) -> None:
    wrong: list[tuple[str, dict[str, Any], str]] = [
        ("generate", {"prompt": "a fox", "aspect_ratio": "5:77"}, "Accepted: 1:1"),
        ("generate", {"prompt": "a fox [mood:flagged]"}, "billed: no"),
        ("generate", {"prompt": "a fox", "count": 7}, "count"),
        ("edit", {"prompt": "a fox", "images": ["data:image/png;base64,%"]}, "base64"),
        ("edit", {"prompt": "a fox", "images": []}, "images"),
        ("edit", {"prompt": "a fox", "images": ["/dev/zero"]}, "it is no file"),
        ("edit", {"prompt": "a fox", "images": [f"file://{tmp_path}/secrets.env"]}, "secrets.env cannot be read"),
        ("get_task", {"task_id": "task_" + "0" * 43}, "no task"),
    ]
    (tmp_path / "secrets.env").write_text("KEY=1")
    async with connected(tmp_path, broker) as client:
        for tool, arguments, words in wrong:
            assert words in error_of(await client.call_tool(tool, arguments)), (tool, arguments)
        with pytest.raises(MCPError, match="not found"):
            await client.read_resource("broker://images/generated_0.png")
        (tmp_path / "results").write_text("a file")
        unsaved = await client.call_tool("generate", {"prompt": "a fox"})
        assert "--out" in error_of(unsaved)
    async with connected(tmp_path, broker, key="wrong-key") as client:
        refused = error_of(await client.call_tool("list_models"))
        assert "BROKER_API_KEYS" in refused
        assert "wrong-key" not in refused


async def test_missing_extra_is_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "mcp", None)
    with pytest.raises(CommandError, match=r"nano-banana-broker\[mcp\]"):
        await serve_mcp(out=None, seconds=1)
