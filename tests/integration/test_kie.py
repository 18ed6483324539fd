"""The kie.ai adapter: requests for each model, and the meaning of each documented or observed response."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from email.utils import formatdate
from itertools import product
from typing import Any

import pytest
from pydantic import ValidationError

from broker.catalog import Catalog
from broker.errors import ProviderError
from broker.net.api_client import ApiClient
from broker.orders import ImageParams, Mode, Order, OutputFormat, Reference
from broker.providers.base import Provider
from broker.providers.kie.settings import KieSettings
from broker.providers.registry import PROVIDERS, load_catalog
from broker.reports import Failed, Finished, Pending
from tests.contracts.providers import (
    CALLBACK,
    JOB,
    KEY,
    PACKAGES,
    SINK,
    TOKEN,
    Canned,
    Upstream,
    open_provider,
)
from tests.support.clock import ManualClock

pytestmark = pytest.mark.anyio

CATALOG = load_catalog()
IMAGE = "https://tempfile.example/p/one.jpg?sig=1"
TWO = ("https://tempfile.example/p/one.jpg", "http://tempfile.example/p/two.jpg")
ACCEPTED = Canned(body={"code": 200, "msg": "success", "data": {"taskId": JOB}})


@pytest.fixture
async def upstream() -> AsyncIterator[Upstream]:
    async with Upstream().open() as upstream:
        yield upstream


@pytest.fixture
async def client() -> AsyncIterator[ApiClient]:
    client = ApiClient(timeout=5.0, max_connections=4)
    yield client
    await client.aclose()


@pytest.fixture
def kie(upstream: Upstream, client: ApiClient, clock: ManualClock) -> Provider:
    return account(upstream.url, client, clock)


@pytest.fixture
def uploading(upstream: Upstream, client: ApiClient, clock: ManualClock) -> Provider:
    """Return an adapter that uploads every reference."""
    return account(upstream.url, client, clock, upload_references=True)


@pytest.fixture
def offline(clock: ManualClock) -> Provider:
    """Return an adapter for calls without a request."""
    return account("http://127.0.0.1:9", ApiClient(timeout=5.0, max_connections=4), clock)


def account(url: str, client: ApiClient, clock: ManualClock, *, upload_references: bool = False) -> Provider:
    settings = {"kie_keys": KEY, "api_url": url, "upload_url": f"{url}/", "upload_references": upload_references}
    return open_provider(PACKAGES["kie"], settings, client, CATALOG, clock.now)


def reference(url: str | None = None, *, media_type: str = "image/png", data: bytes = b"PNG-bytes") -> Reference:
    async def read() -> AsyncIterator[bytes]:
        yield data[:4]
        yield data[4:]

    return Reference(name="cat.png", media_type=media_type, size=len(data), sha256="ab" * 32, url=url, read=read)


def order(
    model: str = "nano-banana",
    mode: Mode = "text-to-image",
    *,
    ratio: str | None = None,
    resolution: str | None = None,
    output_format: OutputFormat | None = None,
    references: tuple[Reference, ...] = (),
) -> Order:
    return Order(
        params=ImageParams(
            prompt="a red bicycle",
            model=model,
            aspect_ratio=ratio,
            resolution=resolution,
            output_format=output_format,
            steps=30,
            seed=1,
        ),
        mode=mode,
        references=references,
    )


def record(**data: Any) -> Canned:
    return Canned(body={"code": 200, "msg": "success", "data": {"taskId": JOB, "model": "nano-banana-2", **data}})


def result(*urls: str) -> str:
    return json.dumps({"resultUrls": list(urls)})


# -- requests

REF = "https://broker.example/uploads/references/cat.png"
EDIT = (reference(REF),)
REQUESTS: list[tuple[Order, dict[str, Any]]] = [
    (order(), {"model": "google/nano-banana", "input": {"prompt": "a red bicycle"}}),
    (
        order(ratio="16:9", output_format="jpg", resolution="1K"),
        {
            "model": "google/nano-banana",
            "input": {"prompt": "a red bicycle", "image_size": "16:9", "output_format": "jpeg"},
        },
    ),
    (
        order(mode="image-to-image", ratio="auto", output_format="png", references=EDIT),
        {
            "model": "google/nano-banana-edit",
            "input": {
                "prompt": "a red bicycle",
                "image_size": "auto",
                "output_format": "png",
                "image_urls": [REF],
            },
        },
    ),
    (
        order("nano-banana-pro"),
        {"model": "nano-banana-pro", "input": {"prompt": "a red bicycle", "image_input": []}},
    ),
    (
        order("nano-banana-pro", "image-to-image", ratio="3:2", resolution="4K", output_format="jpg", references=EDIT),
        {
            "model": "nano-banana-pro",
            "input": {
                "prompt": "a red bicycle",
                "aspect_ratio": "3:2",
                "resolution": "4K",
                "output_format": "jpg",
                "image_input": [REF],
            },
        },
    ),
    (
        order("nano-banana-2", ratio="8:1", resolution="2K", output_format="png"),
        {
            "model": "nano-banana-2",
            "input": {
                "prompt": "a red bicycle",
                "aspect_ratio": "8:1",
                "resolution": "2K",
                "output_format": "png",
                "image_input": [],
            },
        },
    ),
    (
        order("nano-banana-2", "image-to-image", references=EDIT),
        {"model": "nano-banana-2", "input": {"prompt": "a red bicycle", "image_input": [REF]}},
    ),
    (
        order("nano-banana-2-lite", resolution="1K", output_format="png"),
        {"model": "nano-banana-2-lite", "input": {"prompt": "a red bicycle", "aspect_ratio": "auto"}},
    ),
    (
        order("nano-banana-2-lite", "image-to-image", ratio="1:4", references=EDIT),
        {
            "model": "nano-banana-2-lite",
            "input": {"prompt": "a red bicycle", "aspect_ratio": "1:4", "image_urls": [REF]},
        },
    ),
]


@pytest.mark.parametrize(("order", "expected"), REQUESTS, ids=lambda value: getattr(value, "model", ""))
async def test_each_model_is_spelt_as_its_page_documents(
    kie: Provider, upstream: Upstream, order: Order, expected: dict[str, Any]
) -> None:
    """Image-to-image uses the edit model; no request has a field that its model lacks."""
    upstream.respond(ACCEPTED)
    assert await kie.submit(order, CALLBACK, SINK) == Pending(job_id=JOB)
    (sent,) = upstream.received
    assert (sent.method, sent.path) == ("POST", "/api/v1/jobs/createTask")
    assert sent.json() == expected | {"callBackUrl": CALLBACK}
    assert sent.headers["content-type"] == "application/json"
    preview = kie.build_request(order, CALLBACK)
    assert preview["json"]["input"] == expected["input"]
    assert preview["json"]["callBackUrl"] == "https://broker.example/api/webhook/nano-banana?…"


async def test_request_without_public_url_has_no_callback(kie: Provider, upstream: Upstream) -> None:
    upstream.respond(ACCEPTED)
    await kie.submit(order(), None, SINK)
    assert "callBackUrl" not in upstream.received[0].json()


async def test_built_request_has_the_price(kie: Provider) -> None:
    preview = kie.build_request(
        order("nano-banana-pro", "image-to-image", resolution="4K", references=(reference(),)), None
    )
    assert preview["price"] == 24
    assert preview["json"]["input"]["image_input"] == ["upload:cat.png"]
    assert kie.ignored(order("nano-banana-pro")) == ("steps", "seed")


# -- responses to an order

CODES: dict[int, tuple[str, bool, float | None] | None] = {
    400: ("provider_rejected", False, None),
    401: ("provider_auth", False, None),
    402: ("provider_credits", False, None),
    404: ("provider_rejected", False, None),
    405: ("provider_rejected", False, None),
    408: None,
    413: ("provider_rejected", False, None),
    422: ("provider_rejected", False, None),
    429: ("provider_rate_limited", True, 5.0),
    433: ("provider_credits", False, None),
    451: ("provider_rejected", False, None),
    455: ("provider_unavailable", True, 60.0),
    500: None,
    501: None,
}
"""Code of createTask → task code, retryable, wait; None: the order may have been accepted."""


@pytest.mark.parametrize("code", CODES)
async def test_code_means_the_same_as_http_status_and_in_the_body(kie: Provider, upstream: Upstream, code: int) -> None:
    """HTTP 200 with an error code is a failure; the task would never end otherwise."""
    for http, spelt, word in product((code, 200), (code, str(code)), ("msg", "message")):
        upstream.respond(Canned(status=http, body={"code": spelt, word: "You shall not pass", "data": None}))
        expected = CODES[code]
        if expected is None:
            with pytest.raises(ProviderError, match=f"code {code}: You shall not pass"):
                await kie.submit(order(), CALLBACK, SINK)
            continue
        kind, retryable, wait = expected
        assert await kie.submit(order(), CALLBACK, SINK) == Failed(
            code=kind,
            message="You shall not pass",
            retryable=retryable,
            billed="no",
            provider_code=str(code),
            retry_in=wait,
        )


@pytest.mark.parametrize("code", [505, 531])
async def test_codes_505_and_531_are_refusals(kie: Provider, upstream: Upstream, code: int) -> None:
    """Feature disabled; failed and refunded. As an HTTP status without a body they could come from any proxy."""
    upstream.respond(Canned(body={"code": code, "msg": "no"}), Canned(status=code))
    report = await kie.submit(order(), CALLBACK, SINK)
    assert isinstance(report, Failed)
    assert report.billed == "no"
    with pytest.raises(ProviderError):
        await kie.submit(order(), CALLBACK, SINK)


@pytest.mark.parametrize("status", [400, 401, 403, 404, 405, 410, 422, 429])
async def test_http_refusal_without_body_is_certain(kie: Provider, upstream: Upstream, status: int) -> None:
    upstream.respond(Canned(status=status, body=b"<html>no</html>"))
    report = await kie.submit(order(), CALLBACK, SINK)
    assert isinstance(report, Failed)
    assert (report.billed, report.provider_code, report.message) == ("no", str(status), "the answer is not JSON")


@pytest.mark.parametrize(("status", "code", "refused"), [(500, 422, True), (503, 455, True), (400, 200, True)])
@pytest.mark.parametrize("data", [None, {"taskId": ""}, {"taskId": None}, {"recordId": "x"}, [], "x"])
async def test_code_of_the_body_precedes_the_http_status(
    kie: Provider, upstream: Upstream, status: int, code: int, refused: bool, data: Any
) -> None:
    upstream.respond(Canned(status=status, body={"code": code, "msg": "no", "data": data}))
    assert isinstance(await kie.submit(order(), CALLBACK, SINK), Failed) is refused


@pytest.mark.parametrize(
    "canned",
    [
        Canned(body={"code": 429, "msg": "too many", "data": {"taskId": JOB}}),
        Canned(status=500, body={"code": 500, "msg": "oops", "data": {"taskId": JOB}}),
        Canned(body={"code": 200, "taskId": JOB}),
        Canned(body={"data": {"taskId": f" {JOB} "}}),
    ],
)
async def test_response_with_a_job_id_is_an_accepted_order(kie: Provider, upstream: Upstream, canned: Canned) -> None:
    """It is the only handle on an image that may be paid, and polling is free."""
    upstream.respond(canned)
    assert await kie.submit(order(), CALLBACK, SINK) == Pending(job_id=JOB)


@pytest.mark.parametrize(
    ("header", "wait"),
    [
        ("7", 7.0),
        ("1.5", 1.5),
        ("0", 0.0),
        ("-3", 5.0),
        ("1e9", 5.0),
        ("inf", 5.0),
        ("99999999999999999999", 600.0),
        ("nan", 5.0),
        ("soon", 5.0),
        ("", 5.0),
        ("Thu, 99 Foo 2026 99:99:99 GMT", 5.0),
        (formatdate(1_790_000_030, usegmt=True), 30.0),
        (formatdate(1_790_000_030), 30.0),
        (formatdate(1_780_000_000, usegmt=True), 0.0),
        (formatdate(1_990_000_000, usegmt=True), 600.0),
    ],
)
async def test_retry_after_is_honoured_up_to_the_limit(
    kie: Provider, upstream: Upstream, header: str, wait: float
) -> None:
    upstream.respond(Canned(status=429, body={"code": 429}, headers={"Retry-After": header}))
    report = await kie.submit(order(), CALLBACK, SINK)
    assert isinstance(report, Failed)
    assert report.retry_in == wait


async def test_refusal_for_content_is_classified_as_safety(kie: Provider, upstream: Upstream) -> None:
    upstream.respond(Canned(body={"code": 400, "msg": "Your prompt was flagged by our moderation"}))
    report = await kie.submit(order(), CALLBACK, SINK)
    assert isinstance(report, Failed)
    assert (report.code, report.retryable) == ("safety_input", False)


# -- references


def parts(body: bytes) -> dict[str, bytes]:
    """Return the parts of a multipart body by name."""
    boundary = body[: body.index(b"\r\n")]
    fields = {}
    for part in body.split(boundary)[1:-1]:
        head, _, value = part.strip(b"\r\n").partition(b"\r\n\r\n")
        fields[head.split(b'name="')[1].split(b'"')[0].decode()] = value
    return fields


UPLOADED = Canned(
    body={
        "success": True,
        "code": 200,
        "msg": "File uploaded successfully",
        "data": {
            "fileName": "x.png",
            "downloadUrl": "https://files.example/x.png",
            "fileUrl": "https://other.example/",
        },
    }
)


async def test_reference_without_public_url_is_uploaded(kie: Provider, upstream: Upstream) -> None:
    upstream.respond(UPLOADED, ACCEPTED)
    references = (reference(), reference(REF))
    assert await kie.submit(order("nano-banana-pro", "image-to-image", references=references), None, SINK) == Pending(
        job_id=JOB
    )
    upload, create = upstream.received
    assert (upload.method, upload.path) == ("POST", "/api/file-stream-upload")
    assert upload.headers["authorization"] == f"Bearer {KEY}"
    fields = parts(upload.body)
    assert fields["file"] == b"PNG-bytes"
    assert fields["uploadPath"] == b"references"
    assert create.json()["input"]["image_input"] == ["https://files.example/x.png", REF]


async def test_setting_uploads_references_with_public_url(uploading: Provider, upstream: Upstream) -> None:
    upstream.respond(Canned(body={"code": 200, "data": {"fileUrl": "https://files.example/y.png"}}), ACCEPTED)
    await uploading.submit(order(mode="image-to-image", references=(reference(REF),)), None, SINK)
    assert upstream.received[1].json()["input"]["image_urls"] == ["https://files.example/y.png"]


async def test_each_upload_has_a_new_name(uploading: Provider, upstream: Upstream) -> None:
    """kie.ai keeps serving the old bytes of a name that was used before."""
    upstream.respond(UPLOADED, UPLOADED, ACCEPTED)
    await uploading.submit(order(mode="image-to-image", references=(reference(REF), reference(REF))), None, SINK)
    names = [parts(sent.body)["fileName"] for sent in upstream.received[:2]]
    assert len(set(names)) == 2
    assert all(name.startswith(b"abab") and name.endswith(b".png") for name in names)


@pytest.mark.parametrize(
    "canned", [Canned(hang_up=True), Canned(status=500, body={"code": 500}), Canned(body={"code": 429})]
)
async def test_failed_upload_is_unbilled_and_retryable(kie: Provider, upstream: Upstream, canned: Canned) -> None:
    upstream.respond(canned)
    report = await kie.submit(order(mode="image-to-image", references=(reference(),)), None, SINK)
    assert isinstance(report, Failed)
    assert (report.code, report.retryable, report.billed) == ("provider_unavailable", True, "no")
    assert [sent.path for sent in upstream.received] == ["/api/file-stream-upload"]


@pytest.mark.parametrize(("code", "kind"), [(400, "provider_rejected"), (401, "provider_auth")])
async def test_refused_upload_is_not_repeated(kie: Provider, upstream: Upstream, code: int, kind: str) -> None:
    upstream.respond(Canned(body={"success": False, "code": code, "msg": "no"}))
    report = await kie.submit(order(mode="image-to-image", references=(reference(),)), None, SINK)
    assert isinstance(report, Failed)
    assert (report.code, report.retryable, report.billed) == (kind, False, "no")
    assert len(upstream.received) == 1


# -- status


@pytest.mark.parametrize(
    "state", ["success", "SUCCESS", "succeeded", "completed", "complete", "finished"], ids=lambda state: f"{state}"
)
@pytest.mark.parametrize("field", ["state", "status", "taskStatus"])
async def test_every_spelling_of_success_is_parsed(kie: Provider, upstream: Upstream, field: str, state: str) -> None:
    upstream.respond(record(**{field: state}, resultJson=result(*TWO), creditsConsumed="8"))
    assert await kie.check(JOB, SINK) == Finished(outputs=TWO, job_id=JOB, cost=8.0)
    (sent,) = upstream.received
    assert (sent.method, sent.path, sent.query) == ("GET", "/api/v1/jobs/recordInfo", {"taskId": JOB})


async def test_job_id_is_escaped_in_the_query(kie: Provider, upstream: Upstream) -> None:
    upstream.respond(Canned(body={"code": 422}))
    with pytest.raises(ProviderError):
        await kie.check("a/b?c&taskId=d", SINK)
    assert upstream.received[0].query == {"taskId": "a/b?c&taskId=d"}


@pytest.mark.parametrize(
    ("value", "outputs"),
    [
        (result(*TWO), TWO),
        ({"resultUrls": list(TWO)}, TWO),
        (json.dumps(result(*TWO)), TWO),
        ({"data": {"resultUrls": list(TWO)}}, TWO),
        (list(TWO), TWO),
        (IMAGE, (IMAGE,)),
        (result(TWO[0], TWO[0], TWO[1]), TWO),
        (result(TWO[0]).replace("/", "\\/"), TWO[:1]),
        (result(*TWO)[:-12], ()),
        (
            result("ftp://x/y", "javascript:alert(1)", "data:image/png;base64,AA", "//x/y", "x", "http://", TWO[0]),
            TWO[:1],
        ),
        (result("http://[::1", "https://x y/", "https://x/\x00", f"https://x/{'y' * 4096}"), ()),
        (json.dumps({"resultUrls": [None, 5, {}, [TWO[0]]]}), TWO[:1]),
        ('{"resultUrls":[]}', ()),
        ('{"resultObject":{}}', ()),
        ("not json", ()),
        ("", ()),
        (None, ()),
        (0, ()),
    ],
)
async def test_results_are_parsed_from_every_wrapping(
    kie: Provider, upstream: Upstream, value: Any, outputs: tuple[str, ...]
) -> None:
    """`resultJson` is a string, and can contain several URLs."""
    upstream.respond(record(state="success", resultJson=value))
    assert await kie.check(JOB, SINK) == Finished(outputs=outputs, job_id=JOB)


async def test_results_beyond_sixteen_are_ignored(kie: Provider, upstream: Upstream) -> None:
    upstream.respond(record(state="success", resultJson=result(*(f"https://x.example/{n}" for n in range(99)))))
    report = await kie.check(JOB, SINK)
    assert isinstance(report, Finished)
    assert report.outputs == tuple(f"https://x.example/{n}" for n in range(16))


@pytest.mark.parametrize(
    "state", ["waiting", "queuing", "generating", "pending", "in_progress", "IN-PROGRESS", "dozing"]
)
async def test_result_of_an_unfinished_job_is_ignored(kie: Provider, upstream: Upstream, state: str) -> None:
    upstream.respond(record(state=state, resultJson=result(*TWO)))
    assert await kie.check(JOB, SINK) == Pending(job_id=JOB, stage=state)


FAILURES = [
    ("500", "Gemini could not generate an image with the given prompt. Please try again.", "no_image", False),
    ("500", "Failed to create task: image_size is not within the range of allowed options", "provider_rejected", False),
    (500, "Internal server error", "provider_error", True),
    ("500", "Internal Error, Please try again later.", "provider_error", True),
    (
        "400",
        "The input or output was flagged as sensitive. Please try again with different inputs.",
        "safety_input",
        False,
    ),
    ("501", "The generated image was flagged as NSFW", "safety_output", False),
    ("501", "prohibited content", "safety_input", False),
    ("501", "generation failed", "provider_error", True),
    ("422", "bad", "provider_rejected", False),
    ("402", "Insufficient credits: 5 exceeds 4", "provider_credits", False),
    ("429", "too many", "provider_rate_limited", True),
    ("", "", "provider_error", False),
    (None, None, "provider_error", False),
    ("E005", "weird", "safety_input", False),
    ("E777", "weird", "provider_error", False),
]
FREE = {"402", "429"}


@pytest.mark.parametrize(("fail_code", "words", "code", "retryable"), FAILURES)
async def test_failure_is_classified_by_code_and_message(
    kie: Provider, upstream: Upstream, fail_code: Any, words: str | None, code: str, retryable: bool
) -> None:
    upstream.respond(record(state="fail", failCode=fail_code, failMsg=words))
    assert await kie.check(JOB, SINK) == Failed(
        code=code,
        message=words or "no reason given",
        retryable=retryable,
        billed="no" if fail_code in FREE else "unknown",
        job_id=JOB,
        provider_code=str(fail_code) if fail_code else None,
        known=fail_code != "E777",
    )


@pytest.mark.parametrize("state", ["fail", "failed", "failure", "error", "cancelled", "timeout"])
@pytest.mark.parametrize(
    ("fields", "billed"),
    [({"creditsConsumed": 0}, "no"), ({"creditsConsumed": 0.5}, "yes"), ({"consumeCredits": 0}, "no"), ({}, "unknown")],
)
async def test_consumed_credits_show_if_a_failure_was_billed(
    kie: Provider, upstream: Upstream, state: str, fields: dict[str, float], billed: str
) -> None:
    upstream.respond(record(state=state, failCode="500", **fields))
    report = await kie.check(JOB, SINK)
    assert isinstance(report, Failed)
    assert report.billed == billed


@pytest.mark.parametrize(("code", "billed"), [(501, "unknown"), (408, "unknown"), (531, "no")])
@pytest.mark.parametrize("http", [True, False])
async def test_envelope_code_can_report_a_failed_job(
    kie: Provider, upstream: Upstream, code: int, http: bool, billed: str
) -> None:
    upstream.respond(Canned(status=code if http else 200, body={"code": code, "msg": "no result", "data": None}))
    report = await kie.check(JOB, SINK)
    assert isinstance(report, Failed)
    assert (report.code, report.billed, report.job_id) == ("provider_error", billed, JOB)


@pytest.mark.parametrize(
    ("canned", "retry_in"),
    [
        (Canned(body={"code": 422, "msg": "recordInfo is null", "data": None}), None),
        (Canned(status=404, body={"code": 404, "msg": "Task not found"}), None),
        (Canned(status=408), None),
        (Canned(status=500, body={"code": 500}), None),
        (Canned(body={"code": 429}), 5.0),
        (Canned(status=503, headers={"Retry-After": "17"}), 17.0),
        (Canned(body={"code": 455}), 60.0),
        (Canned(body={"code": 401}), 60.0),
        (Canned(body={"code": 433}), 60.0),
        (Canned(body={"code": 501, "data": {"taskId": JOB, "state": "generating"}}), None),
        (
            Canned(body={"code": 200, "data": {"taskId": "another", "state": "success", "resultJson": result(*TWO)}}),
            None,
        ),
        (Canned(body={"code": 200, "status": "success", "data": None}), None),
    ],
)
async def test_response_without_information_is_polled_again(
    kie: Provider, upstream: Upstream, canned: Canned, retry_in: float | None
) -> None:
    """A job may be unknown for a while after it was ordered, and a key may be renewed: the image is paid."""
    upstream.respond(canned)
    with pytest.raises(ProviderError) as caught:
        await kie.check(JOB, SINK)
    assert (caught.value.permanent, caught.value.retry_in) == (False, retry_in)


def cut(**data: Any) -> bytes:
    """Return a record of kie.ai without the end of its envelope."""
    param = json.dumps({"input": json.dumps({"prompt": 'x","state":"success","resultJson":"https://evil.example/'})})
    body = {"code": 200, "data": {"taskId": JOB, "param": param, **data}}
    return json.dumps(body)[:-1].encode()


async def test_truncated_record_is_salvaged_if_unambiguous(kie: Provider, upstream: Upstream) -> None:
    upstream.respond(Canned(body=cut(state="success", resultJson=result(*TWO), creditsConsumed=8)))
    assert await kie.check(JOB, SINK) == Finished(outputs=TWO, job_id=JOB, cost=8.0)
    upstream.respond(Canned(body=cut(state="fail", failCode="500", failMsg="Internal server error")))
    assert isinstance(await kie.check(JOB, SINK), Failed)


@pytest.mark.parametrize(
    "body",
    [
        cut(),
        cut(state="generating"),
        cut(state="success"),
        cut(state="success", resultJson=None),
        cut(state="success", resultJson=result(*TWO))[:-9],
        cut(state="success", resultJson=result(*TWO)).replace(JOB.encode(), b"another"),
        cut(state="success", resultJson=result(*TWO)) + b',"state":"fail"',
        b'"state":"success"' * 1000,
        b"\xff\xfe" * 1000,
    ],
)
async def test_ambiguous_truncated_record_is_polled_again(kie: Provider, upstream: Upstream, body: bytes) -> None:
    upstream.respond(Canned(body=body))
    with pytest.raises(ProviderError):
        await kie.check(JOB, SINK)


# -- callbacks

MARKET_SUCCESS = {
    "code": 200,
    "msg": "Playground task completed successfully.",
    "data": {
        "taskId": JOB,
        "model": "google/nano-banana",
        "state": "success",
        "param": '{"input":"{\\"prompt\\":\\"a\\"}","callBackUrl":"https://broker.example/hooks"}',
        "resultJson": result(*TWO),
        "failCode": None,
        "failMsg": None,
        "costTime": 21,
        "creditsConsumed": 4,
    },
}
MARKET_FAILURE = {
    "code": 501,
    "msg": "Playground task failed.",
    "data": {
        "taskId": JOB,
        "model": "nano-banana-pro",
        "state": "fail",
        "resultJson": None,
        "failCode": "500",
        "failMsg": "Gemini could not generate an image with the given prompt. Please try again.",
        "creditsConsumed": 0,
    },
}


def test_market_callback_is_parsed(offline: Provider) -> None:
    """Id, states and nested JSON all differ from the older dialect."""
    assert offline.parse_callback(MARKET_SUCCESS) == Finished(outputs=TWO, job_id=JOB, cost=4.0)
    assert offline.parse_callback(MARKET_FAILURE) == Failed(
        code="no_image",
        message="Gemini could not generate an image with the given prompt. Please try again.",
        retryable=False,
        billed="no",
        job_id=JOB,
        provider_code="500",
    )


@pytest.mark.parametrize(
    ("body", "outputs"),
    [
        ({"task_id": JOB, "status": "completed", "output": {"image_url": IMAGE}}, (IMAGE,)),
        ({"task_id": JOB, "status": "completed", "output": {"imageUrl": IMAGE}}, (IMAGE,)),
        ({"task_id": JOB, "status": "completed", "result": {"url": IMAGE}}, (IMAGE,)),
        ({"task_id": JOB, "status": "completed", "output": {"image_urls": list(TWO)}}, TWO),
        ({"task_id": JOB, "status": "completed", "result": {"imageUrls": list(TWO)}}, TWO),
        ({"task_id": JOB, "status": "completed", "output": {"urls": list(TWO)}}, TWO),
        ({"task_id": JOB, "status": "completed", "output": {"image_url": TWO[0], "image_urls": list(TWO)}}, TWO),
        ({"task_id": JOB, "status": "completed", "output": IMAGE}, (IMAGE,)),
        ({"task_id": JOB, "status": "succeeded", "result": list(TWO)}, TWO),
        ({"task_id": JOB, "status": "completed", "image_url": IMAGE}, (IMAGE,)),
        ({"task_id": JOB, "url": IMAGE}, (IMAGE,)),
        ({"code": 200, "data": {"task_id": JOB, "info": {"result_urls": list(TWO)}}}, TWO),
        ({"code": 200, "data": {"taskId": JOB, "info": {"resultImageUrl": IMAGE, "originImageUrl": TWO[0]}}}, (IMAGE,)),
        ({"code": 200, "data": {"taskId": JOB, "response": {"resultImageUrl": IMAGE}}}, (IMAGE,)),
        ({"code": "200", "data": json.dumps({"taskId": JOB, "state": "success", "resultJson": result(*TWO)})}, TWO),
    ],
)
def test_callbacks_of_other_shapes_are_parsed(offline: Provider, body: Any, outputs: tuple[str, ...]) -> None:
    """The older dialect with every spelling that existing front ends and tests use, and kie.ai's sibling products."""
    assert offline.parse_callback(body) == Finished(outputs=outputs, job_id=JOB)


