"""Two providers at once in one process: kie.ai (played by the sandbox server) and the example."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import httpx
import pytest

from broker.bootstrap import load_settings, open_services
from broker.clock import SystemClock
from broker.doctor.checks import checks_for
from broker.doctor.context import open_context
from broker.providers.registry import load_catalog
from broker.sandbox.options import Options
from broker.sandbox.server import serve_sandbox
from broker.server.sockets import bind_socket, socket_port
from broker.server.uvicorn import running_server
from broker.services import Services
from broker.settings import Settings
from broker.settings.loading import SalvagedSettings
from tests.examples.provider import EXAMPLE
from tests.examples.provider.upstream import ExampleUpstream, serve_upstream
from webhooks.signatures.standard import StandardSignature, write_secret

pytestmark = pytest.mark.anyio

KEY, WEBHOOK_KEY = "key-of-the-example", b"w" * 32


@dataclass(frozen=True, kw_only=True)
class Scene:
    """A broker with both providers."""

    services: Services
    client: httpx.AsyncClient
    example: ExampleUpstream
    sandbox: str

    async def create_image(self, model: str) -> dict[str, Any]:
        """Order one image and return the task at its end."""
        created = await self.client.post("/api/generate/image", json={"prompt": "a red fox", "model": model})
        assert created.status_code == 202, created.text
        task_id = created.json()["taskId"]
        while True:
            task: dict[str, Any] = (await self.client.get(f"/api/task/{task_id}", params={"wait": "1"})).json()["data"]
            if task["status"] not in {"pending", "processing"}:
                return task


@asynccontextmanager
async def open_scene(folder: Path, *, has_public_url: bool) -> AsyncIterator[Scene]:
    async with AsyncExitStack() as stack:
        sandbox = await stack.enter_async_context(serve_sandbox(options=Options(duration=0.05, callback_spacing=0.05)))
        example = await stack.enter_async_context(serve_upstream(KEY, StandardSignature([WEBHOOK_KEY])))
        sock = bind_socket("127.0.0.1", 0)
        stack.callback(sock.close)
        base_url = f"http://127.0.0.1:{socket_port(sock)}"
        settings = load_both(
            folder,
            api_url=sandbox,
            upload_url=sandbox,
            example_url=example.url,
            poll_every=0.05,
            webhook_base_url=base_url if has_public_url else "",
            download_allow=(sandbox.removeprefix("http://"), example.url.removeprefix("http://")),
        )
        services = await stack.enter_async_context(
            open_services(settings, port=socket_port(sock), extra_providers=[EXAMPLE])
        )
        await stack.enter_async_context(running_server(services, sock))
        client = await stack.enter_async_context(httpx.AsyncClient(base_url=base_url, timeout=30, verify=False))
        yield Scene(services=services, client=client, example=example, sandbox=sandbox)


def load_both(folder: Path, **more: Any) -> Settings:
    return load_settings(
        env_file=None,
        extra_providers=[EXAMPLE],
        data_dir=folder,
        tunnel_api="http://127.0.0.1:9",
        api_key="key-of-kie",
        EXAMPLE_API_KEY=KEY,
        example_webhook_key=write_secret(WEBHOOK_KEY),
        **more,
    )


@pytest.mark.parametrize("has_public_url", [True, False], ids=["callbacks", "polling"])
async def test_each_model_is_ordered_from_the_provider_that_serves_it(tmp_path: Path, has_public_url: bool) -> None:
    async with open_scene(tmp_path, has_public_url=has_public_url) as scene:
        ours = await scene.create_image("example-painter")
        theirs = await scene.create_image("nano-banana-pro")
        assert (ours["status"], theirs["status"]) == ("completed", "completed")
        (job,) = scene.example.jobs
        assert (job["model"], job["prompt"]) == ("painter-1", "a red fox")
        tasks = [await scene.services.tasks.get(task["id"]) for task in (ours, theirs)]
        assert [task.provider for task in tasks if task] == ["example", "kie"]
        if has_public_url:
            assert job["webhook"].startswith(f"{scene.client.base_url}/api/webhook/example?task={ours['id']}&")
            assert scene.example.callback_statuses == [200]


async def test_dry_run_shows_the_request_of_the_example(tmp_path: Path) -> None:
    async with open_scene(tmp_path, has_public_url=False) as scene:
        body = {"prompt": "a red fox", "model": "example-painter", "aspectRatio": "16:9", "dryRun": True}
        answer = (await scene.client.post("/api/generate/image", json=body)).json()
        shown = answer.get("data", answer)
        assert shown["url"] == f"{scene.example.url}/v1/images"
        assert shown["json"] == {"model": "painter-1", "prompt": "a red fox", "shape": "16:9"}
        assert (shown["price"], shown["unit"]) == (0.02, "USD")
        assert scene.example.jobs == []


def test_catalog_of_the_example_adds_its_model() -> None:
    catalog = load_catalog([EXAMPLE])
    assert catalog.serves("example", "example-painter")
    assert not catalog.serves("kie", "example-painter")
    assert catalog.terms("example").creates_per_10s == 50


async def test_health_findings_of_several_providers_begin_with_their_names(tmp_path: Path) -> None:
    settings = load_both(tmp_path, api_url="http://127.0.0.1:9", example_url="http://127.0.0.1:9")
    async with open_context(SalvagedSettings(settings=settings), SystemClock()) as context:
        registry = replace(context.registry, catalog=load_catalog([EXAMPLE]), extra=[EXAMPLE])
        checks = checks_for(replace(context, registry=registry))
        assert {"kie: provider", "kie: key", "example: provider"} <= {check.name for check in checks}
        (check,) = (check for check in checks if check.name == "example: provider")
        (finding,) = await check.run(context)
        assert (finding.name, finding.status) == ("example: provider", "failed")
        assert "EXAMPLE_API_URL" in (finding.cure or "")
