"""The dialect of kie.ai: envelopes, records and callbacks, seen by a plain client."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import json
import socket
import struct
import tracemalloc
from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
import pytest
from pydantic import SecretStr

from broker.api.dialects.kie.schemas import KieBase64Upload
from broker.errors import TASK_CODES
from broker.i18n import Messages
from broker.notifications.formats.kie import build_record
from broker.providers.kie.errors import ERRORS
from broker.sandbox.engine import Options
from storage.states import TaskState
from storage.tasks import Task
from tests.support.access_matrix import add_user, insert_key
from tests.support.api import png
from tests.support.brokers import RunningBroker, open_broker
from tests.support.faulty_http import answers as picture_answers
from tests.support.faulty_http import serve
from tests.support.samples import encoded, picture
from tests.support.servers.receiver import receiving

pytestmark = pytest.mark.anyio

SECRET = "whsec_" + base64.b64encode(b"s" * 32).decode()
QUICK = Options(duration=0.05, callback_spacing=0.05, creates_per_window=10_000)
CREATE = "/api/v1/jobs/createTask"
RECORD = "/api/v1/jobs/recordInfo"


@pytest.fixture
async def broker(tmp_path: Path) -> AsyncIterator[RunningBroker]:
    settings: dict[str, Any] = {"webhook_secrets": (SecretStr(SECRET),), "callback_allow": ("127.0.0.1",)}
    async with open_broker(tmp_path, options=QUICK, daily_budget=1.0, **settings) as running:
        yield running


async def create(broker: RunningBroker, model: str = "nano-banana-2", url: str | None = None, **fields: Any) -> Any:
    """Order, and return the answer; kie.ai's status is 200 whatever the code is."""
    body = {"model": model, "input": fields, **({"callBackUrl": url} if url else {})}
    answer = await broker.client.post(CREATE, json=body)
    assert answer.status_code == 200, answer.text
    return answer


async def wait_record(broker: RunningBroker, task: str) -> dict[str, Any]:
    """Poll as kie.ai's clients do, and return the record of the ended job."""
    async with asyncio.timeout(10):
        while True:
            answer = (await broker.client.get(RECORD, params={"taskId": task})).json()
            assert (answer["code"], answer["msg"]) == (200, "success"), answer
            if answer["data"]["state"] in {"success", "fail"}:
                record: dict[str, Any] = answer["data"]
                return record
            await asyncio.sleep(0.02)


async def test_order_ends_with_a_record_of_the_documented_shape(broker: RunningBroker) -> None:
    fields = {"prompt": "a red fox", "image_size": "16:9", "output_format": "png", "nsfw_checker": True}
    answer = await create(broker, "google/nano-banana", None, **fields)
    task = answer.json()["data"]["taskId"]
    assert (answer.json()["code"], answer.headers["x-request-id"]) == (200, task)
    assert answer.headers["x-ignored"] == "input.nsfw_checker"
    record = await wait_record(broker, task)
    assert (record["taskId"], record["model"], record["state"]) == (task, "google/nano-banana", "success")
    assert json.loads(record["param"]) == {
        "model": "google/nano-banana",
        "input": {"prompt": "a red fox", "image_size": "16:9", "output_format": "png"},
    }
    (url,) = json.loads(record["resultJson"])["resultUrls"]
    image = await broker.client.get(url)
    assert (image.headers["content-type"], url.startswith(str(broker.client.base_url))) == ("image/png", True)
    assert (record["failCode"], record["failMsg"], record["creditsConsumed"]) == ("", "", 4)
    assert record["completeTime"] - record["createTime"] == pytest.approx(record["costTime"], abs=2)
    assert (await broker.get_task(task))["aspectRatio"] == "16:9"


async def test_errors_have_a_code_and_no_data(broker: RunningBroker) -> None:
    refused = [
        await create(broker, "no-such-model", prompt="a fox"),
        await create(broker, "google/nano-banana-edit", prompt="a fox"),
        await create(broker, prompt=" "),
        await create(broker, prompt="a fox", aspect_ratio="7:3"),
        await create(broker, prompt="a fox", image_input="no list"),
        await create(broker, prompt="a fox", url="http://10.0.0.1/hook"),
        await broker.client.post(CREATE, json={"model": "nano-banana-2"}),
        await broker.client.get(RECORD, params={"taskId": f"task_{0:043x}"}),
    ]
    assert [(one.status_code, one.json()["code"], one.json()["data"]) for one in refused] == [(200, 422, None)] * 8
    missing = (await broker.client.get(RECORD)).json()
    assert missing == {"code": 400, "msg": "taskId parameter is required", "data": None}
    assert await broker.provider_jobs() == []


async def test_credits_are_what_is_left_of_the_budget(broker: RunningBroker) -> None:
    """1 USD is 200 credits."""
    assert (await broker.client.get("/api/v1/chat/credit")).json() == {"code": 200, "msg": "success", "data": 200}
    await wait_record(broker, (await create(broker, prompt="a red fox")).json()["data"]["taskId"])
    assert (await broker.client.get("/api/v1/chat/credit")).json()["data"] == 192
    large = {"model": "nano-banana-pro", "input": {"prompt": "a fox", "resolution": "4K"}}
    for _ in range(9):
        last = await broker.client.post(CREATE, json=large)
    assert (last.status_code, last.json()["code"]) == (429, 433)


