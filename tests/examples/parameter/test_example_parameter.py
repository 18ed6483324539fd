"""A new parameter reaches the provider: one line in the dialect, one in the catalog, none in between."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.examples import parameter, provider
from tests.examples.parameter import GUIDED_EXAMPLE, guided_dialect
from tests.examples.provider import EXAMPLE
from tests.examples.running import CALLER_KEY, running_broker

pytestmark = pytest.mark.anyio

KEY = {"x-example-key": CALLER_KEY}
ORDER = {"text": "a red fox", "model": "example-painter", "guidance": 7.5}


async def test_new_parameter_reaches_the_provider(tmp_path: Path) -> None:
    async with running_broker(
        tmp_path, providers=[GUIDED_EXAMPLE], dialects=[guided_dialect], api_keys=(CALLER_KEY,)
    ) as broker:
        created = await broker.client.post("/example/images", headers=KEY, json=ORDER)
        assert created.status_code == 202, created.text
        task = await broker.client.get(f"/api/task/{created.json()['id']}", params={"wait": "10"})
        assert task.json()["data"]["status"] == "completed"
        (job,) = broker.example.jobs
        assert (job["prompt"], job["guidance_scale"]) == ("a red fox", 7.5)
        wrong = await broker.client.post("/example/images", headers=KEY, json={**ORDER, "guidance": 21})
        assert (wrong.status_code, wrong.json()["problem"]["kind"]) == (400, "invalid_request")


async def test_parameter_that_a_provider_cannot_use_is_ignored(tmp_path: Path) -> None:
    async with running_broker(
        tmp_path, providers=[EXAMPLE], dialects=[guided_dialect], api_keys=(CALLER_KEY,)
    ) as broker:
        created = await broker.client.post("/example/images", headers=KEY, json=ORDER)
        await broker.client.get(f"/api/task/{created.json()['id']}", params={"wait": "10"})
        (job,) = broker.example.jobs
        assert "guidance_scale" not in job


def test_catalog_of_the_example_differs_in_one_line() -> None:
    with_parameter, without = (
        (Path(str(package.__file__)).parent / "catalog.toml").read_text("utf-8").splitlines()
        for package in (parameter, provider)
    )
    assert [line for line in with_parameter if line not in without] == ['extra = { guidance = "guidance_scale" }']
    assert [line for line in without if line not in with_parameter] == []
