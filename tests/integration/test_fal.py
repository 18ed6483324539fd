"""fal beyond the contract: its requests, what only it does, and the proof that its callbacks carry."""

from __future__ import annotations

import json
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from broker.errors import ProviderError
from broker.net.api_client import ApiClient
from broker.orders import ImageParams, Order, Reference
from broker.providers.base import Provider
from broker.providers.fal.settings import FalSettings
from broker.providers.registry import load_catalog
from broker.providers.signing_keys import CallbackSignature
from broker.reports import Failed, Finished, Pending
from broker.sandbox.dialects.fal.signing import SigningKeys
from broker.sandbox.engine import Options
from broker.sandbox.server import serve_sandbox
from storage.attempts import Attempt
from storage.states import TaskState
from storage.tasks import Task
from tests.contracts.cases.fal import COMPLETED, FAL, callback, output, queued, rejected
from tests.contracts.providers import CALLBACK, IMAGE, JOB, KEY, SINK, Canned, Upstream, open_context
from tests.support.api import ApiBroker, open_api
from tests.support.clock import ManualClock
from tests.support.servers.receiver import Message, receiving
from webhooks.signatures.base import Proof

pytestmark = pytest.mark.anyio

CATALOG = load_catalog()
ACCEPTED = Canned(body=queued())
URL = "https://broker.example/uploads/references/a.png"
BASIC = ["1:1", "9:16", "16:9", "3:4", "4:3", "3:2", "2:3", "5:4", "4:5", "21:9"]


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
def fal(upstream: Upstream, client: ApiClient, clock: ManualClock) -> Provider:
    return FAL.build(upstream.url, client, CATALOG, clock.now)


async def read_bytes() -> AsyncIterator[bytes]:
    yield b"PNG-"
    yield b"bytes"


def reference(url: str | None = None) -> Reference:
    return Reference(name="a.png", media_type="image/png", size=9, sha256="ab" * 32, url=url, read=read_bytes)


def order(model: str, *references: Reference, **params: Any) -> Order:
    mode: Any = "image-to-image" if references else "text-to-image"
    return Order(params=ImageParams(prompt="a fox", model=model, **params), mode=mode, references=references)


# -- addresses and requests


@pytest.mark.parametrize("path", ["", "/", "/v1", "/v1/"])
def test_address_is_understood_with_and_without_version(path: str) -> None:
    settings = FalSettings.model_validate(
        {"fal_url": f"https://queue.fal.run{path}", "fal_rest_url": f"https://a{path}"}
    )
    assert (settings.base_url, settings.rest_url) == ("https://queue.fal.run", "https://a")


def test_address_of_a_document_is_understood() -> None:
    addresses = ("https://rest.fal.ai/.well-known/jwks.json", "https://rest.fal.ai/storage/upload/initiate")
    assert {FalSettings.model_validate({"fal_rest_url": url}).rest_url for url in addresses} == {"https://rest.fal.ai"}


@pytest.mark.parametrize(
    ("model", "text_app", "edit_app", "fields"),
    [
        ("nano-banana", "fal-ai/nano-banana", "fal-ai/nano-banana/edit", {}),
        ("nano-banana-pro", "fal-ai/nano-banana-pro", "fal-ai/nano-banana-pro/edit", {"resolution": "2K"}),
        ("nano-banana-2", "fal-ai/nano-banana-2", "fal-ai/nano-banana-2/edit", {"resolution": "4K"}),
        ("nano-banana-2-lite", "google/nano-banana-2-lite", "google/nano-banana-lite/edit", {}),
        ("nano-banana-2.1", "google/nano-banana-2.1", "google/nano-banana-2.1/edit", {"resolution": "1K"}),
    ],
)
async def test_every_model_has_its_app_and_the_job_id_finds_it_again(
    fal: Provider, upstream: Upstream, model: str, text_app: str, edit_app: str, fields: dict[str, str]
) -> None:
    params = {"aspect_ratio": "16:9", "output_format": "jpg", "seed": 7, **fields}
    expected = {"prompt": "a fox", "aspect_ratio": "16:9", "output_format": "jpeg", "seed": 7, **fields}
    for app, references in ((text_app, ()), (edit_app, (reference(URL),))):
        upstream.respond(ACCEPTED)
        report = await fal.submit(order(model, *references, **params), CALLBACK, SINK)
        assert isinstance(report, Pending)
        sent = upstream.received[-1]
        assert (sent.path, sent.query) == (f"/{app}", {"fal_webhook": CALLBACK})
        assert sent.json() == {**expected, **({"image_urls": [URL]} if references else {})}
        job_id = f"{app.removesuffix('/edit')}/requests/{JOB}"
        assert report.job_id == job_id
        assert job_id in fal.job_ids(callback("OK", payload=output()))
        upstream.respond(Canned(status=202, body=queued("IN_PROGRESS")), Canned(status=202, body={}))
        assert await fal.check(job_id, SINK) == Pending(job_id=job_id, stage="IN_PROGRESS")
        assert await fal.cancel(job_id)
        assert [(one.method, one.path) for one in upstream.received[-2:]] == [
            ("GET", f"/{job_id}/status"),
            ("PUT", f"/{job_id}/cancel"),
        ]


