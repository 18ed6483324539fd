"""The dialect of Replicate, by its official SDK."""

from __future__ import annotations

import asyncio
import base64
import io
import json
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from time import monotonic
from typing import Any, TypeVar

import httpx
import pytest
from anyio import to_thread
from PIL import Image
from pydantic import SecretStr
from replicate.client import Client
from replicate.exceptions import ModelError, ReplicateError
from replicate.helpers import FileOutput
from replicate.pagination import paginate
from replicate.prediction import Prediction
from replicate.webhook import Webhooks, WebhookSigningSecret, WebhookValidationError

from broker.api.dialects.replicate.routes import wait_seconds
from broker.sandbox.engine import Options
from storage.ids import new_batch_id, new_task_id
from storage.sql.database import Statement
from storage.sql.scope import EVERYTHING
from storage.states import TaskState
from storage.tasks import Task
from tests.support.brokers import RunningBroker, open_broker
from tests.support.samples import encoded, picture
from tests.support.servers.receiver import Receiver, receiving

pytestmark = pytest.mark.anyio

KEY = "key-of-a-caller-0123456789"
MODEL = "google/nano-banana"
T = TypeVar("T")


@pytest.fixture(scope="module")
async def receiver() -> AsyncIterator[Receiver]:
    async with receiving() as receiver:
        yield receiver


@pytest.fixture(scope="module")
async def broker(tmp_path_factory: pytest.TempPathFactory, receiver: Receiver) -> AsyncIterator[RunningBroker]:
    """One broker for all tests, which order different prompts."""
    options = Options(duration=0.1, callback_spacing=0.05, creates_per_window=10_000)
    async with open_broker(
        tmp_path_factory.mktemp("broker"),
        options=options,
        with_callbacks=False,
        api_keys=(SecretStr(KEY),),
        callback_allow=(receiver.host,),
        task_deadline=20,
    ) as broker:
        broker.client.headers["authorization"] = f"Bearer {KEY}"
        yield broker


@contextmanager
def sdk(broker: RunningBroker, key: str = KEY, **headers: str) -> Iterator[Client]:
    with httpx.HTTPTransport() as transport:
        base_url = str(broker.client.base_url)
        client = Client(api_token=key, base_url=base_url, transport=transport, headers=headers)
        client.poll_interval = 0.05
        yield client


async def call(broker: RunningBroker, use: Callable[[Client], T]) -> T:
    """Use the SDK in a thread, because it blocks."""

    def run() -> T:
        with sdk(broker) as client:
            return use(client)

    return await to_thread.run_sync(run)


async def run_model(broker: RunningBroker, prompt: str, ref: str = MODEL, **more: Any) -> Any:
    given = {"prompt": prompt, **more.pop("given", {})}
    return await call(broker, lambda client: client.run(ref, input=given, **more))


async def create(broker: RunningBroker, prompt: str, prefer: str = "wait", **body: Any) -> httpx.Response:
    given = {"prompt": prompt, **body.pop("input", {})}
    path = f"/v1/models/{MODEL}/predictions"
    return await broker.client.post(path, json={"input": given, **body}, headers={"prefer": prefer})


def size_of(output: Any) -> tuple[int, int]:
    assert isinstance(output, FileOutput), output
    with Image.open(io.BytesIO(output.read())) as image:
        image.load()
        return image.size


# -- journeys of the SDK


async def test_run_returns_the_image_of_a_prompt_and_of_an_image(broker: RunningBroker) -> None:
    assert size_of(await run_model(broker, "a fox", given={"aspect_ratio": "16:9"})) == (1344, 768)
    uri = f"data:image/png;base64,{base64.b64encode(encoded('png', picture())).decode()}"
    given = {"image_input": [uri], "input_image": uri, "image_2": uri, "aspect_ratio": "match_input_image"}
    assert size_of(await run_model(broker, "a fox like this one", given=given))
    task = (await broker.client.get("/api/tasks")).json()["data"][0]
    assert (task["mode"], task["aspectRatio"]) == ("image-to-image", "auto")
    references = (await broker.provider_jobs())[-1]["request"]["input"]["image_urls"]
    assert len(references) == 3


