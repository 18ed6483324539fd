"""The dialect of fal, judged by its unmodified client for Python, and by its JavaScript client's requests."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
import time
from collections.abc import AsyncIterator, Callable
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import httpx
import pytest
from anyio import to_thread
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from pydantic import SecretStr

from broker.api.dialects.fal.targets import read_target
from broker.sandbox.engine import Options
from storage.sql.scope import EVERYTHING
from tests.support.api import png
from tests.support.brokers import RunningBroker, open_broker
from tests.support.servers.receiver import Message, receiving
from tests.support.tls_front import TlsFront, fal_sdk, tls_front

pytestmark = pytest.mark.anyio

KEY = "key-of-a-caller-0123456789"
AUTHORIZED = {"Authorization": f"Key {KEY}"}
APP = "fal-ai/nano-banana"
QUEUE = "https://queue.fal.run"
QUICK = Options(duration=0.05, callback_spacing=0.05, creates_per_window=10_000)


@pytest.fixture
async def broker(tmp_path: Path) -> AsyncIterator[RunningBroker]:
    settings: dict[str, Any] = {"api_keys": (SecretStr(KEY),), "callback_allow": ("127.0.0.1",)}
    async with open_broker(tmp_path, options=QUICK, **settings) as running:
        running.client.headers.update(AUTHORIZED)
        yield running


async def with_sdk(
    broker: RunningBroker, use: Callable[[ModuleType, TlsFront], None], *, key: str = KEY, cuts: int = 0
) -> None:
    """Run a function with fal's client, in a thread."""

    def run() -> None:
        with tls_front(str(broker.client.base_url), cuts=cuts) as front, fal_sdk(front, key) as fal_client:
            use(fal_client, front)

    await to_thread.run_sync(run)


def download(url: str) -> bytes:
    with httpx.Client() as client:
        return client.get(url).raise_for_status().content


async def submit(broker: RunningBroker, app: str = APP, *, hook: str | None = None, **fields: Any) -> dict[str, Any]:
    query = {"fal_webhook": hook} if hook else {}
    answer = await broker.client.post(f"/fal/{app}", json={"prompt": "a red fox", **fields}, params=query)
    assert answer.status_code == 200, answer.text
    ticket: dict[str, Any] = answer.json()
    return ticket


async def wait_completed(broker: RunningBroker, ticket: dict[str, Any]) -> dict[str, Any]:
    async with asyncio.timeout(10):
        while True:
            answer = await broker.client.get(ticket["status_url"], params={"logs": "1"})
            status: dict[str, Any] = answer.json()
            assert answer.headers["x-fal-request-id"] == ticket["request_id"]
            if status["status"] == "COMPLETED":
                assert answer.status_code == 200
                return status
            assert answer.status_code == 202, answer.text
            await asyncio.sleep(0.02)


# -- fal's client for Python


