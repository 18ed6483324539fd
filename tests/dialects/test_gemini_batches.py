"""Batches of the Gemini API: by the official SDK, all or none, repeated, canceled, failed, announced by webhooks."""

from __future__ import annotations

import asyncio
import base64
import json
import socket
from collections.abc import AsyncIterator, Callable, Collection, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import pytest
from anyio import to_thread
from google import genai
from google.genai import errors, types
from pydantic import SecretStr
from standardwebhooks.webhooks import Webhook

from broker.sandbox.engine import Options
from storage.sql.scope import EVERYTHING
from tests.support.brokers import RunningBroker, open_broker
from tests.support.samples import encoded
from tests.support.servers.receiver import Message, Receiver, receiving

pytestmark = pytest.mark.anyio

T = TypeVar("T")

KEY = "key-of-a-caller-0123456789"
OTHER_KEY = "key-of-another-0123456789"
MODEL = "gemini-2.5-flash-image"
PICTURE = encoded("PNG")
GOOG = {"x-goog-api-key": KEY}
ENDED: Collection[Any] = (types.JobState.JOB_STATE_SUCCEEDED, types.JobState.JOB_STATE_FAILED)
FAILS = "a red fox [mood:failed]"


@pytest.fixture(scope="module")
async def receiver() -> AsyncIterator[Receiver]:
    async with receiving() as opened:
        yield opened


@pytest.fixture(scope="module")
async def broker(tmp_path_factory: pytest.TempPathFactory, receiver: Receiver) -> AsyncIterator[RunningBroker]:
    options = Options(duration=0.05, callback_spacing=0.02, creates_per_window=10_000)
    keys = (SecretStr(KEY), SecretStr(OTHER_KEY))
    async with open_broker(
        tmp_path_factory.mktemp("batches"), options=options, api_keys=keys, callback_allow=(receiver.host,)
    ) as opened:
        yield opened


@contextmanager
def sdk(broker: RunningBroker, key: str = KEY, version: str | None = None) -> Iterator[genai.Client]:
    options = types.HttpOptions(base_url=str(broker.client.base_url), api_version=version)
    with genai.Client(api_key=key, http_options=options) as client:
        yield client


async def with_sdk(broker: RunningBroker, work: Callable[[genai.Client], T], **options: Any) -> T:
    def run() -> T:
        with sdk(broker, **options) as client:
            return work(client)

    return await to_thread.run_sync(run)


def asked(prompt: str, **more: Any) -> dict[str, Any]:
    return {"request": {"contents": [{"parts": [{"text": prompt}]}], **more}}


async def create(broker: RunningBroker, *items: dict[str, Any], headers: Any = GOOG, **batch: Any) -> Any:
    body = {"batch": {"inputConfig": {"requests": {"requests": items}}, **batch}}
    return await broker.client.post(f"/v1beta/models/{MODEL}:batchGenerateContent", json=body, headers=headers)


async def ended(broker: RunningBroker, name: str, **headers: str) -> dict[str, Any]:
    async with asyncio.timeout(20):
        while True:
            answer = await broker.client.get(f"/v1beta/{name}", headers={**GOOG, **headers})
            assert answer.status_code == 200, answer.text
            document: dict[str, Any] = answer.json()
            if document.get("done"):
                return document
            assert "output" not in document["metadata"]
            await asyncio.sleep(0.05)


async def prompts_ordered(broker: RunningBroker, part: str) -> list[str]:
    prompts = [job["request"]["input"]["prompt"] for job in await broker.provider_jobs()]
    return sorted(prompt for prompt in prompts if part in prompt)