async def test_credits_without_a_budget_are_the_balances_at_the_providers(tmp_path: Path) -> None:
    async with open_broker(tmp_path, options=Options(credits=60.62)) as broker, asyncio.timeout(5):
        while (answer := (await broker.client.get("/api/v1/chat/credit")).json())["code"] == 505:  # noqa: ASYNC110
            await asyncio.sleep(0.02)
        assert answer == {"code": 200, "msg": "success", "data": 60.62}


async def test_credits_of_a_user_are_what_is_left_of_the_own_quota(broker: RunningBroker) -> None:
    for quota, credit in (({"usd": 0.5}, (200, 100)), ({}, (505, None))):
        user = await add_user(broker, f"user with {len(quota)} quotas", quota=quota)
        _, key = await insert_key(broker, user, "a key")
        answer = await broker.client.get("/api/v1/chat/credit", headers={"Authorization": f"Bearer {key}"})
        assert (answer.json()["code"], answer.json()["data"]) == credit


async def test_callbacks_have_the_record_and_a_signature_of_id_and_time(broker: RunningBroker) -> None:
    async with receiving() as receiver:
        for number, prompt in enumerate(("a red fox", "a red fox [mood:flagged]"), 1):
            task = (await create(broker, prompt=prompt, url=receiver.url)).json()["data"]["taskId"]
            message = (await receiver.wait_received(number))[-1]
            record = await wait_record(broker, task)
            body = message.document
            assert message.headers["x-webhook-signature"] == signature(task, message.headers["x-webhook-timestamp"])
            assert (body["code"], body["data"]["state"]) == ((200, "success") if number == 1 else (501, "fail"))
            same = "taskId model state resultJson createTime completeTime creditsConsumed".split()
            assert {name: body["data"][name] for name in same} == {name: record[name] for name in same}
            assert body["data"]["failCode"] == (None if number == 1 else record["failCode"])
            param = json.loads(body["data"]["param"])
            assert json.loads(param["input"]) == {"prompt": prompt}, "kie.ai encodes it twice"


async def test_uploads_are_references_of_the_same_caller(broker: RunningBroker) -> None:
    client, picture = broker.client, png()
    encoded = base64.b64encode(picture).decode()
    named = {"uploadPath": "images/mine", "fileName": "../a b.png"}
    answers = [
        await client.post("/api/file-stream-upload", files={"file": ("x.png", picture)}, data=named),
        await client.post("/api/file-base64-upload", json={"base64Data": encoded, **named}),
        await client.post(
            "/api/file-base64-upload", json={"base64Data": f"data:image/png;base64,{encoded}", "uploadPath": "a"}
        ),
        await client.post("/api/file-url-upload", json={"fileUrl": f"{broker.sandbox}/files/a.png", **named}),
    ]
    refused = answers.pop()
    assert (refused.status_code, refused.json()["success"], refused.json()["code"]) == (200, False, 400)
    for answer in answers:
        assert (answer.status_code, answer.json()["success"], answer.json()["code"]) == (200, True, 200), answer.text
        data = answer.json()["data"]
        assert (data["mimeType"], data["fileSize"]) == ("image/png", len(picture))
        assert (await client.get(data["downloadUrl"])).content == picture
        created = await create(broker, "google/nano-banana-edit", prompt="a fox", image_urls=[data["downloadUrl"]])
        assert (await wait_record(broker, created.json()["data"]["taskId"]))["state"] == "success"
    assert answers[0].json()["data"]["filePath"] == "images/mine/../a b.png"


async def test_seed_that_is_no_safe_integer_is_refused(broker: RunningBroker) -> None:
    """Some providers take it, and their JSON parsers would read another one."""
    answer = await create(broker, prompt="a fox", seed=2**53)
    assert answer.json()["code"] == 422
    other = await broker.client.post("/api/v1/images/generate", json={"prompt": "a fox", "seed": -(2**53)})
    assert other.status_code == 400, other.text


def test_base64_with_many_blanks_takes_little_memory() -> None:
    text = "AA \n" * 2**19
    tracemalloc.start()
    try:
        upload = KieBase64Upload.model_validate({"base64Data": text, "uploadPath": "images"})
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert (len(upload.data), peak < 5 * len(text)) == (3 * 2**18, True), peak


async def test_field_that_another_overrides_is_ignored_and_not_kept(broker: RunningBroker) -> None:
    """Nothing checks it, so it could be anything."""
    fields = {"prompt": "a wide fox", "aspect_ratio": "16:9", "image_size": "x" * 10_000}
    answer = await create(broker, "google/nano-banana", None, **fields)
    assert answer.headers["x-ignored"] == "input.image_size"
    record = await wait_record(broker, answer.json()["data"]["taskId"])
    assert json.loads(record["param"])["input"] == {"prompt": "a wide fox", "aspect_ratio": "16:9"}