async def test_every_function_of_the_client_completes(broker: RunningBroker) -> None:
    def use(fal_client: ModuleType, front: TlsFront) -> None:
        updates: list[Any] = []
        picture = fal_client.encode(png(), "image/png")
        result = fal_client.subscribe(
            f"{APP}-pro/edit",
            arguments={"prompt": "a red fox", "image_urls": [picture], "resolution": "2K", "num_images": 2},
            with_logs=True,
            on_queue_update=updates.append,
            priority="low",
        )
        assert len(result["images"]) == 2
        for image in result["images"]:
            assert (image["content_type"], image["file_size"]) == ("image/png", len(download(image["url"])))
            assert image["url"].startswith(f"https://{front.host}/uploads/images/{image['file_name']}")
        done = updates[-1]
        assert isinstance(done, fal_client.Completed)
        assert (done.error, done.metrics["inference_time"] > 0) == (None, True)
        assert [line["message"].split(": ")[1] for line in done.logs][-1] == "completed"

        handle = fal_client.submit(APP, arguments={"prompt": "a blue fox", "seed": 7, "aspect_ratio": "16:9"})
        first = handle.status()
        assert isinstance(first, fal_client.Queued | fal_client.InProgress | fal_client.Completed)
        assert handle.get()["images"] == fal_client.result(APP, handle.request_id)["images"]
        assert isinstance(fal_client.status(APP, handle.request_id, with_logs=True), fal_client.Completed)
        with pytest.raises(fal_client.client.FalClientHTTPError) as late:
            handle.cancel()
        assert late.value.status_code == 400
        assert late.value.response.json() == {"status": "ALREADY_COMPLETED"}

        run = fal_client.run("google/nano-banana-2", arguments={"prompt": "a green fox", "sync_mode": True})
        (inline,) = run["images"]
        head, _, data = inline["url"].partition(",")
        assert head == f"data:{inline['content_type']};base64"
        assert len(base64.b64decode(data, validate=True)) == inline["file_size"]
        (event,) = fal_client.stream(APP, arguments={"prompt": "a grey fox"})
        assert len(event["images"]) == 1

        waiting = fal_client.submit(APP, arguments={"prompt": "a slow fox [mood:slow:60]"})
        waiting.cancel()
        assert waiting.status().error_type == "client_cancelled"

    await with_sdk(broker, use)
    jobs = [job["request"]["input"] for job in await broker.provider_jobs()]
    assert len([job for job in jobs if "slow" not in job["prompt"]]) == 5
    assert len(jobs) <= 6, "the canceled one may not have been sent"
    assert [job.get("image_size") for job in jobs if job["prompt"] == "a blue fox"] == ["16:9"]


async def test_client_without_threads_completes(broker: RunningBroker) -> None:
    async def subscribe(fal_client: ModuleType) -> Any:
        return await fal_client.AsyncClient(key=f"some-id:{KEY}").subscribe(APP, arguments={"prompt": "a red fox"})

    def use(fal_client: ModuleType, _: TlsFront) -> None:
        result = asyncio.run(subscribe(fal_client))
        assert len(result["images"]) == 1

    await with_sdk(broker, use, key="not-used")


async def test_client_raises_what_went_wrong(broker: RunningBroker) -> None:
    def use(fal_client: ModuleType, front: TlsFront) -> None:
        def fails(call: Callable[[], object]) -> Any:
            before = front.posts
            with pytest.raises(fal_client.client.FalClientHTTPError) as caught:
                call()
            assert front.posts - before == 1, "no error is repeated"
            assert caught.value.response_headers["x-fal-request-id"]
            return caught.value

        wrong = fails(partial(fal_client.submit, APP, {"prompt": "a fox", "num_images": 99, "aspect_ratio": "7:3"}))
        assert wrong.status_code == 422
        assert (wrong.message[0]["loc"], "num_images" in wrong.message[0]["msg"]) == (["body", "num_images"], True)
        missing = fails(partial(fal_client.run, APP, {"image_urls": []}))
        assert (missing.message[0]["loc"], missing.message[0]["type"]) == (["body", "prompt"], "missing")
        edit = fails(partial(fal_client.run, f"{APP}/edit", {"prompt": "a fox"}))
        assert (edit.status_code, edit.message[0]["loc"]) == (422, ["body", "image_urls"])
        assert fails(partial(fal_client.submit, "fal-ai/flux/dev", {"prompt": "a fox"})).status_code == 404
        flagged = fails(partial(fal_client.run, APP, {"prompt": "a fox [mood:flagged]"}))
        assert (flagged.status_code, flagged.error_type) == (422, "content_policy_violation")
        assert (flagged.message[0]["ctx"]["code"], flagged.message[0]["ctx"]["retryable"]) == ("safety_input", False)

        handle = fal_client.submit(APP, {"prompt": "a fox [mood:flagged]"})
        with pytest.raises(fal_client.client.FalClientHTTPError) as late:
            handle.get()
        assert (late.value.status_code, late.value.error_type) == (422, "content_policy_violation")
        status = handle.status()
        assert (status.error, status.error_type) == (late.value.response.json()["message"], "content_policy_violation")
        empty = fails(partial(fal_client.run, APP, {"prompt": "a fox [mood:noresult]"}))
        assert empty.status_code in {422, 424}

    await with_sdk(broker, use)

    def stranger(fal_client: ModuleType, _: TlsFront) -> None:
        with pytest.raises(fal_client.client.FalClientHTTPError) as caught:
            fal_client.submit(APP, {"prompt": "a fox"})
        assert caught.value.status_code == 401
        assert "BROKER_API_KEYS" in caught.value.message

    await with_sdk(broker, stranger, key="id:wrong-key-0123456789")