async def test_without_a_callback_none_is_asked_for(fal: Provider, upstream: Upstream) -> None:
    upstream.respond(ACCEPTED)
    await fal.submit(order("nano-banana"), None, SINK)
    assert (upstream.received[0].query, upstream.received[0].json()) == ({}, {"prompt": "a fox"})


async def test_limits_of_the_first_model_are_narrower(fal: Provider) -> None:
    obstacle = fal.find_obstacle(order("nano-banana", aspect_ratio="auto"), 0)
    assert obstacle is not None
    assert (obstacle[0], obstacle[1].field) == ("unsupported_parameter", "aspectRatio")
    edit = order("nano-banana", reference(URL), aspect_ratio="auto")
    assert fal.find_obstacle(edit, 3) is None
    too_many = fal.find_obstacle(edit, 4)
    assert too_many is not None
    assert too_many[0] == "too_many_images"
    assert all(fal.find_obstacle(order("nano-banana", aspect_ratio=ratio), 0) is None for ratio in BASIC)


# -- uploads


async def test_reference_is_uploaded_in_two_steps_and_the_key_stays_here(fal: Provider, upstream: Upstream) -> None:
    links = {"upload_url": f"{upstream.url}/put/a.png?sig=1", "file_url": "https://v3b.fal.media/files/a.png"}
    upstream.respond(Canned(body=links), Canned())
    placed = await fal.upload_references(order("nano-banana-2", reference(), reference(URL)))
    assert isinstance(placed, Order)
    assert [one.url for one in placed.references] == ["https://v3b.fal.media/files/a.png", URL]
    initiate, put = upstream.received
    assert (initiate.path, initiate.query) == ("/storage/upload/initiate", {"storage_type": "fal-cdn-v3"})
    assert initiate.headers["authorization"] == f"Key {KEY}"
    assert initiate.json()["content_type"] == "image/png"
    assert (put.method, put.path, put.query, put.body) == ("PUT", "/put/a.png", {"sig": "1"}, b"PNG-bytes")
    assert put.headers["content-type"] == "image/png"
    assert "authorization" not in put.headers


async def test_reference_is_not_uploaded_into_our_own_network(
    upstream: Upstream, client: ApiClient, clock: ManualClock
) -> None:
    """The provider names the address of the upload, as it names those of results."""
    context = open_context(FAL.package, FAL.settings(upstream.url), client, CATALOG, clock.now, allow=())
    upstream.respond(Canned(body={"upload_url": f"{upstream.url}/inside", "file_url": IMAGE}), Canned())
    placed = await FAL.package.factory(context).upload_references(order("nano-banana-2", reference()))
    assert isinstance(placed, Failed)
    assert (placed.code, placed.billed) == ("provider_unavailable", "no")
    assert [one.method for one in upstream.received] == ["POST"]


