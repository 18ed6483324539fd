"""Replicate, WaveSpeed and nanobananaapi.ai beyond the contract: what only one of them does."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest

from broker.errors import ProviderError
from broker.net.api_client import ApiClient
from broker.orders import ImageParams, Order, Reference
from broker.providers.base import Provider
from broker.providers.nanobananaapi.settings import NanoBananaApiSettings
from broker.providers.registry import load_catalog
from broker.providers.replicate.settings import ReplicateSettings
from broker.providers.wavespeed.settings import WaveSpeedSettings
from broker.reports import Failed, Finished, Pending
from tests.contracts.cases.nanobananaapi import NANOBANANAAPI, first_callback, record
from tests.contracts.cases.replicate import REPLICATE, prediction
from tests.contracts.cases.wavespeed import WAVESPEED, envelope
from tests.contracts.providers import CALLBACK, IMAGE, JOB, KEY, SINK, Canned, Case, Upstream, open_context
from tests.support.clock import ManualClock
from webhooks.signatures.base import Proof
from webhooks.signatures.hex_v3 import HexSignature, read_text_secret
from webhooks.signatures.standard import StandardSignature, read_secret

pytestmark = pytest.mark.anyio

CATALOG = load_catalog()
REPLICATE_SECRET, WAVESPEED_SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw", "whsec_wavespeed-test-key"


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
def replicate(upstream: Upstream, client: ApiClient, clock: ManualClock) -> Provider:
    return REPLICATE.build(upstream.url, client, CATALOG, clock.now)


@pytest.fixture
def wavespeed(upstream: Upstream, client: ApiClient, clock: ManualClock) -> Provider:
    return WAVESPEED.build(upstream.url, client, CATALOG, clock.now)


@pytest.fixture
def nanobananaapi(upstream: Upstream, client: ApiClient, clock: ManualClock) -> Provider:
    return NANOBANANAAPI.build(upstream.url, client, CATALOG, clock.now)


async def read_bytes() -> AsyncIterator[bytes]:
    yield b"image"


def reference(url: str | None = None) -> Reference:
    return Reference(name="a.png", media_type="image/png", size=5, sha256="ab" * 32, url=url, read=read_bytes)


def order(model: str, *references: Reference, **params: Any) -> Order:
    mode: Any = "image-to-image" if references else "text-to-image"
    return Order(params=ImageParams(prompt="a fox", model=model, **params), mode=mode, references=references)


async def sent_by(provider: Provider, upstream: Upstream, placed: Order, accepted: Canned) -> Any:
    """Submit an order; return the last request."""
    upstream.respond(accepted)
    assert isinstance(await provider.submit(placed, CALLBACK, SINK), Pending)
    return upstream.received[-1]


# -- addresses


@pytest.mark.parametrize("path", ["", "/", "/v1", "/v1/"])
def test_replicate_is_found_with_and_without_version(path: str) -> None:
    settings = ReplicateSettings.model_validate({"replicate_url": f"https://api.replicate.com{path}"})
    assert settings.base_url == "https://api.replicate.com"


@pytest.mark.parametrize("path", ["", "/", "/api/v3", "/api/v3/"])
def test_wavespeed_is_found_with_and_without_version(path: str) -> None:
    settings = WaveSpeedSettings.model_validate({"wavespeed_url": f"https://relay.example/x{path}"})
    assert settings.base_url == "https://relay.example/x"


@pytest.mark.parametrize("path", ["", "/api/v1", "/api/v1/nanobanana/"])
def test_nanobananaapi_is_found_with_and_without_path(path: str) -> None:
    settings = NanoBananaApiSettings.model_validate({"nanobananaapi_url": f"https://api.nanobananaapi.ai{path}"})
    assert settings.base_url == "https://api.nanobananaapi.ai"


# -- Replicate


async def test_replicate_gets_the_documented_request(replicate: Provider, upstream: Upstream) -> None:
    """Its own default of the resolution is 2K, which costs no more there but is not ours."""
    accepted = Canned(status=201, body=prediction("starting"))
    sent = await sent_by(replicate, upstream, order("nano-banana-pro", aspect_ratio="auto"), accepted)
    assert (sent.method, sent.path) == ("POST", "/v1/models/google/nano-banana-pro/predictions")
    assert sent.json() == {
        "input": {"prompt": "a fox", "resolution": "1K"},
        "webhook": CALLBACK,
        "webhook_events_filter": ["completed"],
    }
    upstream.respond(accepted)
    await replicate.submit(order("nano-banana", output_format="png"), None, SINK)
    assert upstream.received[-1].json() == {"input": {"prompt": "a fox", "output_format": "png"}}


async def test_prediction_that_ended_at_once_is_finished(replicate: Provider, upstream: Upstream) -> None:
    upstream.respond(Canned(status=201, body=prediction("succeeded", output=IMAGE)))
    assert await replicate.submit(order("nano-banana"), CALLBACK, SINK) == Finished(outputs=(IMAGE,), job_id=JOB)


async def test_reference_is_uploaded_to_replicate_without_a_public_url(replicate: Provider, upstream: Upstream) -> None:
    upstream.respond(Canned(status=201, body={"id": "f1", "urls": {"get": "https://api.replicate.com/v1/files/f1"}}))
    placed = await replicate.upload_references(
        order("nano-banana-2", reference(), reference("https://x.example/b.png"))
    )
    assert isinstance(placed, Order)
    (upload,) = upstream.received
    assert (upload.path, b'name="content"' in upload.body) == ("/v1/files", True)
    sent = await sent_by(replicate, upstream, placed, Canned(status=201, body=prediction("starting")))
    assert sent.json()["input"]["image_input"] == ["https://api.replicate.com/v1/files/f1", "https://x.example/b.png"]


@pytest.mark.parametrize(
    ("message", "code", "provider_code", "retryable"),
    [
        ("Out of credits (E001)", "provider_credits", "E001", False),
        ("The key is wrong (E002)", "provider_auth", "E002", False),
        ("Service is currently unavailable due to high demand. (E003)", "provider_unavailable", "E003", True),
        ("Service is temporarily unavailable. (E004)", "provider_unavailable", "E004", True),
        ("The input or output was flagged as sensitive. (E005) (a1b2)", "safety_input", "E005", False),
        ("Something new went wrong. (E9243)", "provider_error", "E9243", False),
    ],
)
async def test_code_in_the_message_of_a_model_decides(
    replicate: Provider, upstream: Upstream, message: str, code: str, provider_code: str, retryable: bool
) -> None:
    upstream.respond(Canned(body=prediction("failed", error=message)))
    report = await replicate.check(JOB, SINK)
    assert isinstance(report, Failed)
    assert (report.code, report.provider_code, report.retryable) == (code, provider_code, retryable)


async def test_code_within_a_message_may_be_part_of_a_prompt(replicate: Provider, upstream: Upstream) -> None:
    """It must not decide what is billed, or the order goes on after a job that cost money."""
    upstream.respond(Canned(body=prediction("failed", error="Nothing was drawn for 'a plate E001 (E002) on a van'")))
    report = await replicate.check(JOB, SINK)
    assert isinstance(report, Failed)
    assert report.billed == "unknown"


async def test_code_of_a_failure_is_without_the_key(nanobananaapi: Provider, upstream: Upstream) -> None:
    upstream.respond(Canned(body={"code": 200, "data": {"taskId": JOB, "successFlag": 3, "errorCode": KEY}}))
    report = await nanobananaapi.check(JOB, SINK)
    assert isinstance(report, Failed)
    assert KEY not in repr(report)


async def test_removed_result_is_gone_and_paid(replicate: Provider, upstream: Upstream) -> None:
    removed = prediction("succeeded", data_removed=True)
    upstream.respond(Canned(body=removed))
    report = await replicate.check(JOB, SINK)
    assert isinstance(report, Failed)
    assert (report.code, report.billed) == ("result_gone", "yes")
    assert replicate.parse_callback(prediction("succeeded")) == Pending(job_id=JOB, check_in=0)


async def test_model_that_is_gone_may_be_elsewhere(
    replicate: Provider, wavespeed: Provider, nanobananaapi: Provider, upstream: Upstream
) -> None:
    for provider in (replicate, wavespeed, nanobananaapi):
        upstream.respond(Canned(status=404, body={"detail": "not found", "code": 404, "message": "not found"}))
        report = await provider.submit(order("nano-banana"), CALLBACK, SINK)
        assert isinstance(report, Failed)
        assert (report.cannot_serve, report.another_may_serve, report.billed) == (True, True, "no")


@pytest.mark.parametrize(("headers", "wait"), [({}, 30.0), ({"retry-after": "7"}, 7.0)])
async def test_rate_limit_of_replicate_says_how_long(
    replicate: Provider, upstream: Upstream, headers: dict[str, str], wait: float
) -> None:
    detail = "Request was throttled. Your rate limit resets in ~30s."
    upstream.respond(Canned(status=429, body={"detail": detail}, headers=headers))
    report = await replicate.submit(order("nano-banana"), CALLBACK, SINK)
    assert isinstance(report, Failed)
    assert (report.code, report.retry_in) == ("provider_rate_limited", wait)


# -- WaveSpeed


async def test_wavespeed_gets_the_documented_request(wavespeed: Provider, upstream: Upstream) -> None:
    url = "https://x.example/b.png"
    placed = order("nano-banana-2", reference(url), aspect_ratio="16:9", resolution="2K", output_format="jpg")
    sent = await sent_by(wavespeed, upstream, placed, Canned(body=envelope("created")))
    assert (sent.path, sent.query) == ("/api/v3/google/nano-banana-2/edit", {"webhook": CALLBACK})
    assert sent.json() == {
        "prompt": "a fox",
        "aspect_ratio": "16:9",
        "resolution": "2k",
        "output_format": "jpeg",
        "images": [url],
    }
    sent = await sent_by(wavespeed, upstream, order("nano-banana"), Canned(body=envelope("created")))
    assert (sent.path, sent.json()) == ("/api/v3/google/nano-banana/text-to-image", {"prompt": "a fox"})


async def test_ratio_auto_is_not_served_by_wavespeed(wavespeed: Provider) -> None:
    obstacle = wavespeed.find_obstacle(order("nano-banana-2", aspect_ratio="auto"), 0)
    assert obstacle is not None
    assert (obstacle[0], obstacle[1].field) == ("unsupported_parameter", "aspectRatio")


async def test_reference_is_uploaded_to_wavespeed(wavespeed: Provider, upstream: Upstream) -> None:
    stored = {"type": "image", "download_url": "https://cdn.example/a.png", "filename": "a.png", "size": 5}
    upstream.respond(Canned(body={"code": 200, "message": "success", "data": stored}))
    placed = await wavespeed.upload_references(order("nano-banana", reference()))
    assert isinstance(placed, Order)
    assert [one.url for one in placed.references] == ["https://cdn.example/a.png"]
    assert upstream.received[0].path == "/api/v3/media/upload/binary"


async def test_failed_job_of_wavespeed_is_refunded(wavespeed: Provider, upstream: Upstream) -> None:
    upstream.respond(Canned(body=envelope("failed", error="Internal error, try again later")))
    report = await wavespeed.check(JOB, SINK)
    assert isinstance(report, Failed)
    assert (report.code, report.retryable, report.billed) == ("provider_error", True, "no")


# -- nanobananaapi.ai


async def test_first_endpoint_of_nanobananaapi_names_the_type(nanobananaapi: Provider, upstream: Upstream) -> None:
    accepted = Canned(body={"code": 200, "msg": "success", "data": {"taskId": JOB}})
    url = "https://x.example/b.png"
    sent = await sent_by(nanobananaapi, upstream, order("nano-banana", aspect_ratio="16:9"), accepted)
    assert sent.path == "/api/v1/nanobanana/generate"
    assert sent.json() == {
        "prompt": "a fox",
        "type": "TEXTTOIAMGE",
        "numImages": 1,
        "image_size": "16:9",
        "callBackUrl": CALLBACK,
    }
    sent = await sent_by(nanobananaapi, upstream, order("nano-banana", reference(url)), accepted)
    assert (sent.json()["type"], sent.json()["imageUrls"]) == ("IMAGETOIAMGE", [url])


@pytest.mark.parametrize(
    ("model", "path", "fields"),
    [
        ("nano-banana-pro", "generate-pro", {"aspectRatio": "16:9", "resolution": "2K"}),
        ("nano-banana-2", "generate-2", {"aspectRatio": "16:9", "resolution": "2K", "imageUrls": []}),
    ],
)
async def test_each_model_of_nanobananaapi_has_its_endpoint(
    nanobananaapi: Provider, upstream: Upstream, model: str, path: str, fields: dict[str, Any]
) -> None:
    accepted = Canned(body={"code": 200, "message": "success", "data": {"taskId": JOB}})
    sent = await sent_by(nanobananaapi, upstream, order(model, aspect_ratio="16:9", resolution="2K"), accepted)
    assert sent.path == f"/api/v1/nanobanana/{path}"
    assert sent.json() == {"prompt": "a fox", "callBackUrl": CALLBACK, **fields}


async def test_flag_decides_against_the_code(nanobananaapi: Provider) -> None:
    """A failed job has code 200, and a success has impossible times."""
    failed = nanobananaapi.parse_callback(record(3, error="Gemini could not generate an image"))
    assert isinstance(failed, Failed)
    assert (failed.code, failed.provider_code) == ("no_image", "500")
    finished = nanobananaapi.parse_callback(record(1, url=IMAGE))
    assert isinstance(finished, Finished)
    assert finished.ended_at is None
    refused = nanobananaapi.parse_callback(first_callback(400, "Your prompt violates our policy", None))
    assert isinstance(refused, Failed)
    assert refused.code == "safety_input"


@pytest.mark.parametrize(
    "body", [first_callback(200, "Image generated successfully.", None), record(9, url=IMAGE), {"code": 200}]
)
async def test_callback_that_contradicts_itself_means_poll(nanobananaapi: Provider, body: Any) -> None:
    report = nanobananaapi.parse_callback(body)
    assert isinstance(report, Pending)
    assert report.check_in == 0


async def test_reference_without_public_url_is_refused_by_nanobananaapi(nanobananaapi: Provider) -> None:
    report = await nanobananaapi.upload_references(order("nano-banana", reference()))
    assert isinstance(report, Failed)
    assert (report.code, report.billed) == ("provider_rejected", "no")


# -- the account


@pytest.mark.parametrize("case", [REPLICATE, WAVESPEED, NANOBANANAAPI], ids=lambda case: case.name)
@pytest.mark.parametrize(
    ("answer", "status"),
    [
        (Canned(body={"code": 200, "data": 1}), "ok"),
        (Canned(status=401, body={"detail": "no"}), "failed"),
        (Canned(body={"code": 401, "msg": "no", "data": None}), "failed"),
        (Canned(status=404), "skipped"),
        (Canned(hang_up=True), "skipped"),
    ],
)
async def test_key_is_checked_without_cost(
    case: Case, answer: Canned, status: str, upstream: Upstream, client: ApiClient, clock: ManualClock
) -> None:
    """An error can have HTTP 200: then the code in the body decides."""
    context = open_context(case.package, case.settings(upstream.url), client, CATALOG, clock.now)
    (check,) = [check for check in case.package.checks if check.name == "key"]
    upstream.respond(answer)
    (finding,) = await check.run(case.package.factory(context), context)
    assert finding.status == status
    assert KEY not in str(finding)
    (sent,) = upstream.received
    assert (sent.method, sent.headers["authorization"]) == ("GET", f"Bearer {KEY}")


@pytest.mark.parametrize("data", [{"balance": 3.5}, 3.5], ids=["wavespeed", "nanobananaapi"])
async def test_balance_is_read(data: Any, wavespeed: Provider, nanobananaapi: Provider, upstream: Upstream) -> None:
    provider = wavespeed if isinstance(data, dict) else nanobananaapi
    upstream.respond(Canned(body={"code": 200, "msg": "success", "data": data}))
    assert await provider.balance() == 3.5
    upstream.respond(Canned(body={"code": 401, "msg": "no"}))
    with pytest.raises(ProviderError) as caught:
        await provider.balance()
    assert (caught.value.permanent, caught.value.code) == (True, "provider_auth")


# -- signatures


@pytest.mark.parametrize(
    ("case", "answer", "signer"),
    [
        (REPLICATE, {"key": REPLICATE_SECRET}, StandardSignature([read_secret(REPLICATE_SECRET)])),
        (
            WAVESPEED,
            {"code": 200, "data": {"secret": WAVESPEED_SECRET}},
            HexSignature([read_text_secret(WAVESPEED_SECRET)]),
        ),
    ],
    ids=["replicate", "wavespeed"],
)
async def test_secret_is_fetched_once_and_again_when_it_is_rotated(
    case: Case, answer: Any, signer: StandardSignature, upstream: Upstream, client: ApiClient, clock: ManualClock
) -> None:
    context = open_context(case.package, case.settings(upstream.url), client, CATALOG, clock.now)
    signature = case.package.signature([context])
    body, now = b'{"id":"x"}', clock.now()
    right = signer.sign("msg_1", now, body)
    assert await signature.verify({}, body, (), now) == Proof.NONE
    upstream.respond(Canned(body=answer))
    for _ in range(2):
        assert await signature.verify(right, body, (), now) == Proof.BODY_VERIFIED
    assert len(upstream.received) == 1
    clock.advance(120)
    upstream.respond(Canned(body=answer))
    assert await signature.verify(right, body + b" ", (), clock.now()) == Proof.WRONG
    assert len(upstream.received) == 2


@pytest.mark.parametrize("answer", [Canned(status=500), Canned(body={"key": "nothing"}), Canned(hang_up=True)])
async def test_secret_that_cannot_be_fetched_proves_nothing(
    answer: Canned, upstream: Upstream, client: ApiClient, clock: ManualClock
) -> None:
    context = open_context(REPLICATE.package, REPLICATE.settings(upstream.url), client, CATALOG, clock.now)
    signature = REPLICATE.package.signature([context])
    right = StandardSignature([read_secret(REPLICATE_SECRET)]).sign("msg_1", clock.now(), b"{}")
    upstream.respond(answer)
    assert await signature.verify(right, b"{}", (), clock.now()) == Proof.NONE


async def test_each_key_has_a_secret_and_a_refused_one_is_left_out(
    upstream: Upstream, client: ApiClient, clock: ManualClock
) -> None:
    context = open_context(REPLICATE.package, REPLICATE.settings(upstream.url), client, CATALOG, clock.now)
    other = "whsec_" + "b3RoZXIgc2VjcmV0IG9mIGFub3RoZXIga2V5"
    signature = REPLICATE.package.signature([context] * 3)
    upstream.respond(Canned(body={"key": other}), Canned(status=401), Canned(body={"key": REPLICATE_SECRET}))
    right = StandardSignature([read_secret(REPLICATE_SECRET)]).sign("msg_1", clock.now(), b"{}")
    assert await signature.verify(right, b"{}", (), clock.now()) == Proof.BODY_VERIFIED


async def test_signature_may_be_that_of_a_key_that_was_refused(
    upstream: Upstream, client: ApiClient, clock: ManualClock
) -> None:
    """Its jobs go on after it was revoked, and only their callbacks can say so: the token in the URL decides."""
    context = open_context(REPLICATE.package, REPLICATE.settings(upstream.url), client, CATALOG, clock.now)
    signature = REPLICATE.package.signature([context] * 2)
    upstream.respond(Canned(body={"key": "whsec_" + "b3RoZXIgc2VjcmV0IG9mIGFub3RoZXIga2V5"}), Canned(status=401))
    revoked = StandardSignature([read_secret(REPLICATE_SECRET)]).sign("msg_1", clock.now(), b"{}")
    assert await signature.verify(revoked, b"{}", (), clock.now()) == Proof.NONE