async def test_client_whose_answers_are_cut_off_makes_one_order(broker: RunningBroker) -> None:
    def use(fal_client: ModuleType, front: TlsFront) -> None:
        assert len(fal_client.subscribe(APP, arguments={"prompt": "a red fox"})["images"]) == 1
        assert front.posts == 3
        front.cuts = 1
        assert len(fal_client.run(APP, arguments={"prompt": "a blue fox"})["images"]) == 1
        assert front.posts == 5

    await with_sdk(broker, use, cuts=2)
    assert sorted(job["request"]["input"]["prompt"] for job in await broker.provider_jobs()) == [
        "a blue fox",
        "a red fox",
    ]


async def test_client_repeats_its_run_while_the_broker_stops_and_gets_the_same_order(broker: RunningBroker) -> None:
    fronts = list[TlsFront]()

    def use(fal_client: ModuleType, front: TlsFront) -> None:
        fronts.append(front)
        assert len(fal_client.run(APP, arguments={"prompt": "a red fox [mood:slow:1]"})["images"]) == 1

    async def stop_and_start() -> None:
        async with asyncio.timeout(10):
            while True:
                jobs = await broker.provider_jobs()
                broker.services.queries.closing = bool(jobs) and fronts[0].posts < 2
                if fronts and fronts[0].posts > 1:
                    return
                await asyncio.sleep(0.02)

    async with asyncio.TaskGroup() as group:
        group.create_task(with_sdk(broker, use))
        group.create_task(stop_and_start())
    assert len(await broker.provider_jobs()) == 1


async def test_run_that_does_not_start_in_time_is_canceled(tmp_path: Path) -> None:
    def use(fal_client: ModuleType, front: TlsFront) -> None:
        limit = {"X-Fal-Request-Timeout": "0.2"}
        assert fal_client.run(APP, arguments={"prompt": "a red fox [mood:slow:0.3]"}, headers=limit)["images"]
        with pytest.raises(fal_client.client.FalClientHTTPError) as caught:
            fal_client.run(APP, arguments={"prompt": "a blue fox"}, headers=limit)
        assert (caught.value.status_code, caught.value.error_type, front.posts) == (504, "request_timeout", 2)

    async with open_broker(tmp_path, options=QUICK, api_keys=(SecretStr(KEY),), creates_per_10s=1) as broker:
        await with_sdk(broker, use)
        (task,) = await broker.services.queries.list_newest(EVERYTHING, status="canceled", limit=10, before=None)
        assert (task.prompt, len(await broker.provider_jobs())) == ("a blue fox", 1)


# -- the queue


async def test_ticket_status_and_result_have_the_documented_shape(broker: RunningBroker) -> None:
    ticket = await submit(broker, f"{APP}/edit", image_urls=[data_uri()], tempo=1, enable_web_search=True)
    request = f"{str(broker.client.base_url).rstrip('/')}/fal/{APP}/requests/{ticket['request_id']}"
    assert ticket == {
        "request_id": ticket["request_id"],
        "gateway_request_id": ticket["request_id"],
        "response_url": request,
        "status_url": f"{request}/status",
        "cancel_url": f"{request}/cancel",
        "status": "IN_QUEUE",
        "queue_position": 0,
    }
    status = await wait_completed(broker, ticket)
    assert status.items() >= {key: ticket[key] for key in ("request_id", "response_url", "cancel_url")}.items()
    result = await broker.client.get(ticket["response_url"])
    assert result.headers["x-fal-request-id"] == ticket["request_id"]
    (image,) = result.json()["images"]
    assert set(image) == {"url", "content_type", "file_name", "file_size", "width", "height"}
    assert (result.json()["description"], (await broker.client.get(image["url"])).content[1:4]) == ("", b"PNG")
    again = await submit(broker, f"{APP}/edit", image_urls=[image["url"]])
    assert (await wait_completed(broker, again)).get("error") is None, "our own address is an image"