@pytest.mark.parametrize(
    "body",
    [
        {"task_id": JOB, "status": "failed", "error": "out of paint"},
        {"task_id": JOB, "status": "failed", "error": {"message": "out of paint"}},
        {"code": 501, "msg": "out of paint", "taskId": JOB, "data": None},
        {"code": 500, "msg": "out of paint", "data": {"task_id": JOB, "info": {"result_urls": None}}},
        {"code": 400, "msg": "out of paint", "data": {"taskId": JOB, "info": {"resultImageUrl": ""}}},
    ],
)
def test_failures_of_other_shapes_are_parsed(offline: Provider, body: Any) -> None:
    report = offline.parse_callback(body)
    assert isinstance(report, Failed)
    assert (report.job_id, report.message, report.billed) == (JOB, "out of paint", "unknown")


@pytest.mark.parametrize(
    "body",
    [
        {"code": 501, "data": {"taskId": JOB, "state": "success", "resultJson": result(*TWO)}},
        {"code": 200, "data": {"taskId": JOB, "state": "fail", "failCode": "500"}},
        {"code": 200, "data": {"taskId": JOB, "state": "success", "resultJson": None}},
        {"code": 200, "data": {"taskId": JOB, "state": "dozing", "resultJson": result(*TWO)}},
        {"code": 401, "data": {"taskId": JOB}},
        {"code": 200, "data": {"taskId": JOB, "callbackType": "task_completed"}},
        {"taskId": JOB},
    ],
)
def test_contradictory_callback_causes_a_poll(offline: Provider, body: Any) -> None:
    assert offline.parse_callback(body) == Pending(job_id=JOB, check_in=0)


