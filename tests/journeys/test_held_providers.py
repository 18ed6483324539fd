"""Providers that answer with the image: against their emulators, over real HTTP, and with their misbehaviours."""

from __future__ import annotations

import base64
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from broker.sandbox.engine import Options
from broker.sandbox.server import serve_sandbox
from tests.journeys.test_providers import assert_image, complete_both_orders
from tests.support.brokers import RunningBroker, open_broker

pytestmark = pytest.mark.anyio

LOW = {"priority": "low", "model": "nano-banana-pro"}
SECRET = "whsec_" + base64.b64encode(b"the secret of a project" * 2).decode()

SETTINGS: Mapping[str, Callable[[str], Mapping[str, Any]]] = {
    "gemini": lambda url: {"gemini_keys": "key", "gemini_url": url},
    "openrouter": lambda url: {"openrouter_keys": "key", "openrouter_url": f"{url}/api/v1"},
}


@asynccontextmanager
async def broker_at(
    dialect: str, folder: Path, *, options: Mapping[str, Any] | None = None, **settings: Any
) -> AsyncIterator[RunningBroker]:
    """Run a broker whose only provider is the emulator of a dialect."""
    chosen = Options(
        dialect=dialect,
        **{"api_key": "key", "duration": 0.05, "callback_spacing": 0.05, "creates_per_window": 100, **(options or {})},
    )
    async with AsyncExitStack() as stack:
        url = await stack.enter_async_context(serve_sandbox(options=chosen))
        given = {"kie_keys": (), **SETTINGS[dialect](url), **settings}
        yield await stack.enter_async_context(open_broker(folder, sandbox=url, **given))


def in_fault_runs(*cases: Any) -> list[Any]:
    """Return cases of `make faults`; the contract of held providers has each class of outcome."""
    return [pytest.param(*(case if isinstance(case, tuple) else (case,)), marks=pytest.mark.faults) for case in cases]


async def order(broker: RunningBroker, prompt: str, **fields: Any) -> dict[str, Any]:
    return await broker.wait_end(await broker.create_task(prompt, **{"model": "nano-banana-pro", **fields}))


@pytest.mark.parametrize("dialect", SETTINGS)
async def test_both_orders_complete(tmp_path: Path, dialect: str) -> None:
    async with broker_at(dialect, tmp_path) as broker:
        await complete_both_orders(broker)
        jobs = await broker.provider_jobs()
    assert [(len(job["callbacks"]), job["downloads"]) for job in jobs] == [(0, 0)] * 2


@pytest.mark.parametrize("auth", ["query", *in_fault_runs("bearer")])
async def test_key_goes_where_a_relay_wants_it(tmp_path: Path, auth: str) -> None:
    async with broker_at("gemini", tmp_path, gemini_auth=auth) as broker:
        assert (await order(broker, "a red fox"))["status"] == "completed"


@pytest.mark.parametrize("mood", ["snake", "markdown", "link", *in_fault_runs("thoughts", "wrongtype")])
async def test_every_form_of_an_answer_is_read(tmp_path: Path, mood: str) -> None:
    async with broker_at("gemini", tmp_path) as broker:
        data = await order(broker, f"a red fox [mood:{mood}]")
        assert data["status"] == "completed", data
        assert data["texts"] == [{"markdown": "Here it is:", "link": "Here it is:"}.get(mood, "Here is your image.")]
        assert data["results"][0]["mediaType"] == ("image/jpeg" if mood == "wrongtype" else "image/png")


@pytest.mark.parametrize("mood", ["overloaded", *in_fault_runs("list_error", "limited")])
async def test_refusal_that_may_pass_is_repeated(tmp_path: Path, mood: str) -> None:
    async with broker_at("gemini", tmp_path, task_deadline=30) as broker:
        data = await order(broker, f"a red fox [mood:{mood}]")
        assert data["status"] == "completed", data
        assert len(await broker.provider_jobs()) == 1


