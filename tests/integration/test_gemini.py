"""What the contract of held providers leaves open for Gemini: texts, turns, tokens, Google and its relays, batches."""

from __future__ import annotations

import json
import time
from collections.abc import AsyncIterator
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import rsa

from broker.errors import ProviderError
from broker.net.api_client import ApiClient
from broker.orders import ImageParams, Order
from broker.providers.base import Provider
from broker.providers.gemini.answers import Answer, read_answer, split_text
from broker.providers.gemini.batches import read_batch
from broker.providers.gemini.settings import GeminiSettings
from broker.providers.inline_results import InlineDocument
from broker.providers.registry import load_catalog
from broker.reports import Failed, Finished, Pending
from tests.contracts.held import ENCODED
from tests.contracts.providers import CALLBACK, KEY, PACKAGES, Canned, RecordingSink, Upstream, open_context
from tests.support.clock import ManualClock
from webhooks.signatures.base import Proof

pytestmark = pytest.mark.anyio

CATALOG = load_catalog()
GEMINI = PACKAGES["gemini"]
STORED = frozenset({"stored:0", "stored:1"})


def answer_of(body: Any) -> Answer:
    answer = read_answer(InlineDocument(body=body, outputs=STORED))
    assert answer is not None
    return answer


def parts(*items: Any, **fields: Any) -> dict[str, Any]:
    return {"candidates": [{"content": {"parts": list(items)}, "finishReason": "STOP"}], **fields}


@pytest.fixture
async def upstream() -> AsyncIterator[Upstream]:
    async with Upstream().open() as server:
        yield server


@pytest.fixture
async def client() -> AsyncIterator[ApiClient]:
    client = ApiClient(timeout=5.0, max_connections=4)
    yield client
    await client.aclose()


def adapter(url: str, client: ApiClient, clock: ManualClock, **settings: Any) -> Provider:
    chosen = {"gemini_keys": KEY, "gemini_url": url, **settings}
    return GEMINI.factory(open_context(GEMINI, chosen, client, CATALOG, clock.now))


def an_order(*, priority: str = "normal", **params: Any) -> Order:
    given = {"prompt": "a red bicycle", "model": "nano-banana-pro", **params}
    return Order(params=ImageParams(**given), mode="text-to-image", priority=priority)


# -- answers


@pytest.mark.parametrize(
    ("text", "images", "rest"),
    [
        ("Here: ![a cat](stored:0) enjoy", ["stored:0"], "Here:  enjoy"),
        ("stored:1", ["stored:1"], ""),
        ("stored:other_task/x", [], "stored:other_task/x"),
        ("![x](https://cdn.example/a?sig=1)", ["https://cdn.example/a?sig=1"], ""),
        ("[download](https://cdn.example/a.png?sig=1)", ["https://cdn.example/a.png?sig=1"], ""),
        ("https://cdn.example/result", ["https://cdn.example/result"], ""),
        ("See https://policies.example/terms for the rules", [], "See https://policies.example/terms for the rules"),
        ("[the rules](https://policies.example/terms)", [], "[the rules](https://policies.example/terms)"),
        ("no image here", [], "no image here"),
    ],
)
def test_images_in_a_text_are_found(text: str, images: list[str], rest: str) -> None:
    assert split_text(text, STORED) == (images, rest)


@pytest.mark.parametrize("text", ["[" * 200_000, "[](" * 100_000, "![](" + "a" * 200_000, "[x](a " * 50_000])
def test_text_of_brackets_takes_no_longer_than_another(text: str) -> None:
    """Callers can make a model write it; searched naively it stops the process for minutes."""
    begun = time.process_time()
    assert split_text(text, STORED)[0] == []
    assert time.process_time() - begun < 5.0


def test_last_image_counts_and_drafts_do_not() -> None:
    answer = answer_of(
        parts(
            {"inlineData": {"data": "stored:0"}},
            {"text": "first"},
            {"thought": True, "text": "hm"},
            {"inlineData": {"data": "stored:1"}},
            {"thought": True, "inlineData": {"data": "stored:0"}},
        )
    )
    assert (answer.image, answer.texts) == ("stored:1", ("first",))


def test_texts_are_limited_together() -> None:
    """A model can be made to write megabytes, and each poll of the task would repeat them."""
    texts = answer_of(parts(*({"text": letter * 40_000} for letter in "abc"))).texts
    assert [(text[0], len(text)) for text in texts] == [("a", 40_000), ("b", 25_536)]