@pytest.mark.parametrize(
    ("answers", "code", "retryable"),
    [
        (
            [Canned(status=403, body={"detail": "User is locked. Reason: Exhausted balance."})],
            "provider_credits",
            False,
        ),
        ([Canned(status=500, body={"detail": "x"})], "provider_unavailable", True),
        ([Canned(body={"upload_url": "file:///etc/passwd", "file_url": IMAGE})], "provider_unavailable", True),
        (
            [Canned(body={"upload_url": "UPSTREAM/x", "file_url": IMAGE}), Canned(status=403)],
            "provider_unavailable",
            True,
        ),
        (
            [Canned(body={"upload_url": "UPSTREAM/x", "file_url": IMAGE}), Canned(hang_up=True)],
            "provider_unavailable",
            True,
        ),
    ],
)
async def test_failed_upload_orders_nothing(
    fal: Provider, upstream: Upstream, answers: list[Canned], code: str, retryable: bool
) -> None:
    texts = [
        Canned(**{**vars(one), "body": json.loads(json.dumps(one.body).replace("UPSTREAM", upstream.url))})
        if isinstance(one.body, dict)
        else one
        for one in answers
    ]
    upstream.respond(*texts)
    report = await fal.submit(order("nano-banana", reference()), CALLBACK, SINK)
    assert isinstance(report, Failed)
    assert (report.code, report.retryable, report.billed) == (code, retryable, "no")
    assert [one.path for one in upstream.received if one.path.startswith("/fal-ai")] == []


# -- results


async def test_texts_are_kept_beside_the_images(fal: Provider, upstream: Upstream) -> None:
    upstream.respond(COMPLETED, Canned(body=output(description="A fox in a hat.")))
    finished = Finished(outputs=(IMAGE,), job_id=FAL.job, texts=("A fox in a hat.",))
    assert await fal.check(FAL.job, SINK) == finished


@pytest.mark.parametrize(
    ("kind", "status", "code", "retryable", "billed"),
    [
        ("content_policy_violation", 422, "safety_input", False, "unknown"),
        ("no_media_generated", 422, "no_image", False, "unknown"),
        ("file_download_error", 422, "provider_rejected", False, "unknown"),
        ("image_too_large", 422, "provider_rejected", False, "unknown"),
        ("missing", 422, "provider_rejected", False, "unknown"),
        ("internal_server_error", 500, "provider_error", True, "no"),
        ("generation_timeout", 504, "provider_error", True, "no"),
    ],
)
async def test_type_of_a_detail_is_the_code_and_server_errors_are_free(
    fal: Provider, upstream: Upstream, kind: str, status: int, code: str, retryable: bool, billed: str
) -> None:
    """The same by status and by callback. A rejected input may be charged."""
    body = rejected(kind, "something went wrong")
    upstream.respond(COMPLETED, Canned(status=status, body=body))
    checked = await fal.check(FAL.job, SINK)
    called = fal.parse_callback(callback("ERROR", error=f"Invalid status code: {status}", payload=body))
    for report in (checked, called):
        assert isinstance(report, Failed)
        assert (report.code, report.provider_code, report.retryable, report.billed) == (code, kind, retryable, billed)
        assert report.message == "something went wrong"


@pytest.mark.parametrize(
    ("answer", "billed"),
    [
        (Canned(status=500, body={"detail": "Internal Server Error", "error_type": "runner_disconnected"}), "no"),
        (Canned(status=500, body={"detail": "Internal Server Error"}), "unknown"),
        (Canned(status=502), "unknown"),
        (Canned(status=504, body=b"<html>"), "unknown"),
    ],
)
async def test_error_in_the_status_makes_any_error_of_the_result_the_jobs_own(
    fal: Provider, upstream: Upstream, answer: Canned, billed: str
) -> None:
    """But a gateway's status does not say what the job cost: it may have been a rejected input, which is charged."""
    status = {**queued("COMPLETED"), "error": "Runner disconnected", "error_type": "runner_disconnected"}
    upstream.respond(Canned(body=status), answer)
    report = await fal.check(FAL.job, SINK)
    assert isinstance(report, Failed)
    assert (report.code, report.retryable, report.billed) == ("provider_error", True, billed)