def test_progress_callback_keeps_the_stage_of_kie(offline: Provider) -> None:
    report = offline.parse_callback({"code": 200, "data": {"taskId": JOB, "state": "generating"}})
    assert report == Pending(job_id=JOB, stage="generating")


@pytest.mark.parametrize(
    ("fields", "stage", "percent"),
    [
        ({"state": "queuing", "progress": 0}, "queuing", None),
        ({"state": "generating", "progress": 40}, "generating", 40.0),
        ({"state": "generating", "progress": "40"}, "generating", 40.0),
        ({"state": "generating", "progress": 101}, "generating", None),
        ({"state": "generating", "progress": True}, "generating", None),
        ({"state": "dozing <b>"}, None, None),
        ({"state": "x" * 40}, None, None),
        ({"progress": 50}, None, 50.0),
    ],
)
async def test_progress_is_never_invented(
    kie: Provider, upstream: Upstream, fields: dict[str, Any], stage: str | None, percent: float | None
) -> None:
    """The percentage is kie.ai's own (0 means unknown), and the stage a single word."""
    upstream.respond(record(**fields))
    assert await kie.check(JOB, SINK) == Pending(job_id=JOB, stage=stage, percent=percent)


@pytest.mark.parametrize(
    ("body", "names"),
    [
        ({"data": {"taskId": "a", "task_id": "b"}, "taskId": "c", "task_id": "d"}, ("a", "b", "c", "d")),
        ({"task_id": "d", "data": None}, ("d",)),
        ({"id": "e", "job_id": "f", "jobId": 7}, ("f", "7", "e")),
        ({"taskId": "a", "data": {"taskId": "a"}}, ("a",)),
        ({"taskId": ["a"], "task_id": True, "id": "x" * 257, "jobId": "a\nb"}, ()),
        ([{"taskId": "a"}], ()),
        ("taskId", ()),
        (None, ()),
    ],
)
def test_job_ids_are_ordered_by_specificity(offline: Provider, body: Any, names: tuple[str, ...]) -> None:
    assert offline.job_ids(body) == names


