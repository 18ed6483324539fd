"""Contract of a provider that answers with the image: the classes of outcome that prevent a second payment."""

from __future__ import annotations

import base64
import traceback
from collections.abc import AsyncIterator
from dataclasses import dataclass
from operator import attrgetter
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from broker.errors import TASK_CODES, ProviderError
from broker.net.api_client import ApiClient
from broker.orders import ImageParams, Order, Reference
from broker.providers.base import Provider
from broker.providers.registry import load_catalog
from broker.reports import Failed, Finished, Report
from tests.contracts.held import HELD_CASES, IMAGE_BYTES, HeldCase
from tests.contracts.providers import (
    CALLBACK,
    KEY,
    SINK,
    TOKEN,
    Canned,
    RecordingSink,
    Upstream,
    closed_port,
    open_context,
)
from tests.contracts.providers import open_provider as open_adapter
from tests.support.clock import ManualClock

pytestmark = pytest.mark.anyio

CATALOG = load_catalog()
REFERENCE_BYTES = b"reference" * 1000


@dataclass(frozen=True, kw_only=True)
class Scene:
    """A provider and its upstream."""

    case: HeldCase
    upstream: Upstream
    provider: Provider

    @property
    def order(self) -> Order:
        params = ImageParams(prompt="a red bicycle", model="nano-banana-pro", aspect_ratio="16:9", resolution="2K")
        return Order(params=params, mode="text-to-image")

    async def submit(self, canned: Canned, sink: RecordingSink | None = None) -> Report:
        self.upstream.respond(canned)
        return await self.provider.submit(self.order, CALLBACK, sink or RecordingSink())


def build(case: HeldCase, url: str, client: ApiClient, clock: ManualClock) -> Provider:
    return open_adapter(case.package, case.settings(url), client, CATALOG, clock.now)


@pytest.fixture(params=HELD_CASES, ids=attrgetter("name"))
async def scene(request: pytest.FixtureRequest, clock: ManualClock) -> AsyncIterator[Scene]:
    client = ApiClient(timeout=5.0, max_connections=4)
    async with Upstream().open() as upstream:
        provider = build(request.param, upstream.url, client, clock)
        yield Scene(case=request.param, upstream=upstream, provider=provider)
        await client.aclose()


def assert_no_secret(subject: object) -> None:
    shown = repr(subject)
    if isinstance(subject, BaseException):
        shown += "".join(traceback.format_exception(subject))
    assert KEY not in shown
    assert TOKEN not in shown


async def test_image_in_the_response_is_stored_and_the_order_has_ended(scene: Scene) -> None:
    for canned in scene.case.finished:
        sink = RecordingSink()
        report = await scene.submit(canned, sink)
        assert isinstance(report, Finished)
        assert sink.stored == [IMAGE_BYTES]
        assert report.outputs == ("stored:0",)


async def test_order_is_sent_once_with_the_key_and_no_callback(scene: Scene) -> None:
    await scene.submit(scene.case.finished[0])
    (sent,) = scene.upstream.received
    assert sent.method == "POST"
    assert scene.case.finds_key(sent)
    assert TOKEN.encode() not in sent.body
    assert scene.provider.holds_submit
    assert not scene.provider.expects_callback(scene.order)


async def test_references_are_part_of_the_request(scene: Scene) -> None:
    async def read() -> AsyncIterator[bytes]:
        for begin in range(0, len(REFERENCE_BYTES), 1000):
            yield REFERENCE_BYTES[begin : begin + 1000]

    reference = Reference(
        name="one.jpg", media_type="image/jpeg", size=len(REFERENCE_BYTES), sha256="0" * 64, url=None, read=read
    )
    order = Order(params=scene.order.params, mode="image-to-image", references=(reference, reference))
    scene.upstream.respond(scene.case.finished[0])
    assert await scene.provider.upload_references(order) == order
    assert isinstance(await scene.provider.submit(order, None, RecordingSink()), Finished)
    (sent,) = scene.upstream.received
    assert sent.body.count(base64.b64encode(REFERENCE_BYTES)) == 2
    assert "image/jpeg" in str(sent.json())