async def test_image_counts_more_than_an_error_in_the_status(fal: Provider, upstream: Upstream) -> None:
    status = Canned(body={**queued("COMPLETED"), "error": "Runner disconnected"})
    upstream.respond(status, Canned(body=output()), status, Canned(body={}))
    assert isinstance(await fal.check(FAL.job, SINK), Finished)
    report = await fal.check(FAL.job, SINK)
    assert isinstance(report, Failed)
    assert (report.message, report.billed) == ("Runner disconnected", "unknown")


@pytest.mark.parametrize(
    "answer",
    [
        Canned(status=400, body={"detail": "Request is still in progress"}),
        Canned(status=500, body={"detail": "Internal Server Error"}),
        Canned(status=502, body=b"<html>"),
        *(Canned(status=status, body=rejected("x")) for status in (401, 403, 404, 408, 429)),
        Canned(body=[]),
        Canned(hang_up=True),
    ],
)
async def test_result_that_cannot_be_read_is_not_the_end_of_the_job(
    fal: Provider, upstream: Upstream, answer: Canned
) -> None:
    """A paid image is not given up for an error of the gateway, a stale replica or a revoked key."""
    upstream.respond(COMPLETED, answer)
    with pytest.raises(ProviderError) as caught:
        await fal.check(FAL.job, SINK)
    assert not caught.value.permanent


@pytest.mark.parametrize(
    "body",
    [
        callback("OK", payload=None, payload_error="Payload could not be serialized"),
        callback("ERROR", payload=None, payload_error="Payload could not be serialized"),
        callback("OK", payload=None),
        callback("OK", payload={"images": []}),
        callback("OK", payload={"images": [{"url": "data:image/png;base64,AAAA"}]}),
        callback("IN_PROGRESS", payload=output()),
        {"request_id": JOB, "payload": output()},
        {},
    ],
)
async def test_callback_without_a_result_means_poll(fal: Provider, body: Any) -> None:
    assert fal.parse_callback(body) == Pending(check_in=0)


async def test_status_within_an_error_may_be_part_of_a_prompt(fal: Provider) -> None:
    report = fal.parse_callback(callback("ERROR", error="Nothing drawn for 'a sign: status code 500'", payload=None))
    assert isinstance(report, Failed)
    assert report.billed == "unknown"


async def test_id_of_the_gateway_is_not_the_jobs(fal: Provider) -> None:
    """It is another after fal's own retries."""
    ids = fal.job_ids(callback("OK", payload=output()))
    assert (ids[0], ids[-1]) == (f"fal-ai/nano-banana/requests/{JOB}", JOB)
    assert not any("another" in name for name in ids)


# -- signed callbacks


@asynccontextmanager
async def signed_callbacks(client: ApiClient, *prompts: str) -> AsyncIterator[tuple[str, list[Message]]]:
    """Run the emulator; yield its URL and the callbacks of these orders, in order."""
    options = Options(dialect="fal", duration=0.0, creates_per_window=100)
    async with receiving() as receiver, serve_sandbox(options=options) as url:
        context = open_context(FAL.package, {"fal_keys": "k", "fal_url": url}, client, CATALOG, time.time)
        provider = FAL.package.factory(context)
        for number, prompt in enumerate(prompts, start=1):
            placed = Order(params=ImageParams(prompt=prompt, model="nano-banana"), mode="text-to-image")
            assert isinstance(await provider.submit(placed, receiver.url, SINK), Pending)
            await receiver.wait_received(number)
        yield url, receiver.received


def verifier(client: ApiClient, url: str) -> CallbackSignature:
    context = open_context(FAL.package, {"fal_keys": "k", "fal_rest_url": url}, client, CATALOG, time.time)
    return FAL.package.signature([context])


async def test_callbacks_of_the_emulator_are_verified_also_after_a_rotation(client: ApiClient) -> None:
    async with signed_callbacks(client, "a fox", "a hare [mood:rotated]") as (url, (first, second)):
        old = verifier(client, url)
        now = time.time()
        assert await old.verify(first.headers, first.body, (), now) == Proof.BODY_VERIFIED
        assert await old.verify(second.headers, second.body, (), now) == Proof.BODY_VERIFIED  # both are published
        assert await old.verify(first.headers, first.body + b" ", (), now) == Proof.WRONG
        assert await old.verify(first.headers, first.body, (), now + 301) == Proof.WRONG
        assert await old.verify({}, first.body, (), now) == Proof.NONE


