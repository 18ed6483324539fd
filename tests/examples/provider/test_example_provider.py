"""Two providers at once in one process: kie.ai (played by the sandbox server) and the example."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from broker.clock import SystemClock
from broker.doctor.checks import checks_for
from broker.doctor.context import open_context
from broker.providers.registry import load_catalog
from broker.settings.loading import SalvagedSettings
from tests.examples.provider import EXAMPLE
from tests.examples.running import RunningBroker, example_settings, running_broker

pytestmark = pytest.mark.anyio


async def create_image(broker: RunningBroker, model: str) -> dict[str, Any]:
    """Order one image and return the task at its end."""
    created = await broker.client.post("/api/generate/image", json={"prompt": "a red fox", "model": model})
    assert created.status_code == 202, created.text
    task_id = created.json()["taskId"]
    while True:
        task: dict[str, Any] = (await broker.client.get(f"/api/task/{task_id}", params={"wait": "1"})).json()["data"]
        if task["status"] not in {"pending", "processing"}:
            return task


@pytest.mark.parametrize("has_public_url", [True, False], ids=["callbacks", "polling"])
async def test_each_model_is_ordered_from_the_provider_that_serves_it(tmp_path: Path, has_public_url: bool) -> None:
    async with running_broker(tmp_path, providers=[EXAMPLE], has_public_url=has_public_url) as broker:
        ours = await create_image(broker, "example-painter")
        theirs = await create_image(broker, "nano-banana-pro")
        assert (ours["status"], theirs["status"]) == ("completed", "completed")
        (job,) = broker.example.jobs
        assert (job["model"], job["prompt"]) == ("painter-1", "a red fox")
        tasks = [await broker.services.tables.tasks.get(task["id"]) for task in (ours, theirs)]
        assert [task.provider for task in tasks if task] == ["example", "kie"]
        if has_public_url:
            assert job["webhook"].startswith(f"{broker.client.base_url}/api/webhook/example?task={ours['id']}&")
            assert broker.example.callback_statuses == [200]


async def test_dry_run_shows_the_request_of_the_example(tmp_path: Path) -> None:
    async with running_broker(tmp_path, providers=[EXAMPLE]) as broker:
        body = {"prompt": "a red fox", "model": "example-painter", "aspectRatio": "16:9", "dryRun": True}
        answer = (await broker.client.post("/api/generate/image", json=body)).json()
        shown = answer.get("data", answer)
        assert shown["url"] == f"{broker.example.url}/v1/images"
        assert shown["json"] == {"model": "painter-1", "prompt": "a red fox", "shape": "16:9"}
        assert (shown["price"], shown["unit"]) == (0.02, "USD")
        assert broker.example.jobs == []


def test_catalog_of_the_example_adds_its_model() -> None:
    catalog = load_catalog([EXAMPLE])
    assert catalog.serves("example", "example-painter")
    assert not catalog.serves("kie", "example-painter")
    assert catalog.terms("example").creates_per_10s == 50


async def test_health_findings_of_several_providers_begin_with_their_names(tmp_path: Path) -> None:
    settings = example_settings(tmp_path, [EXAMPLE], api_url="http://127.0.0.1:9", example_url="http://127.0.0.1:9")
    async with open_context(SalvagedSettings(settings=settings), SystemClock()) as context:
        registry = replace(context.registry, catalog=load_catalog([EXAMPLE]), extra=[EXAMPLE])
        checks = checks_for(replace(context, registry=registry))
        assert {"kie: provider", "kie: key", "example: provider"} <= {check.name for check in checks}
        (check,) = (check for check in checks if check.name == "example: provider")
        (finding,) = await check.run(context)
        assert (finding.name, finding.status) == ("example: provider", "failed")
        assert "EXAMPLE_API_URL" in (finding.cure or "")