def test_message_of_a_failure_is_redacted(offline: Provider) -> None:
    report = offline.parse_callback(
        {"code": 501, "msg": f"{KEY} {CALLBACK} \x1b[31m\ud800" + "x" * 9999, "data": {"taskId": JOB}}
    )
    assert isinstance(report, Failed)
    assert KEY not in report.message
    assert TOKEN not in report.message
    assert report.message.isprintable()
    assert len(report.message) <= 500


def test_parsing_of_a_hostile_body_is_bounded(offline: Provider) -> None:
    """Unbounded parsing would take minutes and reach the time-out of the test."""
    knot: Any = {}
    for _ in range(60):
        knot = {"data": knot, "output": knot, "result": knot, "images": [knot]}
    assert offline.parse_callback(knot) == Pending(check_in=0)
    assert offline.parse_callback({"data": {"resultJson": "[" * 200_000}}) == Pending(check_in=0)
    assert offline.parse_callback({"output": [["x"] * 1000] * 1000}) == Pending(check_in=0)


# -- account, links and settings


async def test_expired_result_url_is_refreshed(kie: Provider, upstream: Upstream) -> None:
    upstream.respond(Canned(body={"code": 200, "msg": "success", "data": "https://fresh.example/1?sig=2"}))
    assert await kie.refresh_url(IMAGE) == "https://fresh.example/1?sig=2"
    assert upstream.received[0].path == "/api/v1/common/download-url"
    assert upstream.received[0].json() == {"url": IMAGE}