async def test_unknown_key_is_fetched_but_not_for_every_wrong_signature(upstream: Upstream, client: ApiClient) -> None:
    keys, body, now = SigningKeys(None), b"{}", 1_790_000_000
    signature = verifier(client, upstream.url)
    first, second = ({name.lower(): value for name, value in keys.sign(n, "r", now, body).items()} for n in (0, 1))
    upstream.respond(Canned(body=keys.publish(1)))
    assert await signature.verify(first, body, (), now) == Proof.BODY_VERIFIED
    assert await signature.verify(second, body, (), now) == Proof.WRONG
    upstream.respond(Canned(body=keys.publish(2)))
    assert await signature.verify(second, body, (), now + 61) == Proof.BODY_VERIFIED
    assert await signature.verify(first, body, (), now + 62) == Proof.BODY_VERIFIED
    assert [one.path for one in upstream.received] == ["/.well-known/jwks.json"] * 2


async def test_keys_are_fetched_again_after_a_day(upstream: Upstream, client: ApiClient) -> None:
    keys, day, start = SigningKeys(None), 24 * 3600, 1_790_000_000
    signature = verifier(client, upstream.url)
    upstream.respond(*[Canned(body=keys.publish(1))] * 2)
    for at in (start, start + day, start + day + 1):
        headers = {name.lower(): value for name, value in keys.sign(0, "r", at, b"{}").items()}
        assert await signature.verify(headers, b"{}", (), at) == Proof.BODY_VERIFIED
    assert len(upstream.received) == 2


async def test_old_keys_prove_nothing_when_they_cannot_be_fetched_again(upstream: Upstream, client: ApiClient) -> None:
    keys, start = SigningKeys(None), 1_790_000_000
    signature = verifier(client, upstream.url)
    upstream.respond(Canned(body=keys.publish(1)), Canned(status=503), Canned(body=keys.publish(1)))
    proofs = []
    for at in (start, start + 86_401, start + 86_402, start + 86_500):
        headers = {name.lower(): value for name, value in keys.sign(0, "r", at, b"{}").items()}
        proofs.append(await signature.verify(headers, b"{}", (), at))
    assert proofs == [Proof.BODY_VERIFIED, Proof.NONE, Proof.NONE, Proof.BODY_VERIFIED]


async def test_without_the_keys_a_signature_proves_nothing(client: ApiClient) -> None:
    async with signed_callbacks(client, "a fox [mood:keys_down]") as (url, (message,)):
        assert await verifier(client, url).verify(message.headers, message.body, (), time.time()) == Proof.NONE


# -- whose callback it is


@asynccontextmanager
async def broker_with_a_job(folder: Path) -> AsyncIterator[tuple[ApiBroker, Task]]:
    """Open a broker with a task that waits for a job at fal."""
    async with (
        serve_sandbox(options=Options(dialect="fal")) as url,
        open_api(folder, kie_keys=(), fal_keys="k", fal_url=url, fal_rest_url=url) as broker,
    ):
        task = await broker.add_task(job_id=FAL.job, provider="fal")
        attempt = Attempt(task_id=task.id, number=1, provider="fal", key_id="k", job_id=FAL.job, sent_at=1.0)
        values = vars(attempt)
        columns, names = ", ".join(values), ", ".join(f":{name}" for name in values)
        await broker.services.database.execute(f"INSERT INTO attempts ({columns}) VALUES ({names})", **values)
        yield broker, task


async def send(broker: ApiBroker, request_id: str, **query: str) -> int:
    """Send a callback that fal signed, without a token; return the status of the answer."""
    body = json.dumps({**callback("OK", payload=output()), "request_id": request_id}).encode()
    headers = SigningKeys(None).sign(0, request_id, int(broker.services.clock.now()), body)
    forwarded = {**headers, "X-Forwarded-For": "8.8.8.8"}
    url = f"/api/webhook/fal?{httpx.QueryParams(query)}"
    return (await broker.client.post(url, content=body, headers=forwarded)).status_code