def test_output_that_the_sink_did_not_return_is_no_image() -> None:
    """Otherwise the other side could name the image of another task."""
    assert answer_of(parts({"inlineData": {"data": "stored:task_other/abc"}})).image is None


def test_signatures_of_a_turn_are_kept_byte_for_byte() -> None:
    signature = "QUJD/+8=" * 1000
    items = [
        {"text": "é", "thoughtSignature": signature},
        {"inlineData": {"mimeType": "image/png", "data": "stored:0"}, "thoughtSignature": signature},
        {"thought": True, "text": "hm"},
    ]
    turn = answer_of(parts(*items)).turn
    assert turn is not None
    assert json.loads(turn) == {"role": "model", "parts": items[:2]}
    assert turn.count(signature) == 2


def test_tokens_become_a_price() -> None:
    usage = {
        "promptTokenCount": 100,
        "candidatesTokenCount": 1130,
        "candidatesTokensDetails": [{"modality": "TEXT", "tokenCount": 10}, {"modality": "IMAGE", "tokenCount": 1120}],
        "thoughtsTokenCount": 40,
    }
    tokens = answer_of(parts({"inlineData": {"data": "stored:0"}}, usageMetadata=usage)).tokens
    assert tokens is not None
    assert (tokens.prompt, tokens.text, tokens.image) == (100, 50, 1120)
    assert tokens.price({"input": 2, "text": 12, "image": 120}) == pytest.approx(0.1352)
    assert answer_of(parts()).tokens is None


# -- requests


async def test_request_has_what_the_order_says(client: ApiClient, clock: ManualClock) -> None:
    gemini = adapter("https://relay.example/v1beta", client, clock, gemini_model_suffix="-c")
    order = an_order(aspect_ratio="16:9", resolution="2K", extra={"google_search": True})
    request = gemini.build_request(order, None)
    assert request["url"] == "https://relay.example/v1beta/models/gemini-3-pro-image-c:generateContent"
    assert request["json"] == {
        "contents": [{"role": "user", "parts": [{"text": "a red bicycle"}]}],
        "generationConfig": {
            "responseModalities": ["TEXT", "IMAGE"],
            "imageConfig": {"aspectRatio": "16:9", "imageSize": "2K"},
        },
        "tools": [{"googleSearch": {}}],
    }
    automatic = gemini.build_request(an_order(aspect_ratio="auto"), None)["json"]
    assert "imageConfig" not in automatic["generationConfig"]
    assert "tools" not in automatic


async def test_more_references_than_the_model_takes_are_an_obstacle(client: ApiClient, clock: ManualClock) -> None:
    gemini = adapter("https://relay.example", client, clock)
    first = an_order(model="nano-banana")
    assert gemini.find_obstacle(first, 0) is None
    order = Order(params=first.params, mode="image-to-image")
    assert gemini.find_obstacle(order, 3) is None
    obstacle = gemini.find_obstacle(order, 4)
    assert obstacle is not None
    assert obstacle[0] == "too_many_images"


@pytest.mark.parametrize(
    ("url", "billed"),
    [("https://generativelanguage.googleapis.com", "no"), ("https://relay.example", "unknown")],
)
async def test_google_does_not_bill_an_answer_without_tokens(
    client: ApiClient, clock: ManualClock, url: str, billed: str, upstream: Upstream
) -> None:
    """A relay may bill the request all the same."""
    gemini = adapter(url, client, clock)
    gemini.base_url = upstream.url  # the host that was configured decides
    blocked = {"promptFeedback": {"blockReason": "OTHER"}, "usageMetadata": {"promptTokenCount": 10}}
    upstream.respond(Canned(body=blocked))
    report = await gemini.submit(an_order(), None, RecordingSink())
    assert isinstance(report, Failed)
    assert (report.code, report.billed) == ("safety_input", billed)
    error = {"error": {"code": 500, "status": "INTERNAL", "message": "An internal error has occurred."}}
    upstream.respond(Canned(status=500, body=error))
    if billed == "no":
        internal = await gemini.submit(an_order(), None, RecordingSink())
        assert isinstance(internal, Failed)
        assert (internal.retryable, internal.billed) == (True, "no")
    else:
        with pytest.raises(ProviderError):
            await gemini.submit(an_order(), None, RecordingSink())