async def test_ignored_fields_and_headers_are_named(broker: RunningBroker) -> None:
    headers = {"X-Fal-Request-Timeout": "30", "X-Fal-Queue-Priority": "low", "X-Fal-No-Retry": "1"}
    body = {"prompt": "a fox", "aspect_ratio": None, "seed": 3, "safety_tolerance": "4"}
    answer = await broker.client.post(f"/fal/{APP}", json=body, headers=headers)
    assert answer.headers["x-ignored"] == "seed, safety_tolerance, x-fal-request-timeout, x-fal-no-retry"
    assert answer.headers["x-should-retry"] == "false"
    assert (await broker.services.queries.get(answer.json()["request_id"], EVERYTHING)).priority == 0


async def test_error_about_countless_fields_is_short(broker: RunningBroker) -> None:
    body = {"prompt": "a fox", "image_urls": [1] * 20_000}
    answer = await broker.client.post(f"/fal/{APP}", json=body)
    assert (answer.status_code, len(answer.json()["detail"])) == (422, 50)


async def test_status_stream_ends_with_the_end_of_the_request(broker: RunningBroker) -> None:
    ticket = await submit(broker, prompt="a red fox [mood:slow:0.3]", num_images=2)
    async with broker.client.stream("GET", f"{ticket['status_url']}/stream", params={"logs": "1"}) as answer:
        assert answer.headers["content-type"].startswith("text/event-stream")
        text = (await answer.aread()).decode()
    events = [json.loads(line.removeprefix("data: ")) for line in text.split("\n") if line]
    states = [event["status"] for event in events]
    assert (states[-1], states.count("COMPLETED"), "IN_PROGRESS" in states) == ("COMPLETED", 1, True)
    assert len([line for line in events[-1]["logs"] if line["message"].endswith(": completed")]) == 2


async def test_result_before_the_end_and_of_a_canceled_request_is_an_error(broker: RunningBroker) -> None:
    ticket = await submit(broker, prompt="a fox [mood:slow:60]")
    early = await broker.client.get(ticket["response_url"])
    assert (early.status_code, early.json()["detail"]) == (400, "Request is still in progress")
    canceled = await broker.client.put(ticket["cancel_url"])
    assert (canceled.status_code, canceled.json()) == (202, {"status": "CANCELLATION_REQUESTED"})
    gone = await broker.client.get(ticket["response_url"])
    assert (gone.status_code, gone.headers["x-fal-error-type"]) == (499, "client_cancelled")
    unknown = await broker.client.get(f"/fal/{APP}/requests/task_{0:043x}/status")
    assert (unknown.status_code, unknown.json()["error_type"]) == (404, "not_found")


# -- webhooks


def verify_webhook(message: Message, jwks: dict[str, Any]) -> None:
    """Verify a webhook as fal's documentation does, by any of the published keys."""
    headers = message.headers
    assert abs(time.time() - int(headers["x-fal-webhook-timestamp"])) <= 300
    lines = [
        headers["x-fal-webhook-request-id"],
        headers["x-fal-webhook-user-id"],
        headers["x-fal-webhook-timestamp"],
        hashlib.sha256(message.body).hexdigest(),
    ]
    signature = bytes.fromhex(headers["x-fal-webhook-signature"])
    for key in jwks["keys"]:
        raw = base64.urlsafe_b64decode(key["x"] + "=" * (-len(key["x"]) % 4))
        try:
            Ed25519PublicKey.from_public_bytes(raw).verify(signature, "\n".join(lines).encode())
        except InvalidSignature:
            continue
        return
    raise AssertionError("no published key has signed this")