async def stored_attempt(broker: ApiBroker, task: Task) -> Attempt:
    (attempt,) = await broker.services.tables.attempts.list_of_task(task.id)
    return attempt


async def test_signature_alone_is_enough_for_the_job_that_the_body_names(tmp_path: Path) -> None:
    async with broker_with_a_job(tmp_path) as (broker, task):
        assert await send(broker, JOB) == 200
        (stored,) = await broker.services.tables.callbacks.list_newest(limit=10)
        assert (stored.task_id, stored.attempt, stored.verification) == (task.id, 1, "accept")


async def test_late_success_of_an_earlier_provider_is_read_in_its_own_form(tmp_path: Path) -> None:
    """After an unknown outcome the order went on to another provider, whose callbacks look different."""
    async with open_api(tmp_path, fal_keys="k", fal_url="http://127.0.0.1:9") as broker:
        services = broker.services
        task = await broker.add_task(state=TaskState.SUBMITTING, provider="kie", attempt=2)
        for number, provider in enumerate(("fal", "kie"), start=1):
            sent = Attempt(task_id=task.id, number=number, provider=provider, key_id="k", sent_at=1.0)
            columns, names = ", ".join(vars(sent)), ", ".join(f":{name}" for name in vars(sent))
            await services.database.execute(f"INSERT INTO attempts ({columns}) VALUES ({names})", **vars(sent))
        query = httpx.QueryParams(task=task.id, attempt=1, token=services.tokens.token(task.id, 1))
        answer = await broker.client.post(f"/api/webhook/fal?{query}", json=callback("OK", payload=output()))
        assert answer.status_code == 200
        await services.callback_step.process_callbacks(task.id)
        row = await services.tables.tasks.get(task.id)
        assert row is not None
        assert (row.state, row.provider, row.outputs) == (TaskState.FETCHING, "fal", (IMAGE,))


async def test_signature_proves_nothing_about_another_job(tmp_path: Path) -> None:
    """Every customer of fal gets callbacks signed with the same keys, and may send them to any address."""
    async with broker_with_a_job(tmp_path) as (broker, task):
        assert await send(broker, "of-another-customer") == 404
        assert await send(broker, "of-another-customer", task=task.id) == 202
        assert await send(broker, "of-another-customer", task=task.id, attempt="1") == 202
        assert (await stored_attempt(broker, task)).outcome == "sent"


# -- health


async def findings(upstream: Upstream, client: ApiClient, *answers: Canned) -> list[tuple[str, str]]:
    """Return name and status of each finding, where the upstream gives these answers."""
    context = open_context(FAL.package, FAL.settings(upstream.url), client, CATALOG, time.time)
    upstream.respond(*answers)
    provider = FAL.package.factory(context)
    found = [finding for check in FAL.package.checks for finding in await check.run(provider, context)]
    assert KEY not in str(found)
    return [(one.name, one.status) for one in found]


async def test_health_checks_are_free_and_say_what_is_wrong(upstream: Upstream, client: ApiClient) -> None:
    keys = Canned(body=SigningKeys(None).publish(2))
    sound = await findings(upstream, client, Canned(status=404), Canned(status=404, body={"detail": "x"}), keys)
    assert sound == [("fal", "ok"), ("clock", "skipped"), ("fal key", "ok"), ("fal callback keys", "ok")]
    locked = {"detail": "User is locked. Reason: Exhausted balance."}
    wrong = await findings(upstream, client, Canned(status=500), Canned(status=403, body=locked), Canned(body={}))
    assert wrong == [("fal", "warning"), ("clock", "skipped"), ("fal key", "failed"), ("fal callback keys", "warning")]
    silent = await findings(upstream, client, *[Canned(hang_up=True)] * 3)
    assert silent == [("fal", "failed"), ("clock", "skipped"), ("fal key", "skipped"), ("fal callback keys", "warning")]
    assert {one.method for one in upstream.received} == {"GET"}
