"""Contract of a provider: the classes of outcome that prevent a second payment."""

from __future__ import annotations

import traceback
from collections.abc import AsyncIterator
from dataclasses import dataclass
from functools import cache
from operator import attrgetter
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from broker.errors import TASK_CODES, ProviderError
from broker.net.api_client import ApiClient
from broker.orders import ImageParams, Order
from broker.providers.base import Provider
from broker.providers.registry import load_catalog
from broker.reports import Failed, Finished, Pending, Report
from tests.contracts.cases import CASES
from tests.contracts.providers import (
    CALLBACK,
    IMAGE,
    JOB,
    KEY,
    SINK,
    TOKEN,
    Canned,
    Case,
    Upstream,
    closed_port,
)
from tests.examples.provider import EXAMPLE
from tests.support.clock import ManualClock

pytestmark = pytest.mark.anyio

CATALOG = load_catalog([EXAMPLE])
_KEYS = st.text() | st.sampled_from(
    "code msg data taskId task_id state status resultJson resultUrls output result info image_url url failCode failMsg "
    "creditsConsumed error message id request_id payload payload_error images detail type msg".split()
)
JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text()
    | st.sampled_from([IMAGE, JOB, "success", "[]"]),
    lambda inner: st.lists(inner) | st.dictionaries(_KEYS, inner),
    max_leaves=12,
)


@dataclass(frozen=True, kw_only=True)
class Scene:
    """A provider and its upstream."""

    case: Case
    upstream: Upstream
    provider: Provider

    @property
    def order(self) -> Order:
        params = ImageParams(prompt="a red bicycle", model=self.case.model, aspect_ratio="16:9", steps=30, seed=7)
        return Order(params=params, mode="text-to-image")

    async def submit(self, canned: Canned) -> Report:
        self.upstream.respond(canned)
        return await self.provider.submit(self.order, CALLBACK, SINK)

    async def check(self, *canned: Canned) -> Report:
        self.upstream.respond(*canned)
        return await self.provider.check(self.case.job, SINK)


@pytest.fixture(params=CASES, ids=attrgetter("name"))
async def scene(request: pytest.FixtureRequest, clock: ManualClock) -> AsyncIterator[Scene]:
    client = ApiClient(timeout=5.0, max_connections=4)
    async with Upstream().open() as upstream:
        provider = request.param.build(upstream.url, client, CATALOG, clock.now)
        yield Scene(case=request.param, upstream=upstream, provider=provider)
        await client.aclose()


@cache
def offline(case: Case) -> Provider:
    """Return the provider for calls without a request."""
    return case.build("http://127.0.0.1:9", ApiClient(timeout=1.0, max_connections=1), CATALOG, lambda: 0.0)


def assert_no_secret(subject: object) -> None:
    """Assert that no secret is in the stored part of an outcome."""
    shown = repr(subject)
    if isinstance(subject, BaseException):
        shown += "".join(traceback.format_exception(subject))
    assert KEY not in shown
    assert TOKEN not in shown


async def test_response_with_a_job_is_an_accepted_order(scene: Scene) -> None:
    for canned in scene.case.accepted:
        assert await scene.submit(canned) == Pending(job_id=scene.case.job)


async def test_order_is_sent_once_with_key_and_callback(scene: Scene) -> None:
    await scene.submit(scene.case.accepted[0])
    (sent,) = scene.upstream.received
    assert sent.method == "POST"
    assert sent.headers["authorization"] == f"{scene.case.auth_scheme} {KEY}"
    assert CALLBACK in {**sent.json(), **sent.query}.values()


async def test_refusal_has_a_code_and_is_unbilled(scene: Scene) -> None:
    for canned, code, retryable in scene.case.refused:
        report = await scene.submit(canned)
        assert isinstance(report, Failed)
        assert (report.code, report.retryable, report.billed) == (code, retryable, "no")
        assert report.code in TASK_CODES
        assert report.job_id is None
        assert_no_secret(report)


async def test_unknown_outcome_is_an_error_and_never_repeated(scene: Scene) -> None:
    """A second request could order, and bill, a second image."""
    for number, canned in enumerate(scene.case.unknown, start=1):
        with pytest.raises(ProviderError) as caught:
            await scene.submit(canned)
        assert_no_secret(caught.value)
        assert len(scene.upstream.received) == number, canned


async def test_time_out_is_an_unknown_outcome(scene: Scene, clock: ManualClock) -> None:
    client = ApiClient(timeout=0.1, max_connections=1)
    scene.upstream.respond(Canned(quiet=True))
    with pytest.raises(ProviderError) as caught:
        await scene.case.build(scene.upstream.url, client, CATALOG, clock.now).submit(scene.order, CALLBACK, SINK)
    assert_no_secret(caught.value)
    await client.aclose()