@pytest.mark.parametrize("version", [None, "v1beta"])
async def test_sdk_creates_polls_lists_cancels_and_deletes_a_batch(broker: RunningBroker, version: str | None) -> None:
    mark = f"in {version or 'v1'}"

    def work(client: genai.Client) -> types.BatchJob:
        file = types.Part.from_bytes(data=PICTURE, mime_type="image/png")
        text = types.Part(text=f"a blue fox {mark}")
        requests = [
            types.InlinedRequest(
                contents=f"a red fox {mark}",
                metadata={"key": "first"},
                config=types.GenerateContentConfig(image_config=types.ImageConfig(aspect_ratio="16:9")),
            ),
            types.InlinedRequest(contents=types.Content(role="user", parts=[text, file])),
        ]
        config = types.CreateBatchJobConfig(display_name=f"foxes {mark}")
        job = client.batches.create(model=MODEL, src=requests, config=config)
        assert job.name and job.name.startswith("batches/")
        assert job.state not in ENDED
        assert (job.display_name, job.model) == (f"foxes {mark}", f"models/{MODEL}")
        name = job.name
        while job.state not in ENDED:
            job = client.batches.get(name=name)
        assert name in [one.name for one in client.batches.list(config={"page_size": 1})]
        client.batches.cancel(name=name)
        assert client.batches.get(name=name).state == job.state, "too late"
        client.batches.delete(name=name)
        with pytest.raises(errors.ClientError, match="NOT_FOUND"):
            client.batches.get(name=name)
        return job

    job = await with_sdk(broker, work, version=version)
    assert job.state == types.JobState.JOB_STATE_SUCCEEDED and job.end_time
    responses = job.dest.inlined_responses if job.dest else None
    assert responses is not None
    assert [one.metadata for one in responses] == [{"key": "first"}, None]
    sizes = []
    for one in responses:
        (image,) = [part.inline_data for part in one.response.parts or () if part.inline_data] if one.response else []
        sizes.append(len(image.data or b""))
    assert all(sizes)
    jobs = {job["request"]["input"]["prompt"]: job["request"]["input"] for job in await broker.provider_jobs()}
    assert len(jobs[f"a blue fox {mark}"]["image_urls"]) == 1


async def test_other_clients_get_the_answers_in_response_and_errors_of_single_requests(broker: RunningBroker) -> None:
    two = asked("two red foxes", generationConfig={"candidateCount": 2})
    created = await create(broker, two | {"metadata": {"key": 1}}, asked(FAILS), displayName="foxes")
    assert (created.status_code, created.headers["x-should-retry"]) == (200, "false")
    document = await ended(broker, created.json()["name"])
    metadata = document["metadata"]
    assert (metadata["state"], metadata["displayName"]) == ("BATCH_STATE_SUCCEEDED", "foxes")
    counts = {"requestCount": "2", "pendingRequestCount": "0", "successfulRequestCount": "1", "failedRequestCount": "1"}
    assert metadata["batchStats"] == counts
    first, second = document["response"]["inlinedResponses"]["inlinedResponses"]
    assert document["response"] == metadata["output"]
    assert first["metadata"] == {"key": 1}
    for candidate in first["response"]["candidates"]:
        assert base64.b64decode(candidate["content"]["parts"][0]["inlineData"]["data"], validate=True)
    assert len(first["response"]["candidates"]) == 2
    assert set(second) == {"error"} and second["error"]["code"] == 9
    assert "task_" in second["error"]["message"]
    by_sdk = await ended(broker, created.json()["name"], **{"x-goog-api-client": "google-genai-sdk/1"})
    assert "response" not in by_sdk and "inline_data" not in json.dumps(by_sdk)


async def test_answers_stay_in_their_places_when_one_is_deleted(broker: RunningBroker) -> None:
    items = [asked(f"a fox in place {number}") | {"metadata": {"place": str(number)}} for number in range(3)]
    name = (await create(broker, *items)).json()["name"]
    await ended(broker, name)
    tasks = await broker.services.queries.get_batch(name.replace("batches/", "batch_"), EVERYTHING)
    for deleted in (tasks[0], tasks[2]):
        authorized = {"Authorization": f"Bearer {KEY}"}
        assert (await broker.client.delete(f"/api/task/{deleted.id}", headers=authorized)).status_code == 204
    job = await with_sdk(broker, lambda client: client.batches.get(name=name))
    assert job.dest and job.dest.inlined_responses
    first, second, third = job.dest.inlined_responses
    assert (second.metadata, second.response is not None) == ({"place": "1"}, True)
    assert first.error and third.error and (first.error.code, third.error.code) == (5, 5)
    stats = (await broker.client.get(f"/v1beta/{name}", headers=GOOG)).json()["metadata"]["batchStats"]
    assert stats == {
        "requestCount": "3", "pendingRequestCount": "0", "successfulRequestCount": "1", "failedRequestCount": "2"
    }  # fmt: skip