async def test_foreign_url_is_not_refreshed(kie: Provider, upstream: Upstream) -> None:
    upstream.respond(Canned(body={"code": 422, "msg": "not ours"}))
    assert await kie.refresh_url(IMAGE) is None


@pytest.mark.parametrize(("data", "left"), [(100, 100.0), (60.62, 60.62), ("60.62", 60.62), (0, 0.0)])
async def test_balance_may_be_a_fraction(kie: Provider, upstream: Upstream, data: Any, left: float) -> None:
    upstream.respond(Canned(body={"code": 200, "msg": "success", "data": data}))
    assert await kie.balance() == left
    assert upstream.received[0].path == "/api/v1/chat/credit"


@pytest.mark.parametrize(
    ("canned", "permanent"),
    [
        (Canned(body={"code": 401, "msg": KEY}), True),
        (Canned(status=401, body={"code": 401}), True),
        (Canned(body={"code": 429}), False),
        (Canned(body={"code": 455}), False),
        (Canned(body={"code": 500}), False),
        (Canned(body={"code": 200, "data": None}), False),
        (Canned(body={"code": 200, "data": "NaN"}), False),
    ],
)
async def test_permanent_and_temporary_errors_are_distinguished(
    kie: Provider, upstream: Upstream, canned: Canned, permanent: bool
) -> None:
    upstream.respond(canned, canned)
    with pytest.raises(ProviderError) as caught:
        await kie.balance()
    assert caught.value.permanent is permanent
    assert (caught.value.code == "provider_auth") is permanent
    assert KEY not in str(caught.value)
    with pytest.raises(ProviderError):
        await kie.refresh_url(IMAGE)


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("https://api.kie.ai", ("kie", "https://api.kie.ai")),
        (" https://api.kie.ai/ ", ("kie", "https://api.kie.ai")),
        ("https://api.kie.ai/nano-banana", ("kie", "https://api.kie.ai")),
        ("https://api.kie.ai/nano-banana/", ("kie", "https://api.kie.ai")),
        ("https://api.kie.ai/api/v1/jobs/createTask", ("kie", "https://api.kie.ai")),
        ("https://api.kie.ai/api/v1/jobs/createTask/?x=1#y", ("kie", "https://api.kie.ai")),
        ("https://API.kie.ai/api/v1", ("kie", "https://API.kie.ai")),
        ("https://kieai.erweima.ai", ("kie", "https://kieai.erweima.ai")),
        ("https://relay.example/kie/api/v1/jobs/createTask", ("kie", "https://relay.example/kie")),
        ("http://127.0.0.1:8001", ("kie", "http://127.0.0.1:8001")),
        ("https://api.unifically.com/nano-banana", ("legacy", "https://api.unifically.com/nano-banana")),
        ("http://127.0.0.1:9/nano-banana/", ("legacy", "http://127.0.0.1:9/nano-banana")),
        ("https://x.example/v1/nano-banana/generate", ("legacy", "https://x.example/v1/nano-banana")),
        ("https://notkie.ai/nano-banana", ("legacy", "https://notkie.ai/nano-banana")),
        ("https://x.example/nano-banana-pro", ("kie", "https://x.example/nano-banana-pro")),
    ],
)
def test_api_url_selects_one_provider_and_its_base_url(written: str, meant: tuple[str, str]) -> None:
    settings = KieSettings.model_validate({"kie_keys": "k", "api_url": written})
    chosen = [one.name for one in PROVIDERS if one.settings is KieSettings and one.is_configured(settings)]
    assert (*chosen, settings.base_url) == meant