async def test_async_run_returns_the_image(broker: RunningBroker) -> None:
    async with httpx.AsyncHTTPTransport() as transport:
        client = Client(api_token=KEY, base_url=str(broker.client.base_url), transport=transport)
        output = await client.async_run(MODEL, input={"prompt": "an asynchronous fox"})
    assert size_of(output)


async def test_short_wait_answers_in_time_and_the_sdk_polls(broker: RunningBroker) -> None:
    begun = monotonic()
    polling = asyncio.create_task(run_model(broker, "another slow fox [mood:slow:1.1]", wait=1))
    early = await create(broker, "a slow fox [mood:slow:1.3]", "wait=1")
    assert (early.status_code, early.json()["status"]) == (202, "starting")
    assert 1.0 <= monotonic() - begun < 1.4
    assert early.headers["preference-applied"] == "wait=1"
    polled = await call(broker, lambda client: client.predictions.get(early.json()["id"]))
    assert polled.status == "processing"
    assert size_of(await polling)
    assert size_of(await run_model(broker, "a polled fox", wait=False))


async def test_prediction_is_created_reloaded_listed_and_canceled(broker: RunningBroker) -> None:
    def use(client: Client) -> None:
        created = [
            client.predictions.create(version=MODEL, input={"prompt": "fox of a version"}),
            client.predictions.create(model=MODEL, input={"prompt": "fox of a model"}),
            client.models.predictions.create(model=("any-owner", "nano-banana"), input={"prompt": "fox of an owner"}),
            client.predictions.create(deployment="me/nano-banana-2", input={"prompt": "fox of a deployment"}),
        ]
        assert {prediction.status for prediction in created} == {"starting"}
        assert created[0].output is None
        for prediction in created:
            prediction.wait()
        assert [prediction.status for prediction in created] == ["succeeded"] * 4
        assert [prediction.model for prediction in created[2:]] == ["any-owner/nano-banana", "me/nano-banana-2"]
        assert created[0].input == {"prompt": "fox of a version"}
        assert created[0].metrics is not None
        assert created[0].metrics["total_time"] >= created[0].metrics["predict_time"] > 0
        assert created[0].created_at <= created[0].started_at <= created[0].completed_at  # type: ignore[operator]
        slow = client.predictions.create(version=MODEL, input={"prompt": "slow fox [mood:slow:60]"})
        slow.cancel()
        assert slow.status == "canceled"
        created[0].cancel()
        assert created[0].status == "succeeded", "one that has ended stays as it is"
        listed = [prediction.id for page in paginate(client.predictions.list) for prediction in page]
        assert listed[:5] == [slow.id, *(prediction.id for prediction in reversed(created))]

    await call(broker, use)


async def test_pages_follow_each_other(broker: RunningBroker) -> None:
    await create(broker, "a fox of the second page")
    tables, now = broker.services.tables, broker.services.clock.now()
    ended: dict[str, Any] = {"state": TaskState.CANCELED, "ended_at": now, "due_at": now + 3600, "deadline_at": now}
    moments: dict[str, Any] = {"created_at": now, "updated_at": now, "entered_at": now}
    tasks = [
        Task(id=new_task_id(now), batch=new_batch_id(now), caller="house:local", provider="kie", model="nano-banana",
             mode="text-to-image", prompt="a canceled fox", **ended, **moments)
        for _ in range(100)
    ]  # fmt: skip
    await tables.tasks.database.transact(*(tables.tasks.insert_task(task) for task in tasks))

    def use(client: Client) -> list[list[Prediction]]:
        return [list(page) for page in paginate(client.predictions.list)]

    first, second, *_ = await call(broker, use)
    assert ({one.id for one in first}, first[0].status) == ({task.id for task in tasks}, "canceled")
    assert second[0].input == {"prompt": "a fox of the second page"}
    assert str(second[0].output).startswith("http://"), "images are not in lists"
    await tables.tasks.database.transact(
        *(Statement(sql="DELETE FROM tasks WHERE id = :id", params={"id": task.id}) for task in tasks)
    )