async def test_webhooks_are_signed_as_fal_documents_it(broker: RunningBroker) -> None:
    published = await broker.client.get("/fal/.well-known/jwks.json", headers={"Authorization": ""})
    assert (published.status_code, published.headers["cache-control"]) == (200, "public, max-age=3600")
    async with receiving() as receiver:
        good = await submit(broker, hook=receiver.url)
        message = (await receiver.wait_received(1))[-1]
        verify_webhook(message, published.json())
        result = (await broker.client.get(good["response_url"])).json()
        assert message.document == {
            "request_id": good["request_id"],
            "gateway_request_id": good["request_id"],
            "status": "OK",
            "error": None,
            "payload": result,
        }
        assert message.headers["x-fal-webhook-request-id"] == good["request_id"]
        bad = await submit(broker, hook=receiver.url, prompt="a fox [mood:flagged]")
        message = (await receiver.wait_received(2))[-1]
        verify_webhook(message, published.json())
        failed = await broker.client.get(bad["response_url"])
        assert (message.document["status"], message.document["error"]) == ("ERROR", "Invalid status code: 422")
        assert message.document["payload"] == {"detail": failed.json()["detail"]}
        changed = Message(message.headers, message.body.replace(b"ERROR", b"OK   "))
        with pytest.raises(AssertionError, match="no published key"):
            verify_webhook(changed, published.json())


async def test_webhook_to_a_private_address_is_refused(broker: RunningBroker) -> None:
    answer = await broker.client.post(
        f"/fal/{APP}", json={"prompt": "a fox"}, params={"fal_webhook": "http://10.0.0.1/"}
    )
    assert (answer.status_code, answer.json()["detail"][0]["loc"]) == (422, ["query", "fal_webhook"])


# -- the proxy of the JavaScript client


async def through_proxy(broker: RunningBroker, method: str, target: str, body: Any = None) -> httpx.Response:
    headers = {"x-fal-target-url": target, "accept": "application/json"}
    return await broker.client.request(method, "/fal/proxy", headers=headers, json=body)


async def test_requests_of_the_javascript_client_complete_through_the_proxy(broker: RunningBroker) -> None:
    """Its addresses are fixed: it makes those of a request itself, from the app and the id."""
    upload = await through_proxy(
        broker,
        "POST",
        "https://rest.fal.ai/storage/upload/initiate?storage_type=fal-cdn-v3",
        {"content_type": "image/png", "file_name": "fox.png"},
    )
    assert upload.status_code == 200, upload.text
    async with httpx.AsyncClient() as plain:
        for _ in range(2):
            stored = await plain.put(upload.json()["upload_url"], content=png(), headers={"Content-Type": "image/png"})
            assert (stored.status_code, stored.json()) == (200, {})
    body = {"prompt": "a red fox", "image_urls": [upload.json()["file_url"]]}
    ticket = (await through_proxy(broker, "POST", f"{QUEUE}/{APP}/edit", body)).json()
    request = f"{QUEUE}/{APP}/requests/{ticket['request_id']}"
    await broker.wait_end(ticket["request_id"])
    status = (await through_proxy(broker, "GET", f"{request}/status?logs=0")).json()
    assert status["logs"] is None
    stream = await through_proxy(broker, "GET", f"{request}/status/stream?logs=1")
    assert json.loads(stream.text.removeprefix("data: "))["status"] == "COMPLETED"
    result = await through_proxy(broker, "GET", request)
    assert (len(result.json()["images"]), result.headers["x-fal-request-id"]) == (1, ticket["request_id"])
    assert (await through_proxy(broker, "PUT", f"{request}/cancel")).status_code == 400
    run = await through_proxy(broker, "POST", f"https://fal.run/{APP}", {"prompt": "a blue fox"})
    assert len(run.json()["images"]) == 1