@pytest.mark.parametrize(
    ("url", "error", "billed"),
    [
        ("https://generativelanguage.googleapis.com", {"code": 429, "status": "RESOURCE_EXHAUSTED"}, "no"),
        ("https://relay.example", {"code": 402, "message": "insufficient balance"}, "no"),
        ("https://relay.example", {"code": 429, "status": "RESOURCE_EXHAUSTED"}, "unknown"),
        ("https://relay.example", {"code": 503, "status": "UNAVAILABLE"}, "unknown"),
        ("https://relay.example", {"code": 404, "message": "not found"}, "unknown"),
    ],
)
async def test_relay_may_bill_an_error_within_200(
    client: ApiClient, clock: ManualClock, upstream: Upstream, url: str, error: dict[str, Any], billed: str
) -> None:
    """Some bill each 200, with or without an image. Without an account nothing can be billed."""
    gemini = adapter(url, client, clock)
    gemini.base_url = upstream.url
    upstream.respond(Canned(body={"error": error}))
    report = await gemini.submit(an_order(), None, RecordingSink())
    assert isinstance(report, Failed)
    assert report.billed == billed


@pytest.mark.parametrize(
    ("url", "billed"),
    [("https://generativelanguage.googleapis.com", "no"), ("https://relay.example", "unknown")],
)
async def test_relay_may_bill_a_refusal_of_the_content(
    client: ApiClient, clock: ManualClock, upstream: Upstream, url: str, billed: str
) -> None:
    gemini = adapter(url, client, clock)
    gemini.base_url = upstream.url
    upstream.respond(Canned(status=400, body={"error": {"message": "flagged as unsafe", "type": "x", "code": "y"}}))
    report = await gemini.submit(an_order(), None, RecordingSink())
    assert isinstance(report, Failed)
    assert (report.code, report.billed) == ("safety_input", billed)


@pytest.mark.parametrize("reason", [KEY, "x" * 100_000])
async def test_reason_of_a_relay_is_short_and_without_the_key(
    client: ApiClient, clock: ManualClock, upstream: Upstream, reason: str
) -> None:
    upstream.respond(Canned(body={"promptFeedback": {"blockReason": reason}}))
    report = await adapter(upstream.url, client, clock).submit(an_order(), None, RecordingSink())
    assert isinstance(report, Failed)
    assert KEY not in repr(report)
    assert len(repr(report)) < 1000


async def test_wait_that_google_asks_for_is_kept(client: ApiClient, clock: ManualClock, upstream: Upstream) -> None:
    details = [{"@type": "type.googleapis.com/google.rpc.RetryInfo", "retryDelay": "17s"}]
    error = {"error": {"code": 429, "status": "RESOURCE_EXHAUSTED", "message": "slow down", "details": details}}
    upstream.respond(Canned(status=429, body=error))
    report = await adapter(upstream.url, client, clock).submit(an_order(), None, RecordingSink())
    assert isinstance(report, Failed)
    assert report.retry_in == 17


# -- batches


async def test_batch_is_ordered_checked_and_canceled(client: ApiClient, clock: ManualClock, upstream: Upstream) -> None:
    gemini = adapter(upstream.url, client, clock, uses_batch=True)
    order = an_order(priority="low", resolution="4K")
    assert gemini.expects_callback(order)
    assert not gemini.expects_callback(an_order())
    metadata = {"state": "BATCH_STATE_PENDING", "model": "models/gemini-3-pro-image"}
    upstream.respond(Canned(body={"name": "batches/b1", "metadata": metadata}))
    assert await gemini.submit(order, CALLBACK, RecordingSink()) == Pending(
        job_id="batches/b1", check_in=60, deadline_in=172_800
    )
    sent = upstream.received[-1]
    assert sent.path == "/v1beta/models/gemini-3-pro-image:batchGenerateContent"
    assert sent.json()["batch"]["webhookConfig"] == {"uris": [CALLBACK]}
    upstream.respond(Canned(body={"name": "batches/b1", "metadata": {**metadata, "state": "BATCH_STATE_RUNNING"}}))
    assert await gemini.check("batches/b1", RecordingSink()) == Pending(
        job_id="batches/b1", stage="RUNNING", check_in=60
    )
    sink = RecordingSink()
    usage = {"promptTokenCount": 0, "candidatesTokenCount": 2000}
    item = {"response": parts({"inlineData": {"data": ENCODED}}, usageMetadata=usage)}
    done = {"name": "batches/b1", "done": True, "metadata": {**metadata, "state": "BATCH_STATE_SUCCEEDED"}}
    upstream.respond(Canned(body={**done, "response": {"inlinedResponses": {"inlinedResponses": [item]}}}))
    report = await gemini.check("b1", sink)
    assert isinstance(report, Finished)
    assert (report.outputs, len(sink.stored)) == (("stored:0",), 1)
    assert report.cost == pytest.approx(0.12)
    upstream.respond(Canned(body={}))
    assert await gemini.cancel("batches/b1") is True
    assert upstream.received[-1].path == "/v1beta/batches/b1:cancel"