@pytest.mark.parametrize("wrong", ["", "api.kie.ai", "ftp://api.kie.ai", "https://", "https://[::1"])
def test_invalid_api_url_is_rejected(wrong: str) -> None:
    with pytest.raises(ValidationError):
        KieSettings.model_validate({"api_url": wrong})


async def test_model_of_unconfirmed_id_is_ordered_once_it_is_enabled(
    kie: Provider, upstream: Upstream, client: ApiClient, clock: ManualClock
) -> None:
    order = Order(params=ImageParams(prompt="x", model="nano-banana-2.1", resolution="2K"), mode="text-to-image")
    assert not kie.supports("nano-banana-2.1")
    assert isinstance(await kie.submit(order, None, SINK), Failed)
    assert upstream.received == []
    text = PACKAGES["kie"].catalog.read_text("utf-8").replace("enabled = false", "enabled = true")
    settings = {"kie_keys": KEY, "api_url": upstream.url}
    enabled = open_provider(PACKAGES["kie"], settings, client, Catalog.load(providers={"kie": text}), clock.now)
    upstream.respond(ACCEPTED)
    assert await enabled.submit(order, None, SINK) == Pending(job_id=JOB)
    assert upstream.received[0].json() == {
        "model": "nano-banana-2.1",
        "input": {"prompt": "x", "resolution": "2K", "image_input": []},
    }