async def test_batches_belong_to_their_caller(broker: RunningBroker) -> None:
    name = (await create(broker, asked("a fox of one key"))).json()["name"]
    other = {"x-goog-api-key": OTHER_KEY}
    for method, path in (("GET", name), ("DELETE", name), ("POST", f"{name}:cancel")):
        answer = await broker.client.request(method, f"/v1/{path}", headers=other)
        assert (answer.status_code, answer.json()["error"]["status"]) == (404, "NOT_FOUND"), method
    assert (await broker.client.get("/v1/batches", headers=other)).json() == {"operations": []}
    await ended(broker, name)


async def test_all_requests_are_ordered_or_none(broker: RunningBroker) -> None:
    other_ratio = asked("none 2", generationConfig={"imageConfig": {"aspectRatio": "7:1"}})
    wrong: list[tuple[list[dict[str, Any]], dict[str, Any], str]] = [
        ([asked("none 1"), other_ratio], {}, "Request 2 of 2"),
        ([asked("none 1"), {"request": {"contents": _image("AAAA")}}], {}, "Request 2 of 2"),
        (
            [asked("none 1")],
            {"webhookConfig": {"uris": ["http://169.254.169.254/x"]}},
            "batch.webhookConfig.uris is not",
        ),
        ([asked("none 1", generationConfig={"candidateCount": 0})], {}, '"generationConfig.candidateCount must be'),
        ([asked("none 1")], {"webhookConfig": {"uris": [f"https://example.com/{n}" for n in range(6)]}}, "At most 5"),
        ([asked("none 1")], {"inputConfig": {"fileName": "files/x"}}, "send them inline"),
        ([asked("none 1")], {"displayName": "x" * 513}, "512"),
        (
            [asked("none 1"), asked("none 2") | {"metadata": {"key": "x" * 20_000}}],
            {},
            "requests[1].metadata is larger",
        ),
        ([asked("none 1")], {"webhookConfig": {"user_metadata": {"key": "x" * 20_000}}}, "userMetadata is larger"),
        ([], {}, "1 to 1000 requests"),
    ]
    before = await broker.services.blobs.list_owners(-60.0)
    for items, more, sentence in wrong:
        answer = await create(broker, *items, **more)
        assert (answer.status_code, sentence in answer.text) == (400, True), answer.text
    assert await prompts_ordered(broker, "none") == []
    assert sorted(await broker.services.blobs.list_owners(-60.0)) == sorted(before)


async def test_repeated_batch_is_the_same_one(broker: RunningBroker) -> None:
    keyed = {**GOOG, "Idempotency-Key": "batch-1"}
    items = [asked("repeated 1"), asked("repeated 2")]
    names = {(await create(broker, *items, headers=keyed)).json()["name"] for _ in range(2)}
    assert len(names) == 1
    mismatch = await create(broker, *items[:1], headers=keyed)
    assert mismatch.status_code == 422
    renamed = await create(broker, items[0] | {"metadata": {"key": "1"}}, items[1], headers=keyed)
    assert renamed.status_code == 422, "its answers would have other names"
    counted = [{**GOOG, "X-Stainless-Retry-Count": str(number)} for number in range(2)]
    await hang_up(broker, *items)
    after_cut = (await create(broker, *items)).json()["name"]
    assert after_cut not in names
    asked_again = (await create(broker, *items, headers=counted[0])).json()["name"]
    assert asked_again not in {*names, after_cut}, "that one was answered"
    for name in (*names, after_cut, asked_again):
        await ended(broker, name)
    assert await prompts_ordered(broker, "repeated") == ["repeated 1"] * 3 + ["repeated 2"] * 3