@pytest.mark.parametrize(
    "answer",
    [
        Canned(status=500, body={"error": {"code": 500, "status": "INTERNAL", "message": "Internal error"}}),
        Canned(status=503, body={"error": {"code": 503, "status": "UNAVAILABLE", "message": "overloaded"}}),
        Canned(body={"error": {"code": 500, "status": "INTERNAL", "message": "Internal error"}}),
    ],
)
async def test_batch_may_exist_after_an_error_of_the_server(
    client: ApiClient, clock: ManualClock, upstream: Upstream, answer: Canned
) -> None:
    """A request that fails has cost nothing; a batch that was created before the error goes on and will be billed."""
    gemini = adapter("https://generativelanguage.googleapis.com", client, clock, uses_batch=True)
    gemini.base_url = upstream.url
    upstream.respond(answer)
    with pytest.raises(ProviderError):
        await gemini.submit(an_order(priority="low"), CALLBACK, RecordingSink())


def test_canceled_batch_may_have_been_billed() -> None:
    """Its only request may have been answered before."""
    batch = read_batch(
        InlineDocument(body={"name": "batches/b1", "metadata": {"state": "BATCH_STATE_CANCELLED"}}, outputs=STORED),
        "batches/b1",
    )
    assert batch is not None
    assert batch.failure is not None
    assert batch.failure.billed == "unknown"


@pytest.mark.parametrize("body", [{}, {"name": "batches/other", "done": True}, {"name": "batches/b1"}, [], None])
def test_record_of_something_else_proves_nothing(body: Any) -> None:
    assert read_batch(InlineDocument(body=body, outputs=STORED), "batches/b1") is None


async def test_webhook_causes_a_check(client: ApiClient, clock: ManualClock) -> None:
    gemini = adapter("https://relay.example", client, clock, uses_batch=True)
    for identifier in ("batches/b1", "b1"):
        body = {"type": "batch.succeeded", "version": "v1", "data": {"id": identifier}}
        assert gemini.parse_callback(body) == Pending(job_id="batches/b1", check_in=0)
        assert gemini.job_ids(body)[0] == "batches/b1"
    assert gemini.parse_callback({"type": "video.generated"}) == Pending(check_in=0)


async def test_rotated_keys_are_fetched_again(client: ApiClient, clock: ManualClock, upstream: Upstream) -> None:
    old, new = (rsa.generate_private_key(public_exponent=65537, key_size=2048) for _ in range(2))
    context = open_context(GEMINI, {"gemini_keys": KEY, "gemini_url": upstream.url}, client, CATALOG, clock.now)
    verifier = GEMINI.signature([context])

    def publish(key: rsa.RSAPrivateKey, kid: str) -> Canned:
        return Canned(body={"keys": [{**json.loads(jwt.algorithms.RSAAlgorithm.to_jwk(key.public_key())), "kid": kid}]})

    async def verify(key: rsa.RSAPrivateKey, kid: str) -> Proof:
        now = int(clock.now())
        token = jwt.encode({"exp": now + 60}, key, algorithm="RS256", headers={"kid": kid})
        headers = {"webhook-id": "1", "webhook-timestamp": str(now), "webhook-signature": token}
        return await verifier.verify(headers, b"{}", (), clock.now())

    upstream.respond(publish(old, "old"), publish(new, "new"))
    assert await verify(old, "old") == Proof.SENDER_VERIFIED
    assert await verify(old, "old") == Proof.SENDER_VERIFIED
    assert [request.path for request in upstream.received] == ["/.well-known/jwks.json"]
    clock.advance(61)
    assert await verify(new, "new") == Proof.SENDER_VERIFIED
    assert await verify(old, "old") == Proof.WRONG  # and not fetched again at once
    assert len(upstream.received) == 2
    assert await verifier.verify({"webhook-signature": "v1,x"}, b"{}", (), clock.now()) == Proof.NONE


@pytest.mark.parametrize(
    "given", ["https://relay.example/v1beta", "https://relay.example/v1/", "https://relay.example"]
)
def test_base_url_is_understood_with_and_without_its_version(given: str) -> None:
    assert GeminiSettings.model_validate({"gemini_url": given}).base_url == "https://relay.example"