async def test_model_and_its_version_are_found_and_run(broker: RunningBroker) -> None:
    def use(client: Client) -> Any:
        model = client.models.get(MODEL)
        assert (model.id, model.description) == (MODEL, "Nano Banana")
        (version,) = model.versions.list()
        assert model.latest_version == version == model.versions.get(version.id)
        assert MODEL in [one.id for one in client.models.list()]
        return client.run(f"{MODEL}:{version.id}", input={"prompt": "a fox of a version"})

    assert size_of(await call(broker, use))
    named = await broker.client.post("/v1/predictions", json={"version": f"{MODEL}:abc", "input": {"prompt": "a fox"}})
    assert (named.status_code, named.json()["version"]) == (201, "abc")
    missing = await broker.client.get(f"/v1/models/{MODEL}/versions/abc")
    assert (missing.status_code, missing.json()["status"]) == (404, 404)


async def test_several_images_are_one_prediction(broker: RunningBroker) -> None:
    answer = await create(broker, "two foxes", input={"num_outputs": 2})
    prediction = answer.json()
    assert (answer.status_code, prediction["status"], len(prediction["output"])) == (201, "succeeded", 2)
    listed = (await broker.client.get("/v1/predictions")).json()["results"]
    assert [one["id"] for one in listed if one["input"]["prompt"] == "two foxes"] == [prediction["id"]]
    slow = (await create(broker, "slow foxes [mood:slow:60]", "", input={"number_of_images": 2})).json()
    assert (await broker.client.post(f"/v1/predictions/{slow['id']}/cancel")).json()["status"] == "canceled"


# -- what is understood, ignored and refused


async def test_input_is_shown_without_images_and_unused_fields_are_listed(broker: RunningBroker) -> None:
    uri = f"data:image/png;base64,{base64.b64encode(encoded('png', picture())).decode()}"
    given = {"image_input": [uri], "safety_filter_level": "block_only_high", "unknown": {"deep": 1}, "seed": 7}
    answer = await create(broker, "a shown fox", "", input=given, extra=1)
    assert answer.status_code == 201
    assert {"safety_filter_level", "unknown", "extra"} <= set(answer.headers["x-ignored"].split(", "))
    assert answer.json()["input"] == {
        "prompt": "a shown fox",
        "image_input": ["data:image/png;base64,…"],
        "safety_filter_level": "block_only_high",
        "seed": 7,
    }
    assert answer.headers["x-request-id"] == answer.json()["id"]


async def test_secrets_and_long_names_are_not_kept(broker: RunningBroker) -> None:
    await create(broker, "a fox for a signed address")
    (first, *_) = (await broker.client.get("/v1/predictions")).json()["results"]
    signed = f"{first['output']}?X-Amz-Signature=5ec2e7"
    given = {"image_input": [signed], "openai_api_key": "sk-5ec2e7", "mask": "https://a.example/m.png?sig=5ec2e7"}
    answer = await create(broker, "a discreet fox", "", input=given)
    assert answer.status_code == 201, answer.text
    assert answer.json()["input"] == {
        "prompt": "a discreet fox",
        "image_input": [first["output"]],
        "openai_api_key": "[REDACTED]",
        "mask": "https://a.example/m.png",
    }
    task = await broker.services.queries.get(answer.json()["id"], EVERYTHING)
    assert "5ec2e7" not in str(task)
    long = "x" * 101
    for version in (f"{long}/nano-banana", f"{MODEL}:{long}"):
        refused = await broker.client.post("/v1/predictions", json={"version": version, "input": {"prompt": "a fox"}})
        assert (refused.status_code, refused.json()["code"]) == (400, "unsupported_parameter")


async def test_earlier_output_is_a_reference_by_its_address(broker: RunningBroker) -> None:
    await create(broker, "a fox to be changed")
    (first, *_) = (await broker.client.get("/v1/predictions")).json()["results"]
    answer = await create(broker, "a changed fox", input={"image_input": [first["output"]]})
    assert answer.json()["status"] == "succeeded"
    assert answer.json()["input"]["image_input"] == [first["output"]]
    assert (await broker.get_task(answer.json()["id"]))["mode"] == "image-to-image"


async def test_order_of_another_dialect_is_a_prediction_too(broker: RunningBroker) -> None:
    task_id = await broker.create_task("a native fox", aspectRatio="1:1")
    prediction = await call(broker, lambda client: client.predictions.get(task_id))
    assert (prediction.model, prediction.input) == (MODEL, {"prompt": "a native fox", "aspect_ratio": "1:1"})