@pytest.mark.parametrize(
    ("dialect", "mood", "code", "billed"),
    [
        ("gemini", "noresult:1", "safety_output", "unknown"),
        ("gemini", "hang_up", "unknown_outcome", "unknown"),
        ("gemini", "cut", "unknown_outcome", "unknown"),
        ("openrouter", "noresult", "no_image", "yes"),
        ("openrouter", "error_in_200", "provider_error", "unknown"),
        *in_fault_runs(
            ("gemini", "noresult:0", "no_image", "unknown"),
            ("gemini", "noresult:2", "safety_input", "unknown"),
            ("gemini", "noresult:5", "no_image", "unknown"),
            ("gemini", "flagged", "safety_input", "unknown"),
            ("gemini", "openai_error", "provider_rejected", "no"),
            ("gemini", "down", "unknown_outcome", "unknown"),
            ("openrouter", "flagged", "safety_input", "no"),
            ("openrouter", "hang_up", "unknown_outcome", "unknown"),
            ("openrouter", "cut", "unknown_outcome", "unknown"),
        ),
    ],
)
async def test_order_without_an_image_ends_with_a_code(
    tmp_path: Path, dialect: str, mood: str, code: str, billed: str
) -> None:
    async with broker_at(dialect, tmp_path) as broker:
        data = await order(broker, f"a red fox [mood:{mood}]")
        assert data["status"] == "failed"
        assert (data["errorDetail"]["code"], data["errorDetail"]["billed"]) == (code, billed)
        assert len(await broker.provider_jobs()) <= 1


async def test_cost_and_turn_are_kept(tmp_path: Path) -> None:
    async with broker_at("gemini", tmp_path) as broker:
        data = await order(broker, "a red fox", resolution="4K")
        assert data["cost"]["amount"] == pytest.approx((10 * 2 + 112 * 12 + 2000 * 120) / 1e6)
        task = await broker.services.tables.tasks.get(data["id"])
        assert task is not None
        assert task.turn is not None
        assert "thoughtSignature" in task.turn
        assert "stored:" in task.turn


# -- batches


@pytest.mark.parametrize("secret", [None, SECRET])
async def test_order_of_low_priority_goes_to_a_batch_at_half_price(tmp_path: Path, secret: str | None) -> None:
    async with broker_at(
        "gemini", tmp_path, options={"webhook_key": secret}, uses_batch=True, gemini_webhook_secret=secret
    ) as broker:
        preview = await broker.client.post("/api/generate/image", json={"prompt": "a red fox", "dryRun": True, **LOW})
        quote = preview.json()["data"]
        assert (quote["price"], quote["deadlineSeconds"]) == (0.067, 48 * 3600)
        assert quote["url"].endswith(":batchGenerateContent")
        data = await order(broker, "a red fox", **LOW)
        await assert_image(broker, data["id"], (1024, 1024))
        assert data["cost"]["amount"] == pytest.approx((10 * 2 + 112 * 12 + 1120 * 120) / 2e6)
        (job,) = await broker.provider_jobs()
        assert [sent["status"] for sent in job["callbacks"]] == [200]
        normal = await broker.client.post("/api/generate/image", json={"prompt": "a fox", "dryRun": True})
        assert normal.json()["data"]["deadlineSeconds"] is None


async def test_webhook_with_a_wrong_token_is_rejected(tmp_path: Path) -> None:
    async with broker_at("gemini", tmp_path, uses_batch=True, options={"callback_retries": 0}) as broker:
        async for _ in broker.poll_task(await broker.create_task("a red fox [mood:badsign]", **LOW)):
            jobs = await broker.provider_jobs()
            if jobs and jobs[0]["callbacks"]:
                break
        assert jobs[0]["callbacks"][0]["status"] == 401


@pytest.mark.parametrize(
    ("mood", "code"),
    [("expired", "deadline_exceeded"), *in_fault_runs(("internal", "provider_error"), ("flagged", "safety_input"))],
)
async def test_batch_that_fails_ends_its_order(tmp_path: Path, mood: str, code: str) -> None:
    async with broker_at("gemini", tmp_path, uses_batch=True) as broker:
        data = await order(broker, f"a red fox [mood:{mood}]", **LOW)
        assert (data["status"], data["errorDetail"]["code"]) == ("failed", code)


async def test_canceled_order_cancels_its_batch(tmp_path: Path) -> None:
    async with broker_at("gemini", tmp_path, uses_batch=True) as broker:
        task_id = await broker.create_task("a red fox [mood:slow:30]", **LOW)
        async for task in broker.poll_task(task_id):
            if task["progress"] and await broker.provider_jobs():
                break
        answer = await broker.client.delete(f"/api/task/{task_id}")
        assert answer.status_code == 200
        async for _ in broker.poll_task(task_id):
            if (await broker.provider_jobs())[0]["state"] == "fail":
                break


async def test_balance_of_a_limited_key_is_known(tmp_path: Path) -> None:
    async with broker_at("openrouter", tmp_path) as broker:
        await order(broker, "a red fox")
        assert await broker.services.provider.balance() == pytest.approx(1000 - 0.134)