async def test_request_that_was_not_sent_may_be_repeated(scene: Scene, clock: ManualClock) -> None:
    client = ApiClient(timeout=5.0, max_connections=1)
    report = await scene.case.build(closed_port(), client, CATALOG, clock.now).submit(scene.order, CALLBACK, SINK)
    assert isinstance(report, Failed)
    assert (report.code, report.retryable, report.billed) == ("provider_unavailable", True, "no")
    assert_no_secret(report)
    await client.aclose()


async def test_model_not_served_is_refused_without_a_request(scene: Scene) -> None:
    report = await scene.provider.submit(
        Order(params=ImageParams(prompt="x", model="no-such"), mode="text-to-image"),
        None,
        SINK,
    )
    assert isinstance(report, Failed)
    assert (report.retryable, report.billed) == (False, "no")
    assert not scene.provider.supports("no-such")
    assert scene.upstream.received == []


async def test_running_job_in_an_unknown_state_is_pending(scene: Scene) -> None:
    for canned in scene.case.running:
        report = await scene.check(canned)
        assert isinstance(report, Pending)
        assert report.check_in != 0


async def test_finished_job_has_its_result(scene: Scene) -> None:
    for canned in scene.case.finished:
        report = await scene.check(*scene.case.before_end, canned)
        assert isinstance(report, Finished)
        assert (report.outputs, report.job_id) == ((IMAGE,), scene.case.job)


async def test_failed_job_has_code_and_message(scene: Scene) -> None:
    for canned in scene.case.failed:
        report = await scene.check(*scene.case.before_end, canned)
        assert isinstance(report, Failed)
        assert report.code in TASK_CODES
        assert report.message.startswith("cannot reach https://broker.example/api/webhook/nano-banana?…")
        assert_no_secret(report)


async def test_unreadable_status_is_a_temporary_error(scene: Scene) -> None:
    for canned in scene.case.unreadable:
        with pytest.raises(ProviderError) as caught:
            await scene.check(canned)
        assert not caught.value.permanent
        assert_no_secret(caught.value)


async def test_callback_is_parsed(scene: Scene) -> None:
    case, parse = scene.case, scene.provider.parse_callback
    for body in case.callbacks_running:
        report = parse(body)
        assert isinstance(report, Pending)
        assert (report.job_id, report.check_in, str(report.stage) in str(body)) == (JOB, None, True)
    for body in case.callbacks_finished:
        report = parse(body)
        assert isinstance(report, Finished)
        assert (report.outputs, report.job_id or JOB) == ((IMAGE,), JOB)
    for body in case.callbacks_failed:
        report = parse(body)
        assert isinstance(report, Failed)
        assert_no_secret(report)
    for body in (*case.callbacks_running, *case.callbacks_finished, *case.callbacks_failed):
        assert case.job in scene.provider.job_ids(body)


@pytest.mark.parametrize("case", CASES, ids=attrgetter("name"))
@given(body=JSON)
@settings(max_examples=100, deadline=None)
def test_arbitrary_callback_never_raises(case: Case, body: Any) -> None:
    provider = offline(case)
    report = provider.parse_callback(body)
    if isinstance(report, Finished):
        assert report.outputs
        assert all(url.startswith(("http://", "https://")) for url in report.outputs)
    if isinstance(report, Failed):
        assert report.code in TASK_CODES
    repr(report).encode()
    assert all(isinstance(name, str) and 0 < len(name) <= 256 for name in provider.job_ids(body))


async def test_built_request_has_no_secret(scene: Scene) -> None:
    preview = scene.provider.build_request(scene.order, CALLBACK)
    assert_no_secret(preview)
    assert set(preview) == {"method", "url", "json", "price", "unit"}
    assert scene.upstream.received == []
    await scene.submit(scene.case.accepted[0])
    (sent,) = scene.upstream.received
    assert preview["url"].partition("?")[0] == scene.upstream.url + sent.path
    assert preview["json"].keys() == sent.json().keys()


async def test_unsupported_parameters_are_named(scene: Scene) -> None:
    assert "steps" in scene.provider.ignored(scene.order)
    preview = str(scene.provider.build_request(scene.order, None)["json"])
    assert ("'seed': 7" in preview) == ("seed" not in scene.provider.ignored(scene.order))
    assert "aspectRatio" not in scene.provider.ignored(scene.order)


async def test_repr_of_the_provider_has_no_secret(scene: Scene) -> None:
    assert_no_secret(scene.provider)


async def test_cancellation_is_asked_for_where_the_provider_has_one(scene: Scene) -> None:
    if scene.case.canceled:
        scene.upstream.respond(scene.case.canceled, Canned(status=404))
        assert await scene.provider.cancel(scene.case.job) is True
    assert await scene.provider.cancel(scene.case.job) is False