async def test_download_that_is_left_closes_its_file(broker: RunningBroker) -> None:
    form = {"file": ("noise.png", encoded("PNG", picture(1700, 1700)))}
    answer = await broker.client.post("/api/file-stream-upload", files=form, data={"uploadPath": "images"})
    url = answer.json()["data"]["downloadUrl"]
    assert (await broker.client.head(url)).headers["content-length"] == str(answer.json()["data"]["fileSize"])
    for _ in range(3):
        async with broker.client.stream("GET", url) as response:
            await anext(response.aiter_raw(1000))
    async with asyncio.timeout(5):
        while any("/file_" in name for name in open_files()):  # noqa: ASYNC110
            await asyncio.sleep(0.01)


def open_files() -> list[str]:
    names = list[str]()
    for descriptor in Path("/proc/self/fd").iterdir():
        with suppress(FileNotFoundError):
            names.append(str(descriptor.readlink()))
    return names


async def test_file_at_an_address_is_uploaded(tmp_path: Path) -> None:
    async with (
        serve(picture_answers("200 OK", png())) as server,
        open_broker(tmp_path, options=QUICK, download_allow=("127.0.0.1",)) as broker,
    ):
        body = {"fileUrl": server.url("/pictures/a.png"), "uploadPath": "images"}
        answer = await broker.client.post("/api/file-url-upload", json=body)
        assert answer.json()["data"]["fileName"] == "a.png", answer.text


@pytest.mark.parametrize(
    "wrong",
    [
        {"uploadPath": "/images", "base64Data": "aGk="},
        {"uploadPath": "images/", "base64Data": "aGk="},
        {"base64Data": "aGk="},
        {"uploadPath": "images", "base64Data": "no base64"},
        {"uploadPath": "images", "base64Data": "bm8gaW1hZ2U="},
    ],
)
async def test_upload_that_is_wrong_is_refused(broker: RunningBroker, wrong: dict[str, str]) -> None:
    answer = await broker.client.post("/api/file-base64-upload", json=wrong)
    assert {**answer.json(), "msg": ""} == {"success": False, "code": 400, "msg": "", "data": None}
    form = {name: value for name, value in wrong.items() if name == "uploadPath"}
    answer = await broker.client.post("/api/file-stream-upload", files={"file": ("a.png", b"no image")}, data=form)
    assert {**answer.json(), "msg": ""} == {"success": False, "code": 400, "msg": "", "data": None}


@pytest.mark.parametrize("address", ["http://[", "http://ex\u2100mple.com/a.png", "", "http://a:99999/"])
async def test_upload_from_what_is_no_address_is_refused(broker: RunningBroker, address: str) -> None:
    answer = await broker.client.post("/api/file-url-upload", json={"fileUrl": address, "uploadPath": "images"})
    assert (answer.status_code, answer.json()["success"], answer.json()["code"]) == (200, False, 400), answer.text


def signature(task: str, timestamp: str) -> str:
    digest = hmac.digest(SECRET.encode(), f"{task}.{timestamp}".encode(), hashlib.sha256)
    return base64.b64encode(digest).decode()


async def test_order_whose_answer_was_cut_off_is_not_made_twice(broker: RunningBroker) -> None:
    host, port = broker.client.base_url.host, broker.client.base_url.port
    reader, writer = await asyncio.open_connection(host, port)
    body = json.dumps({"model": "nano-banana-2", "input": {"prompt": "a red fox"}}).encode()
    head = f"POST {CREATE} HTTP/1.1\r\nHost: {host}:{port}\r\nContent-Length: {len(body)}\r\n\r\n"
    writer.write(head.encode() + body)
    await reader.readexactly(10)
    writer.transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()
    task = (await create(broker, prompt="a red fox")).json()["data"]["taskId"]
    await wait_record(broker, task)
    assert len(await broker.provider_jobs()) == 1


KEPT = {"safety_input", "safety_output", "no_image", "provider_rejected", "provider_credits"}
KEPT |= {"provider_rate_limited", "provider_unavailable", "provider_error"}
CHANGED = {"provider_auth": "provider_unavailable", "canceled": "provider_rejected"}
"""The others are faults of the service to a broker in front."""


@pytest.mark.parametrize("code", sorted(TASK_CODES))
def test_reason_of_a_failure_is_understood_by_a_broker_in_front(code: str) -> None:
    task = Task(
        id="task_1", batch="batch_1", caller="house:local", due_at=0, provider="kie", model="nano-banana-2", mode="",
        prompt="", deadline_at=0, created_at=0, updated_at=0, entered_at=0, ended_at=1, state=TaskState.FAILED,
        error_code=code,
    )  # fmt: skip
    record = build_record(task, [], "", Messages.load())
    understood = ERRORS.classify(int(record.fail_code or ""), record.fail_msg or "")
    assert understood.code == (code if code in KEPT else CHANGED.get(code, "provider_error"))


async def test_key_is_needed(tmp_path: Path) -> None:
    async with open_broker(tmp_path, api_keys=(SecretStr("key-of-a-caller-0123456789"),)) as broker:
        answer: httpx.Response = await broker.client.get(RECORD)
        assert (answer.status_code, answer.json()["code"], answer.json()["data"]) == (401, 401, None)