async def test_canceled_batch_ends_as_canceled(broker: RunningBroker, receiver: Receiver) -> None:
    items = [asked("canceled 1 [mood:slow:60]"), asked("canceled 2 [mood:slow:60]")]
    webhook = {"uris": [receiver.server.url("/canceled")]}
    name = (await create(broker, *items, webhookConfig=webhook)).json()["name"]
    assert (await broker.client.post(f"/v1beta/{name}:cancel", headers=GOOG)).json() == {}
    document = await ended(broker, name)
    assert document["metadata"]["state"] == "BATCH_STATE_CANCELLED"
    codes = [one["error"]["code"] for one in document["response"]["inlinedResponses"]["inlinedResponses"]]
    assert codes == [1, 1]
    (message,) = await announced(receiver, name, 1)
    assert message.document["type"] == "batch.cancelled"


async def test_end_of_a_batch_is_announced_once_to_each_address(broker: RunningBroker, receiver: Receiver) -> None:
    webhook = {"uris": [receiver.server.url("/one"), receiver.server.url("/two")], "user_metadata": {"order": 7}}
    items = [*(asked(f"announced {number}") for number in range(4)), asked(FAILS)]
    name = (await create(broker, *items, webhookConfig=webhook)).json()["name"]
    document = await ended(broker, name)
    secret = broker.services.signing_keys.secret_of("house:local")
    messages = await announced(receiver, name, 2)
    assert len({message.id for message in messages}) == 2
    for message in messages:
        body: Any = Webhook(secret).verify(message.body, dict(message.headers))
        assert (body["type"], body["version"], body["data"]) == ("batch.succeeded", "v1", {"id": name})
        assert body["user_metadata"] == {"order": 7}
    assert document["metadata"]["state"] == "BATCH_STATE_SUCCEEDED"
    failed = (await create(broker, asked(FAILS), webhookConfig={"uris": [receiver.server.url("/failed")]})).json()[
        "name"
    ]
    assert (await ended(broker, failed))["metadata"]["state"] == "BATCH_STATE_FAILED"
    (message,) = await announced(receiver, failed, 1)
    assert message.document["type"] == "batch.failed"
    shown = await broker.client.get(f"/api/deliveries/{message.id}", headers={"Authorization": f"Bearer {KEY}"})
    assert (shown.status_code, shown.json()["data"]["body"]) == (200, message.document)
    rows = await broker.services.database.fetch("SELECT url FROM deliveries WHERE url LIKE '%/one'")
    assert len(rows) == 1


async def test_webhook_about_a_batch_outlives_its_tasks(broker: RunningBroker, receiver: Receiver) -> None:
    """Its receiver may be down when the last task is deleted."""
    webhook = {"uris": [receiver.server.url("/outlives")]}
    name = (await create(broker, asked("a short-lived fox"), webhookConfig=webhook)).json()["name"]
    (message,) = await announced(receiver, name, 1)
    (task,) = await broker.services.queries.get_batch(name.replace("batches/", "batch_"), EVERYTHING)
    authorized = {"Authorization": f"Bearer {KEY}"}
    assert (await broker.client.delete(f"/api/task/{task.id}", headers=authorized)).status_code == 204
    assert (await broker.client.get(f"/api/deliveries/{message.id}", headers=authorized)).status_code == 200


async def announced(receiver: Receiver, name: str, count: int) -> list[Message]:
    """Wait until a batch was announced so many times."""
    async with asyncio.timeout(10):
        while len(found := receiver.about(name)) < count:
            await receiver.wait_received(len(receiver.received) + 1)
    return found


def _image(data: str) -> list[dict[str, Any]]:
    return [{"parts": [{"text": "x"}, {"inlineData": {"mimeType": "image/png", "data": data}}]}]


async def hang_up(broker: RunningBroker, *items: dict[str, Any]) -> None:
    """Create a batch, and reset the connection before the answer is read."""
    address = (broker.client.base_url.host, broker.client.base_url.port or 80)
    body = json.dumps({"batch": {"inputConfig": {"requests": {"requests": items}}}}).encode()
    head = f"POST /v1beta/models/{MODEL}:batchGenerateContent HTTP/1.1\r\nHost: {address[0]}:{address[1]}\r\n"
    head += f"x-goog-api-key: {KEY}\r\nContent-Length: {len(body)}\r\n\r\n"

    def send() -> None:
        with socket.create_connection(address) as connection:
            connection.sendall(head.encode() + body)
            connection.recv(1, socket.MSG_PEEK)  # what is not read when it closes makes it a reset

    await to_thread.run_sync(send)