@pytest.mark.parametrize(
    "target",
    [
        "",
        "https://evil.example/fal-ai/nano-banana",
        "https://queue.fal.run.evil.example/fal-ai/nano-banana",
        "https://evil.example#.fal.run/fal-ai/nano-banana",
        "https://user@queue.fal.run/fal-ai/nano-banana",
        "https://queue.fal.run:8443/fal-ai/nano-banana",
        "https://queue.fal.run:x/fal-ai/nano-banana",
        "http://queue.fal.run/fal-ai/nano-banana",
        "https://queue.fal.run/../fal-ai/nano-banana",
        "https://queue.fal.run//fal-ai/nano-banana",
        "https://queue.fal.run/fal-ai/nano-banana?" + "&".join(f"a{n}=1" for n in range(30)),
        "https://rest.fal.ai/tokens/",
        "https://fal.run/",
        "file:///etc/passwd",
        "http://127.0.0.1:8000/api/tasks",
    ],
)
def test_proxy_serves_addresses_of_fal_alone(target: str) -> None:
    assert read_target("POST", target) is None


async def test_proxy_refuses_other_addresses_and_methods(broker: RunningBroker) -> None:
    for method, target in (("POST", "https://evil.example/a/b"), ("GET", f"{QUEUE}/{APP}"), ("PUT", f"{QUEUE}/{APP}")):
        answer = await through_proxy(broker, method, target)
        assert (answer.status_code, "x-fal-target-url" in answer.json()["detail"]) == (400, True)
        assert answer.headers["x-fal-request-id"]
    assert (await broker.client.post("/fal/proxy", headers={"Authorization": ""})).status_code == 401


async def test_upload_that_is_no_image_is_refused(broker: RunningBroker) -> None:
    initiated = await broker.client.post("/fal/storage/upload/initiate", json={"file_name": "a.png"})
    refused = await broker.client.put(initiated.json()["upload_url"], content=b"no image")
    assert (refused.status_code, refused.json()["detail"][0]["type"]) == (422, "image_load_error")
    unknown = await broker.client.put("/fal/storage/uploads/nothing/file", content=b"")
    assert unknown.status_code == 404


# -- a broker before a broker


@pytest.mark.parametrize("with_callbacks", [True, False])
async def test_another_broker_takes_this_one_for_fal(
    tmp_path: Path, broker: RunningBroker, *, with_callbacks: bool
) -> None:
    """By callbacks that the published keys verify, or by polling, with an uploaded image."""
    address = f"{str(broker.client.base_url).rstrip('/')}/fal"
    settings: dict[str, Any] = {
        "kie_keys": (),
        "fal_keys": KEY,
        "fal_url": address,
        "fal_rest_url": address,
        "download_allow": ("127.0.0.1",),
        "check_after": 30 if with_callbacks else 0.1,
        "task_deadline": 30,
    }
    images = {} if with_callbacks else {"images": [data_uri()]}
    order: dict[str, Any] = {"model": "nano-banana-pro", "resolution": "2K", **images}
    async with open_broker(
        tmp_path / "front", sandbox=address, with_callbacks=with_callbacks, api_keys=(), **settings
    ) as front:
        task = await front.wait_end(await front.create_task("a red fox", **order))
        assert task["status"] == "completed", task["errorDetail"]
        flagged = await front.wait_end(await front.create_task("a fox [mood:flagged]"))
        assert (flagged["status"], flagged["errorDetail"]["code"]) == ("failed", "safety_input"), flagged
        callbacks = (await front.client.get("/api/callbacks")).json()["data"]
    assert {one["verification"] for one in callbacks} == ({"accept"} if with_callbacks else set())
    edit, _ = sorted(await broker.provider_jobs(), key=lambda job: len(job["request"]["input"]["prompt"]))
    assert edit["request"]["input"]["resolution"] == "2K"


def data_uri() -> str:
    return "data:image/png;base64," + base64.b64encode(png()).decode()
