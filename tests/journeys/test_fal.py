"""fal's own misbehaviours through a whole broker, against its emulator over real HTTP."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.journeys.test_providers import broker_at

pytestmark = pytest.mark.anyio


@pytest.mark.parametrize("mood", ["payload_null", "retried", "keys_down"])
async def test_order_completes_with_one_paid_job(tmp_path: Path, mood: str) -> None:
    """Without the result in the callback, with another id of the gateway, and without the keys."""
    async with broker_at("fal", tmp_path, check_after=30) as broker:
        data = await broker.wait_end(await broker.create_task(f"a red fox [mood:{mood}]", model="nano-banana-2"))
        (job,) = await broker.provider_jobs()
    assert data["status"] == "completed", data
    assert [sent["status"] for sent in job["callbacks"]] == [200]
    assert (job["reads"] > 0) == (mood == "payload_null")


@pytest.mark.parametrize("with_callbacks", [True, False])
@pytest.mark.parametrize(
    ("mood", "code", "provider_code"),
    [("flagged", "safety_input", "content_policy_violation"), ("failed", "no_image", "no_media_generated")],
)
async def test_rejected_input_fails_with_the_type_of_its_detail(
    tmp_path: Path, with_callbacks: bool, mood: str, code: str, provider_code: str
) -> None:
    async with broker_at("fal", tmp_path, with_callbacks=with_callbacks, check_after=0.1) as broker:
        data = await broker.wait_end(await broker.create_task(f"a red fox [mood:{mood}]"))
    error = data["errorDetail"]
    assert data["status"] == "failed"
    assert (error["code"], error["providerCode"], error["billed"]) == (code, provider_code, "unknown")


async def test_failure_by_the_server_is_free_and_repeated_also_without_callbacks(tmp_path: Path) -> None:
    async with broker_at("fal", tmp_path, with_callbacks=False, check_after=0.1) as broker:
        data = await broker.wait_end(await broker.create_task("a red fox [mood:internal]"))
    assert (data["status"], data["attempts"]) == ("completed", 2)