async def test_pro_has_the_resolution_of_the_original(broker: RunningBroker) -> None:
    path = "/v1/models/google/nano-banana-pro/predictions"
    answer = await broker.client.post(path, json={"input": {"prompt": "a large fox"}})
    assert (await broker.get_task(answer.json()["id"]))["resolution"] == "2K"


@pytest.mark.parametrize(
    ("path", "body", "status", "code", "text"),
    [
        ("models/x/unknown/predictions", {"input": {"prompt": "a"}}, 400, "unsupported_parameter", "Unknown model"),
        ("predictions", {"version": "0" * 64, "input": {"prompt": "a"}}, 400, "unsupported_parameter", "name the"),
        ("predictions", {"input": {"prompt": "a"}}, 400, "invalid_request", "version is required"),
        ("predictions", {"version": MODEL, "input": {}}, 400, "invalid_request", "input.prompt"),
        ("predictions", {"version": MODEL, "input": {"prompt": " "}}, 400, "invalid_prompt", "empty"),
        (
            "predictions",
            {"version": MODEL, "input": {"prompt": "a", "aspect_ratio": "7:5"}},
            400,
            "unsupported_parameter",
            "no aspect_ratio",
        ),
        ("predictions", {"version": MODEL, "input": {"prompt": "a", "image": "a.png"}}, 400, "invalid_image", "data"),
        ("predictions", {"version": MODEL, "input": {"prompt": "a", "images": [1]}}, 400, "invalid_request", "images"),
        (
            "predictions",
            {"version": MODEL, "input": {"prompt": "a"}, "webhook": "http://10.0.0.1/"},
            400,
            "invalid_request",
            "webhook is not",
        ),
        (
            "predictions",
            {"version": MODEL, "input": {"prompt": "a", "num_outputs": 2}, "webhook": "https://example.com/"},
            400,
            "unsupported_parameter",
            "one image",
        ),
    ],
)
async def test_wrong_order_is_refused_in_the_shape_of_replicate(
    broker: RunningBroker, path: str, body: dict[str, Any], status: int, code: str, text: str
) -> None:
    answer = await broker.client.post(f"/v1/{path}", json=body)
    problem = answer.json()
    assert (answer.status_code, problem["status"], problem["code"]) == (status, status, code)
    assert text in problem["detail"]
    assert "x-request-id" not in answer.headers or not answer.headers["x-request-id"].startswith("task_")


async def test_errors_are_those_of_the_sdk(broker: RunningBroker) -> None:
    with pytest.raises(ReplicateError, match="Unknown model") as refused:
        await run_model(broker, "a fox", "google/nano-bananas")
    assert (refused.value.status, refused.value.title) == (400, "Bad Request")
    with pytest.raises(ReplicateError) as missing:
        await call(broker, lambda client: client.predictions.get("task_0"))
    assert missing.value.status == 404
    with pytest.raises(ReplicateError) as unknown:
        await call(broker, lambda client: client.models.get("google/unknown"))
    assert unknown.value.status == 404
    assert unknown.value.title == "Not Found", "shared paths, too"

    def use_wrong_key() -> None:
        with sdk(broker, key="wrong-key-of-nobody") as client:
            client.predictions.list()

    with pytest.raises(ReplicateError) as unauthorized:
        await to_thread.run_sync(use_wrong_key)
    assert (unauthorized.value.status, unauthorized.value.title) == (401, "Unauthorized")
    token = await broker.client.get("/v1/predictions", headers={"authorization": f"Token {KEY}"})
    assert token.status_code == 200, "the older scheme"


async def test_failed_prediction_is_a_model_error(broker: RunningBroker) -> None:
    with pytest.raises(ModelError, match="E005") as failed:
        await run_model(broker, "a fox [mood:flagged]")
    assert failed.value.prediction.status == "failed"
    prediction = (await create(broker, "a fox [mood:noresult]")).json()
    assert prediction["error_detail"]["code"] == "no_image"
    assert (prediction["status"], prediction["output"]) == ("failed", None)


# -- webhooks


def validated(message: Any, secret: WebhookSigningSecret) -> dict[str, Any]:
    Webhooks.validate(headers=dict(message.headers), body=message.body.decode(), secret=secret, tolerance=60)
    document: dict[str, Any] = message.document
    return document


async def next_webhooks(receiver: Receiver, count: int) -> list[Any]:
    messages = list(await receiver.wait_received(count))
    receiver.received.clear()
    return messages