async def test_refusal_has_a_code_and_is_unbilled(scene: Scene) -> None:
    for canned, code, retryable in scene.case.refused:
        report = await scene.submit(canned)
        assert isinstance(report, Failed), canned
        assert (report.code, report.retryable, report.billed) == (code, retryable, "no"), canned
        assert report.cannot_serve == (canned.status == 404)
        assert report.job_id is None
        assert_no_secret(report)


async def test_answer_without_an_image_is_a_failure_that_may_be_billed(scene: Scene) -> None:
    for canned, code in scene.case.without_image:
        report = await scene.submit(canned)
        assert isinstance(report, Failed), canned
        assert (report.code, report.billed) == (code, "unknown"), canned
        assert report.code in TASK_CODES
        assert_no_secret(report)


async def test_unknown_outcome_is_an_error_and_never_repeated(scene: Scene) -> None:
    for number, canned in enumerate(scene.case.unknown, start=1):
        with pytest.raises(ProviderError) as caught:
            await scene.submit(canned)
        assert_no_secret(caught.value)
        assert len(scene.upstream.received) == number, canned


async def test_request_that_was_not_sent_may_be_repeated(scene: Scene, clock: ManualClock) -> None:
    client = ApiClient(timeout=5.0, max_connections=1)
    report = await build(scene.case, closed_port(), client, clock).submit(scene.order, CALLBACK, SINK)
    assert isinstance(report, Failed)
    assert (report.code, report.retryable, report.billed) == ("provider_unavailable", True, "no")
    assert_no_secret(report)
    await client.aclose()


async def test_model_not_served_is_refused_without_a_request(scene: Scene) -> None:
    order = Order(params=ImageParams(prompt="x", model="no-such"), mode="text-to-image")
    report = await scene.provider.submit(order, None, SINK)
    assert isinstance(report, Failed)
    assert (report.retryable, report.billed) == (False, "no")
    assert scene.upstream.received == []


async def test_built_request_is_the_one_that_is_sent(scene: Scene) -> None:
    preview = scene.provider.build_request(scene.order, CALLBACK)
    assert_no_secret(preview)
    await scene.submit(scene.case.finished[0])
    (sent,) = scene.upstream.received
    assert preview["url"] == scene.upstream.url + sent.path
    assert preview["json"] == sent.json()
    assert "outputFormat" not in scene.provider.ignored(scene.order)


async def test_job_that_cannot_exist_is_not_checked(scene: Scene) -> None:
    scene.upstream.respond(Canned(status=404))
    with pytest.raises(ProviderError):
        await scene.provider.check("none", SINK)
    assert_no_secret(scene.provider)


async def test_key_is_checked_free_of_charge(scene: Scene, clock: ManualClock) -> None:
    check = next(check for check in scene.case.package.checks if check.name == "key")
    client = ApiClient(timeout=5.0, max_connections=1)
    context = open_context(scene.case.package, scene.case.settings(scene.upstream.url), client, CATALOG, clock.now)
    for status, found in ((200, "ok"), (401, "failed"), (404, "skipped")):
        scene.upstream.respond(Canned(status=status, body={}))
        (finding,) = await check.run(scene.provider, context)
        assert finding.status == found
        assert_no_secret(finding)
        assert (scene.upstream.received[-1].method, scene.case.finds_key(scene.upstream.received[-1])) == ("GET", True)
    await client.aclose()


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text() | st.sampled_from(["type", "data", "id"]), inner),
    max_leaves=12,
)


@pytest.mark.parametrize("case", HELD_CASES[2:], ids=attrgetter("name"))
@given(body=JSON)
@settings(max_examples=100, deadline=None)
def test_arbitrary_callback_never_raises(case: HeldCase, body: Any) -> None:
    client = ApiClient(timeout=1.0, max_connections=1)
    provider = open_adapter(case.package, case.settings("http://127.0.0.1:9"), client, CATALOG, lambda: 0.0)
    provider.parse_callback(body)
    assert all(isinstance(name, str) and 0 < len(name) <= 256 for name in provider.job_ids(body))
