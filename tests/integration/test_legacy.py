"""The adapter of the older dialect: one request, one status URL, and responses in many spellings."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest

from broker.errors import ProviderError
from broker.net.api_client import ApiClient
from broker.orders import ImageParams, Order, Reference
from broker.providers.base import Provider
from broker.providers.registry import load_catalog
from broker.reports import Failed, Finished, Pending
from tests.contracts.providers import (
    CALLBACK,
    IMAGE,
    JOB,
    KEY,
    PACKAGES,
    SINK,
    Canned,
    Upstream,
    open_provider,
)
from tests.support.clock import ManualClock

pytestmark = pytest.mark.anyio

TEXT = Order(
    params=ImageParams(prompt="a red bicycle", model="nano-banana", aspect_ratio="16:9", resolution="1K"),
    mode="text-to-image",
)
ACCEPTED = Canned(body={"code": 200, "data": {"status": "pending", "task_id": JOB}})
TWO = ("https://tempfile.example/1.png", "https://tempfile.example/2.png")


@pytest.fixture
async def upstream() -> AsyncIterator[Upstream]:
    async with Upstream().open() as upstream:
        yield upstream


@pytest.fixture
async def legacy(upstream: Upstream, clock: ManualClock) -> AsyncIterator[Provider]:
    client = ApiClient(timeout=5.0, max_connections=4)
    settings = {"kie_keys": KEY, "api_url": f"{upstream.url}/nano-banana/"}
    yield open_provider(PACKAGES["legacy"], settings, client, load_catalog(), clock.now)
    await client.aclose()


def edit(url: str | None) -> Order:
    async def read() -> AsyncIterator[bytes]:
        yield b""

    cat = Reference(name="cat.png", media_type="image/png", size=0, sha256="00" * 32, url=url, read=read)
    return Order(
        params=ImageParams(prompt="a red bicycle", model="nano-banana"), mode="image-to-image", references=(cat,)
    )


async def test_request_has_only_fields_of_the_dialect(legacy: Provider, upstream: Upstream) -> None:
    """The URL implies the model, so none is sent; the callback has one field, spelt like the others."""
    upstream.respond(ACCEPTED)
    assert await legacy.submit(TEXT, CALLBACK, SINK) == Pending(job_id=JOB)
    (sent,) = upstream.received
    assert (sent.method, sent.path) == ("POST", "/nano-banana/generate")
    assert sent.json() == {"prompt": "a red bicycle", "aspect_ratio": "16:9", "callback_url": CALLBACK}


async def test_references_are_sent_as_urls(legacy: Provider, upstream: Upstream) -> None:
    upstream.respond(ACCEPTED)
    await legacy.submit(edit("https://broker.example/uploads/references/cat.png"), None, SINK)
    assert upstream.received[0].json() == {
        "prompt": "a red bicycle",
        "image_urls": ["https://broker.example/uploads/references/cat.png"],
    }


async def test_reference_without_url_is_refused_with_the_cure(legacy: Provider, upstream: Upstream) -> None:
    report = await legacy.submit(edit(None), None, SINK)
    assert isinstance(report, Failed)
    assert (report.billed, report.retryable) == ("no", False)
    assert "public URL" in report.message
    assert upstream.received == []


@pytest.mark.parametrize("field", ["task_id", "taskId", "job_id", "jobId", "id"])
@pytest.mark.parametrize("wrapped", [True, False])
async def test_every_spelling_of_a_job_id_is_parsed(
    legacy: Provider, upstream: Upstream, field: str, wrapped: bool
) -> None:
    named = {field: JOB, "status": "queued"}
    upstream.respond(Canned(status=202, body={"data": named} if wrapped else named))
    assert await legacy.submit(TEXT, CALLBACK, SINK) == Pending(job_id=JOB)


@pytest.mark.parametrize(
    ("body", "report"),
    [
        (
            {"task_id": JOB, "status": "completed", "output": {"image_urls": list(TWO)}},
            Finished(outputs=TWO, job_id=JOB),
        ),
        ({"output": {"image_url": IMAGE}}, Finished(outputs=(IMAGE,))),
        ({"images": [{"url": TWO[0]}, {"url": TWO[1]}]}, Finished(outputs=TWO)),
        ({"task_id": JOB, "url": "https://service.example/status/1"}, Pending(job_id=JOB)),
    ],
)
async def test_response_with_the_image_finishes_the_job(
    legacy: Provider, upstream: Upstream, body: dict[str, Any], report: Any
) -> None:
    upstream.respond(Canned(body=body))
    assert await legacy.submit(TEXT, CALLBACK, SINK) == report


async def test_immediate_failure_may_have_been_billed(legacy: Provider, upstream: Upstream) -> None:
    upstream.respond(Canned(body={"task_id": JOB, "status": "failed", "error": "prohibited content"}))
    assert await legacy.submit(TEXT, CALLBACK, SINK) == Failed(
        code="safety_input", message="prohibited content", retryable=False, billed="unknown", job_id=JOB
    )


async def test_status_url_contains_the_job_id(legacy: Provider, upstream: Upstream) -> None:
    upstream.respond(Canned(body={"status": "processing"}))
    assert await legacy.check("a/../b?c", SINK) == Pending(job_id="a/../b?c", stage="processing")
    assert upstream.received[0].path == "/nano-banana/status/a/../b?c"
    assert upstream.received[0].query == {}


@pytest.mark.parametrize("body", [{"status": "completed"}, {"data": {"status": "success", "output": None}}])
async def test_success_without_result_has_no_outputs(legacy: Provider, upstream: Upstream, body: Any) -> None:
    upstream.respond(Canned(body=body))
    assert await legacy.check(JOB, SINK) == Finished(outputs=(), job_id=JOB)


async def test_error_of_a_status_request_does_not_end_the_job(legacy: Provider, upstream: Upstream) -> None:
    upstream.respond(Canned(status=404, body={"status": "error", "message": "no such task yet"}))
    with pytest.raises(ProviderError, match="no such task yet"):
        await legacy.check(JOB, SINK)


@pytest.mark.parametrize(
    ("body", "report"),
    [
        ({"task_id": JOB, "status": "pending"}, Pending(job_id=JOB, stage="pending")),
        ({"task_id": JOB, "status": "odd", "url": IMAGE}, Pending(job_id=JOB, check_in=0)),
    ],
)
async def test_callback_of_a_running_job_has_its_progress_or_causes_a_poll(
    legacy: Provider, body: Any, report: Pending
) -> None:
    assert legacy.parse_callback(body) == report


async def test_features_that_the_dialect_lacks(legacy: Provider) -> None:
    assert legacy.supports("nano-banana")
    assert not legacy.supports("nano-banana-pro")
    assert await legacy.refresh_url(IMAGE) is None
    assert await legacy.balance() is None
    assert legacy.ignored(TEXT) == ()