async def test_webhook_is_the_prediction_signed_by_the_secret_of_the_api(
    broker: RunningBroker, receiver: Receiver
) -> None:
    secret = await call(broker, lambda client: client.webhooks.default.secret())
    await run_model(broker, "an announced fox", webhook=receiver.url)
    (message,) = await next_webhooks(receiver, 1)
    document = validated(message, secret)
    assert (document["status"], document["input"]["prompt"]) == ("succeeded", "an announced fox")
    assert (await broker.client.get(document["output"])).headers["content-type"] == "image/png"
    shown = (await broker.client.get(document["urls"]["get"])).json()
    assert {**shown, "output": ""} == {**document, "output": ""}
    with pytest.raises(WebhookValidationError):
        Webhooks.validate(headers=dict(message.headers), body=message.body.decode() + " ", secret=secret)


async def test_only_chosen_events_are_announced(broker: RunningBroker, receiver: Receiver) -> None:
    chosen: Any = {"webhook": receiver.url, "webhook_events_filter": ["start", "completed"]}
    await run_model(broker, "a fox from the start", **chosen)
    documents = [message.document for message in await next_webhooks(receiver, 2)]
    assert sorted(document["status"] for document in documents) == ["processing", "succeeded"]
    assert documents[0]["id"] == documents[1]["id"]

    await create(broker, "a fox [mood:flagged]", webhook=receiver.url, webhook_events_filter=["output", "logs"])
    await create(broker, "a silent fox", webhook=receiver.url, webhook_events_filter=["start"])
    await create(broker, "a fox of the older form", webhook_completed=receiver.url)
    documents = [message.document for message in await next_webhooks(receiver, 2)]
    by_prompt = {document["input"]["prompt"]: document["status"] for document in documents}
    assert by_prompt == {"a silent fox": "processing", "a fox of the older form": "succeeded"}


# -- answers


async def test_image_is_a_link_where_clients_come_by_https(broker: RunningBroker) -> None:
    broker_host = broker.client.base_url.netloc.decode()
    answer = await broker.client.post(
        f"/v1/models/{MODEL}/predictions",
        json={"input": {"prompt": "a linked fox"}},
        headers={"prefer": "wait", "x-forwarded-proto": "https"},
    )
    prediction = answer.json()
    assert prediction["output"].startswith(f"https://{broker_host}/uploads/images/generated_")
    assert prediction["urls"]["cancel"] == f"https://{broker_host}/v1/predictions/{prediction['id']}/cancel"


async def test_client_that_left_gets_its_prediction_when_it_returns(broker: RunningBroker) -> None:
    host, port = broker.client.base_url.host, broker.client.base_url.port
    _, writer = await asyncio.open_connection(host, port)
    body = json.dumps({"input": {"prompt": "a fox that is asked for twice [mood:slow:0.5]"}}).encode()
    head = f"POST /v1/models/{MODEL}/predictions HTTP/1.1\r\nHost: {host}\r\nAuthorization: Bearer {KEY}\r\n"
    writer.write(f"{head}Prefer: wait\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body)
    await asyncio.sleep(0.15)
    writer.close()
    before = len(await broker.provider_jobs())
    assert size_of(await run_model(broker, "a fox that is asked for twice [mood:slow:0.5]"))
    assert len(await broker.provider_jobs()) == before


async def test_broker_that_stops_names_the_prediction(broker: RunningBroker) -> None:
    waiting = asyncio.create_task(create(broker, "a fox at the end [mood:slow:1]"))
    await asyncio.sleep(0.2)
    broker.services.queries.closing = True
    answer = await waiting
    broker.services.queries.closing = False
    assert (answer.status_code, answer.json()["status"]) == (202, "starting")


@pytest.mark.parametrize(
    ("prefer", "expected"),
    [
        ([], None),
        (["respond-async"], None),
        (["wait"], 60),
        (["wait=5"], 5),
        (["respond-async, wait=7"], 7),
        (["Wait = 3; x=1"], 3),
        (["wait=0"], 1),
        (["wait=900"], 60),
        (["waiting"], None),
        (["wait=x"], None),
    ],
)
def test_wait_is_read_from_prefer(prefer: list[str], expected: float | None) -> None:
    assert wait_seconds(prefer) == expected
