"""Sandbox: documented behaviour of the provider, and every fault."""

from __future__ import annotations

import asyncio
import io
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import anyio
import httpx
import pytest
from PIL import Image

from broker.sandbox import painter
from broker.sandbox.dialects import DIALECTS
from broker.sandbox.dialects.kie.records import compute_signature
from broker.sandbox.engine import Options
from broker.sandbox.faults import Fault, UnknownFault
from broker.sandbox.jobs import Files
from broker.sandbox.server import serve_sandbox
from tests.support.clock import ManualClock
from tests.support.small_disk import BLOCK_BYTES, small_disk

pytestmark = pytest.mark.anyio

VECTOR_KEY, VECTOR_ID = "kie-test-hmac-key", "558a0e58d58a6cb69e5c6a55170398da"
STATES = ("waiting", "queuing", "generating", "success")
FAST_SECONDS = 0.01
"""Duration of a job, and the pause between two attempts of a callback."""
WAIT_SECONDS = 15
"""Limit of every wait; on an idle machine none takes a second."""


@dataclass(frozen=True, kw_only=True)
class ReceivedCallback:
    """Received callback."""

    path: str
    headers: dict[str, str]
    body: dict[str, Any]

    @property
    def data(self) -> dict[str, Any]:
        data: dict[str, Any] = self.body["data"]
        return data


@dataclass(kw_only=True)
class Receiver:
    """HTTP server for callbacks. answers: statuses of the first responses, then 200."""

    base: str = ""
    answers: list[int] = field(default_factory=list)
    callbacks: list[ReceivedCallback] = field(default_factory=list)
    arrived: asyncio.Condition = field(default_factory=asyncio.Condition)

    @property
    def url(self) -> str:
        return f"{self.base}/hook?token=secret"

    async def wait_for(self, count: int) -> list[ReceivedCallback]:
        async with asyncio.timeout(WAIT_SECONDS), self.arrived:
            await self.arrived.wait_for(lambda: len(self.callbacks) >= count)
        return self.callbacks[:count]

    async def receive(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        path, *lines = head.split(" ", 1)[1].splitlines()
        headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}
        body = json.loads(await reader.readexactly(int(headers["content-length"])))
        status = self.answers.pop(0) if self.answers else 200
        async with self.arrived:
            self.callbacks.append(ReceivedCallback(path=path.split()[0], headers=headers, body=body))
            self.arrived.notify_all()
        writer.write(f"HTTP/1.1 {status} So\r\nContent-Length: 0\r\nConnection: close\r\n\r\n".encode())
        await writer.drain()
        writer.close()


@dataclass(frozen=True, kw_only=True)
class SandboxClient:
    """Client of a sandbox."""

    base: str
    client: httpx.AsyncClient

    async def create(self, prompt: str, callback: str | None = None, model: str = "nano-banana-2", **more: Any) -> Any:
        body = {"model": model, "callBackUrl": callback, "input": {"prompt": prompt, "aspect_ratio": "1:1", **more}}
        return await self.client.post("/api/v1/jobs/createTask", json=body)

    async def task(self, prompt: str, callback: str | None = None, **more: Any) -> str:
        task_id = (await self.create(prompt, callback, **more)).json()["data"]["taskId"]
        assert isinstance(task_id, str)
        return task_id

    async def read(self, task_id: str) -> Any:
        return (await self.client.get("/api/v1/jobs/recordInfo", params={"taskId": task_id})).json()

    async def wait_for_end(self, task_id: str) -> Any:
        """Poll until the job has ended and return its record."""
        async with asyncio.timeout(WAIT_SECONDS):
            while True:
                body = await self.read(task_id)
                if body["data"] and body["data"]["state"] in {"success", "fail"}:
                    return body["data"]

    async def urls(self, prompt: str, **more: Any) -> list[str]:
        record = await self.wait_for_end(await self.task(prompt, **more))
        urls = json.loads(record["resultJson"])["resultUrls"]
        assert isinstance(urls, list)
        return urls

    async def result(self, prompt: str, **more: Any) -> httpx.Response:
        return await self.client.get((await self.urls(prompt, **more))[0])

    async def list_jobs(self) -> list[Any]:
        jobs = (await self.client.get("/sandbox/jobs")).json()["jobs"]
        assert isinstance(jobs, list)
        return jobs

    async def wait_until_settled(self) -> list[Any]:
        """Return the jobs once every callback is answered or given up."""
        async with asyncio.timeout(WAIT_SECONDS):
            while True:
                jobs = await self.list_jobs()
                if all(job["settled"] for job in jobs):
                    return jobs


@asynccontextmanager
async def running_sandbox(**options: Any) -> AsyncIterator[SandboxClient]:
    chosen = {"duration": FAST_SECONDS, "callback_spacing": FAST_SECONDS, "creates_per_window": 1000, **options}
    async with serve_sandbox(options=Options(**chosen)) as base:
        headers = {"Authorization": "Bearer any"}
        async with httpx.AsyncClient(base_url=base, headers=headers, timeout=10, verify=False) as client:
            yield SandboxClient(base=base, client=client)


@pytest.fixture
async def sandbox() -> AsyncIterator[SandboxClient]:
    async with running_sandbox() as sandbox:
        yield sandbox


@pytest.fixture
async def receiver() -> AsyncIterator[Receiver]:
    receiver = Receiver()
    server = await asyncio.start_server(receiver.receive, "127.0.0.1", 0)
    async with server:
        receiver.base = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        yield receiver


def opened(response: httpx.Response) -> Image.Image:
    image = Image.open(io.BytesIO(response.content))
    image.load()
    return image


def png(colour: str, size: tuple[int, int] = (60, 40)) -> bytes:
    out = io.BytesIO()
    Image.new("RGB", size, colour).save(out, "png")
    return out.getvalue()


# Documented behaviour


async def test_job_passes_its_states_and_the_image_is_downloaded() -> None:
    async with running_sandbox(duration=0.2) as sandbox:
        task_id = await sandbox.task("a red fox")
        states: list[str] = []
        async with asyncio.timeout(WAIT_SECONDS):
            while not states or states[-1] != "success":
                states.append((await sandbox.read(task_id))["data"]["state"])
        assert list(dict.fromkeys(states)) == [state for state in STATES if state in states]
        record = await sandbox.wait_for_end(task_id)
        assert json.loads(record["param"])["input"]["prompt"] == "a red fox"
        assert record["creditsConsumed"] == 8
        picture = await sandbox.client.get(json.loads(record["resultJson"])["resultUrls"][0])
        assert picture.headers["content-type"] == "image/jpeg"
        assert opened(picture).format == "JPEG"


async def test_callback_contains_the_record_in_its_own_format(sandbox: SandboxClient, receiver: Receiver) -> None:
    """JSON in JSON in JSON, null for empty, seconds for milliseconds."""
    task_id = await sandbox.task("a red fox", receiver.url)
    (callback,) = await receiver.wait_for(1)
    assert callback.path == "/hook?token=secret"
    assert (callback.body["code"], callback.data["taskId"], callback.data["state"]) == (200, task_id, "success")
    assert json.loads(json.loads(callback.data["param"])["input"])["prompt"] == "a red fox"
    assert callback.data["failCode"] is None
    assert "x-webhook-signature" not in callback.headers
    assert (await sandbox.client.get(json.loads(callback.data["resultJson"])["resultUrls"][0])).status_code == 200


async def test_signature_matches_the_documented_vector() -> None:
    assert compute_signature(VECTOR_KEY, VECTOR_ID, 1769670760) == "wTVEfbytp2vi0qjI+xRocKznoIZpoBXyB2Ywc3LnniU="


async def test_callback_is_signed_with_a_key(receiver: Receiver, clock: ManualClock) -> None:
    async with running_sandbox(webhook_key=VECTOR_KEY, now=clock.now) as sandbox:
        task_id = await sandbox.task("a red fox", receiver.url)
        (callback,) = await receiver.wait_for(1)
        assert callback.headers["x-webhook-timestamp"] == str(int(clock.now()))
        assert callback.headers["x-webhook-signature"] == compute_signature(VECTOR_KEY, task_id, int(clock.now()))


async def test_rejected_callback_is_retried_three_times(sandbox: SandboxClient, receiver: Receiver) -> None:
    receiver.answers = [500, 404, 202]
    await sandbox.task("answered in the end", receiver.url)
    (job,) = await sandbox.wait_until_settled()
    assert [sent["status"] for sent in job["callbacks"]] == [500, 404, 202]
    receiver.answers = [500] * 9
    await sandbox.task("never answered", receiver.url)
    job = (await sandbox.wait_until_settled())[1]
    assert [sent["attempt"] for sent in job["callbacks"]] == [1, 2, 3, 4]


async def test_callback_to_a_closed_port_is_retried(sandbox: SandboxClient) -> None:
    await sandbox.task("closed port", "http://127.0.0.1:9/hook")
    (job,) = await sandbox.wait_until_settled()
    assert [sent["status"] for sent in job["callbacks"]] == [None] * 4


async def test_job_list_counts_reads_and_callbacks(sandbox: SandboxClient, receiver: Receiver) -> None:
    task_id = await sandbox.task("once", receiver.url)
    await receiver.wait_for(1)
    await sandbox.read(task_id)
    await sandbox.read(task_id)
    assert (await sandbox.create("[mood:code:402]")).json()["code"] == 402
    (job,) = await sandbox.wait_until_settled()
    assert (job["taskId"], job["prompt"], job["reads"]) == (task_id, "once", 2)
    assert job["request"]["callBackUrl"] == receiver.url
    assert [(sent["kind"], sent["status"]) for sent in job["callbacks"]] == [("true", 200)]


SIZES = [
    ("google/nano-banana", {"aspect_ratio": "21:9"}, (1536, 672)),
    ("google/nano-banana", {"aspect_ratio": "auto"}, (1024, 1024)),
    ("nano-banana-2", {"aspect_ratio": "21:9"}, (1584, 672)),
    ("nano-banana-2", {"aspect_ratio": "1:8"}, (384, 3072)),
    ("nano-banana-2", {"aspect_ratio": "16:9", "resolution": "2K"}, (2752, 1536)),
    ("nano-banana-2-lite", {"aspect_ratio": "9:16"}, (768, 1376)),
]


async def test_image_has_the_documented_pixels(sandbox: SandboxClient) -> None:
    for model, fields, size in SIZES:
        assert opened(await sandbox.result("size", model=model, **fields)).size == size


async def test_aspect_ratio_takes_precedence_over_image_size(sandbox: SandboxClient) -> None:
    fields = {"aspect_ratio": "2:3", "image_size": "16:9"}
    assert opened(await sandbox.result("both", model="google/nano-banana", **fields)).size == (832, 1248)


async def test_image_has_the_requested_format(sandbox: SandboxClient) -> None:
    assert opened(await sandbox.result("jpeg", model="google/nano-banana", output_format="jpeg")).format == "JPEG"
    assert opened(await sandbox.result("png", output_format="png")).format == "PNG"


async def test_equal_requests_give_equal_bytes() -> None:
    """In two sandboxes, without a common cache."""
    pictures = []
    for _ in range(2):
        async with running_sandbox() as sandbox:
            pictures.append((await sandbox.result("twins", seed=7)).content)
    assert pictures[0] == pictures[1]
    painting = painter.PaintOptions(prompt="twins", size=(64, 64), image_format="png")
    other = painter.PaintOptions(prompt="twins", size=(64, 64), image_format="png", seed=8)
    assert painter.paint(painting) != painter.paint(other)


@pytest.mark.parametrize("prompt", ["\ud800 half a pair", "\0\x1b[31m", "红狐 🦊 שועל " * 50, "x" * 20_000, "a\nb\tc"])
async def test_any_prompt_can_be_painted(sandbox: SandboxClient, prompt: str) -> None:
    body = {"model": "nano-banana-2", "input": {"prompt": prompt, "aspect_ratio": "1:1"}}
    answer = await sandbox.client.post("/api/v1/jobs/createTask", content=json.dumps(body))
    assert (await sandbox.wait_for_end(answer.json()["data"]["taskId"]))["state"] == "success"
    assert (await sandbox.list_jobs())[0]["prompt"] == prompt


async def test_references_appear_in_the_result_and_decide_auto(sandbox: SandboxClient) -> None:
    upload = await sandbox.client.post(
        "/api/file-stream-upload", files={"file": ("red.png", png("red"))}, data={"uploadPath": "images"}
    )
    url = upload.json()["data"]["downloadUrl"]
    assert (await sandbox.client.get(url)).headers["content-type"] == "image/png"
    fields = {"image_urls": [url], "image_size": "auto", "aspect_ratio": "auto"}
    picture = opened(await sandbox.result("in a hat", model="google/nano-banana-edit", **fields)).convert("RGB")
    assert picture.size == (1248, 832)
    colours = {picture.getpixel((x, y)) for x in range(0, 400, 8) for y in range(600, 832, 8)}
    assert (255, 0, 0) in colours


async def test_unusable_reference_fails_the_job(sandbox: SandboxClient) -> None:
    async def answer_nonsense(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"hello\r\n\r\n")
        writer.close()

    async with await asyncio.start_server(answer_nonsense, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        unusable = ("http://127.0.0.1:9/x.png", f"http://127.0.0.1:{port}/", "/sandbox/jobs", "/p/none")
        for url in (url if "://" in url else sandbox.base + url for url in unusable):
            record = await sandbox.wait_for_end(await sandbox.task("reference", image_input=[url]))
            assert (record["state"], record["failCode"], record["creditsConsumed"]) == ("fail", "400", 0)


async def test_uploaded_file_is_served(sandbox: SandboxClient) -> None:
    async def upload(content: bytes, folder: str) -> dict[str, Any]:
        answer = await sandbox.client.post(UPLOAD, files={"file": ("x.png", content)}, data={"uploadPath": folder})
        found: dict[str, Any] = answer.json()
        return found

    stored = (await upload(b"hallo", "b/c"))["data"]
    assert (stored["filePath"], stored["fileSize"], stored["mimeType"]) == ("b/c/x.png", 5, "image/png")
    assert (await sandbox.client.get(stored["downloadUrl"])).content == b"hallo"
    for rejected in (await upload(b"hallo", "/a"), await upload(b"", "a")):
        assert not rejected["success"]
    assert (await sandbox.client.post(UPLOAD, data={"uploadPath": "a"})).json()["code"] == 400


UPLOAD = "/api/file-stream-upload"

INVALID_REQUESTS: list[tuple[str, dict[str, Any]]] = [
    ("google/nano-banana-2", {}),
    ("nano-banana-2", {"prompt": ""}),
    ("nano-banana-2", {"prompt": "x" * 20_001}),
    ("nano-banana-pro", {"prompt": "x" * 10_001}),
    ("nano-banana-pro", {"aspect_ratio": "1:8"}),
    ("nano-banana-pro", {"output_format": "jpeg"}),
    ("nano-banana-pro", {"resolution": "2k"}),
    ("nano-banana-pro", {"image_input": ["http://x.example/1.png"] * 9}),
    ("nano-banana-pro", {"image_input": ["data:image/png;base64,aaaa"]}),
    ("google/nano-banana", {"image_urls": ["http://x.example/1.png"]}),
    ("google/nano-banana", {"output_format": "jpg"}),
    ("google/nano-banana-edit", {}),
    ("nano-banana-2", {"seed": "seven"}),
    ("nano-banana-2", {"prompt": "[mood:sleepy]"}),
    ("nano-banana-2", {"prompt": "[mood:late:soon]"}),
]


async def test_invalid_request_is_rejected_with_422(sandbox: SandboxClient) -> None:
    for model, fields in INVALID_REQUESTS:
        answer = await sandbox.create(**{"prompt": "p", **fields}, model=model)
        assert (answer.status_code, answer.json()["code"]) == (200, 422), (model, fields)
    lite = {"model": "nano-banana-2-lite", "input": {"prompt": "no ratio"}}
    assert (await sandbox.client.post("/api/v1/jobs/createTask", json=lite)).json()["code"] == 422
    assert (await sandbox.create("p", "ftp://x.example/")).json()["code"] == 422
    assert (await sandbox.client.post("/api/v1/jobs/createTask", content="{")).json()["code"] == 400
    assert not await sandbox.list_jobs()


async def test_key_is_required() -> None:
    async with running_sandbox(api_key="right") as sandbox:
        for header, code in [("", 401), ("Basic any", 401), ("Bearer any", 401), ("Bearer right", 200)]:
            answer = await sandbox.client.get("/api/v1/chat/credit", headers={"Authorization": header})
            assert answer.json()["code"] == code


async def test_window_admits_twenty_creates(clock: ManualClock) -> None:
    async with running_sandbox(now=clock.now, creates_per_window=2) as sandbox:
        codes = [(await sandbox.create("p [mood:failed]")).json()["code"] for _ in range(3)]
        assert codes == [200, 200, 429]
        clock.advance(10)
        assert (await sandbox.create("p [mood:failed]")).json()["code"] == 200
        assert len(await sandbox.list_jobs()) == 3


async def test_credits_are_charged_for_success_only() -> None:
    async with running_sandbox(credits=8.62) as sandbox:
        await sandbox.wait_for_end(await sandbox.task("p [mood:failed]"))
        await sandbox.wait_for_end(await sandbox.task("p"))
        assert (await sandbox.client.get("/api/v1/chat/credit")).json()["data"] == 0.62
        assert (await sandbox.create("p")).json()["code"] == 402


async def test_download_url_returns_a_link_for_twenty_minutes(clock: ManualClock) -> None:
    async with running_sandbox(now=clock.now) as sandbox:
        (url,) = await sandbox.urls("p")
        fresh = (await sandbox.client.post("/api/v1/common/download-url", json={"url": url})).json()["data"]
        assert (await sandbox.client.get(fresh)).status_code == 200
        clock.advance(1201)
        assert (await sandbox.client.get(fresh)).status_code == 404
        foreign = {"url": "http://elsewhere.example/x.png"}
        assert (await sandbox.client.post("/api/v1/common/download-url", json=foreign)).json()["code"] == 422


async def test_unknown_tasks_and_routes(sandbox: SandboxClient) -> None:
    assert (await sandbox.read("0" * 32))["code"] == 422
    assert (await sandbox.read(""))["code"] == 400
    assert (await sandbox.client.get("/api/v1/jobs/createTask")).status_code == 405
    assert (await sandbox.client.get("/no/such/route")).json()["code"] == 404
    assert (await sandbox.client.get("/p/unknown_0.png")).status_code == 404
    assert (await sandbox.client.get("/files/nothing.png")).status_code == 404


async def test_restarted_sandbox_resumes_its_jobs(tmp_path: Path, receiver: Receiver) -> None:
    """It serves the same image, finishes the job in progress, and sends the callbacks that are due, each once."""
    async with running_sandbox(data_dir=tmp_path) as sandbox:
        files = {"file": ("red.png", png("red"))}
        uploaded = await sandbox.client.post("/api/file-stream-upload", files=files, data={"uploadPath": "a"})
        reference = uploaded.json()["data"]["downloadUrl"]
        done = await sandbox.task("done", receiver.url, image_input=[reference])
        await sandbox.wait_until_settled()
        (url,) = json.loads((await sandbox.wait_for_end(done))["resultJson"])["resultUrls"]
        picture = (await sandbox.client.get(url)).content
        failed = await sandbox.task("failed [mood:failed] [mood:late:60]", receiver.url)
        await sandbox.wait_for_end(failed)
        working = await sandbox.task("[mood:slow:60]", receiver.url, image_input=[reference])
    with (tmp_path / "journal.jsonl").open("ab") as journal:
        journal.write(b'{"id": "torn')
    later = ManualClock((await _created_at(tmp_path)) + 120)
    async with running_sandbox(data_dir=tmp_path, now=later.now) as sandbox:
        callbacks = await receiver.wait_for(3)
        jobs = await sandbox.wait_until_settled()
        assert [job["taskId"] for job in jobs] == [done, failed, working]
        assert [len(job["callbacks"]) for job in jobs] == [1, 1, 1]
        assert {callback.data["taskId"]: callback.body["code"] for callback in callbacks} == {
            done: 200,
            failed: 501,
            working: 200,
        }
        (url,) = json.loads((await sandbox.wait_for_end(done))["resultJson"])["resultUrls"]
        assert url.startswith(sandbox.base)
        assert (await sandbox.client.get(url)).content == picture
        assert (await sandbox.client.get("/api/v1/chat/credit")).json()["data"] == 1000 - 16
    async with running_sandbox(data_dir=tmp_path) as sandbox:
        assert len(await sandbox.wait_until_settled()) == 3
    assert len(receiver.callbacks) == 3


async def test_sandbox_on_a_full_disk_goes_on_in_memory(tmp_path: Path, receiver: Receiver) -> None:
    """It runs in the process of the broker, which would end with it. What it stores later can be read."""
    with small_disk(tmp_path / "disk", 1) as disk:
        folder = disk.folder / "sandbox"
        async with running_sandbox(data_dir=folder) as sandbox:
            files = {"file": ("red.png", png("red"))}
            uploaded = await sandbox.client.post("/api/file-stream-upload", files=files, data={"uploadPath": "a"})
            reference = uploaded.json()["data"]["downloadUrl"]
            await sandbox.task("before", receiver.url)
            await sandbox.wait_until_settled()
            disk.fill()
            with (folder / "journal.jsonl").open("ab", buffering=0) as journal:  # half a line has room
                journal.write(b" " * (BLOCK_BYTES - journal.tell() % BLOCK_BYTES - 100))
            during = await sandbox.task("during", receiver.url)
            pictured = await sandbox.task("pictured", receiver.url, image_input=[reference])
            assert (await sandbox.wait_for_end(during))["state"] == "success"
            assert (await sandbox.wait_for_end(pictured))["state"] == "fail"
            await receiver.wait_for(3)
            disk.free()
            after = await sandbox.task("after", receiver.url)
            await sandbox.wait_until_settled()
        async with running_sandbox(data_dir=folder) as sandbox:
            assert after in [job["taskId"] for job in await sandbox.wait_until_settled()]


async def _created_at(folder: Path) -> float:
    first = await anyio.Path(folder / "journal.jsonl").read_text()
    created_at = json.loads(first.splitlines()[0])["created_at"]
    assert isinstance(created_at, float)
    return created_at


async def test_error_of_the_caller_is_raised_unchanged() -> None:
    """Work is under way when it happens: no exception group may hide the caller's own error."""
    with pytest.raises(LookupError, match="mine"):
        async with running_sandbox() as sandbox:
            await sandbox.task("[mood:slow:60]")
            raise LookupError("mine")


# Faults


def test_every_fault_is_described() -> None:
    assert all(fault.doc for dialect in DIALECTS.values() for fault in dialect.faults)


async def test_tag_overrides_the_mood_of_the_sandbox(receiver: Receiver) -> None:
    async with running_sandbox(mood="failed, message") as sandbox:
        body = (await sandbox.create("p")).json()
        assert "message" in body
        assert (await sandbox.wait_for_end(body["data"]["taskId"]))["state"] == "fail"
        assert (await sandbox.wait_for_end(await sandbox.task("p [mood:good]")))["state"] == "success"
    with pytest.raises(UnknownFault, match="there are good, status"):
        async with running_sandbox(mood="sleepy"):
            pass


async def test_code_hides_an_error_behind_http_200(sandbox: SandboxClient) -> None:
    answer = await sandbox.create("[mood:code:402]")
    assert (answer.status_code, answer.json()["code"], answer.json()["data"]) == (200, 402, None)
    assert not await sandbox.list_jobs()


async def test_status_is_an_http_status(sandbox: SandboxClient) -> None:
    assert (await sandbox.create("[mood:status:503]")).status_code == 503
    assert not await sandbox.list_jobs()


async def test_limited_and_down_end_after_their_count(sandbox: SandboxClient) -> None:
    first, second, third = [await sandbox.create("[mood:limited:2]") for _ in range(3)]
    assert (first.status_code, first.headers["retry-after"], second.status_code) == (429, "1", 429)
    assert third.json()["code"] == 200
    bare = await sandbox.create("[mood:limited_bare]")
    assert (bare.status_code, "retry-after" in bare.headers) == (429, False)
    down = await sandbox.create("[mood:down]")
    assert (down.status_code, down.headers["content-type"]) == (503, "text/html; charset=utf-8")
    assert (await sandbox.create("[mood:down]")).json()["code"] == 200
    assert len(await sandbox.list_jobs()) == 2


async def test_silent_accepts_the_job_and_closes_the_connection(sandbox: SandboxClient, receiver: Receiver) -> None:
    with pytest.raises(httpx.RemoteProtocolError):
        await sandbox.create("[mood:silent]", receiver.url)
    (callback,) = await receiver.wait_for(1)
    assert [job["taskId"] for job in await sandbox.list_jobs()] == [callback.data["taskId"]]


async def test_silent_lost_sends_no_callback(sandbox: SandboxClient, receiver: Receiver) -> None:
    with pytest.raises(httpx.RemoteProtocolError):
        await sandbox.create("[mood:silent_lost]", receiver.url)
    (job,) = await sandbox.wait_until_settled()
    assert (job["state"], job["callbacks"], receiver.callbacks) == ("success", [], [])


async def test_slow_answer_outlasts_the_client(sandbox: SandboxClient) -> None:
    with pytest.raises(httpx.ReadTimeout):
        await sandbox.client.post(
            "/api/v1/jobs/createTask",
            json={"model": "nano-banana-2", "input": {"prompt": "[mood:slow_answer:0.3]"}},
            timeout=httpx.Timeout(10, read=0.1),
        )
    assert len(await sandbox.list_jobs()) == 1


async def test_early_calls_back_before_it_answers(sandbox: SandboxClient, receiver: Receiver) -> None:
    receiver.answers = [503]
    task_id = await sandbox.task("[mood:early]", receiver.url)
    assert [callback.data["taskId"] for callback in receiver.callbacks] == [task_id] * 2
    assert [sent["status"] for sent in (await sandbox.list_jobs())[0]["callbacks"]] == [503, 200]


async def test_envelopes_change_their_shape(sandbox: SandboxClient, receiver: Receiver) -> None:
    answer = (await sandbox.create("[mood:message] [mood:code_string]", receiver.url)).json()
    (callback,) = await receiver.wait_for(1)
    for body in (answer, await sandbox.read(answer["data"]["taskId"]), callback.body):
        assert (body["code"], "msg" in body, "message" in body) == ("200", False, True)


async def test_slow_extends_the_job(sandbox: SandboxClient) -> None:
    task_id = await sandbox.task("[mood:slow:60]")
    assert (await sandbox.read(task_id))["data"]["state"] == "waiting"


async def test_failures_have_code_and_message(sandbox: SandboxClient, receiver: Receiver) -> None:
    failed = await sandbox.wait_for_end(await sandbox.task("[mood:failed]", receiver.url))
    assert (failed["failCode"], failed["failMsg"][:23]) == ("500", "Gemini could not genera")
    flagged = await sandbox.wait_for_end(await sandbox.task("[mood:flagged]"))
    assert (flagged["failCode"], "flagged as sensitive" in flagged["failMsg"]) == ("400", True)
    (callback,) = await receiver.wait_for(1)
    assert (callback.body["code"], callback.data["state"], callback.data["resultJson"]) == (501, "fail", None)


async def test_internal_fails_once_and_the_next_submission_succeeds(sandbox: SandboxClient) -> None:
    records = [await sandbox.wait_for_end(await sandbox.task("[mood:internal]")) for _ in range(2)]
    assert [record["state"] for record in records] == ["fail", "success"]
    assert records[0]["failMsg"] == "Internal Error, Please try again later."


async def test_grace_delays_the_record(sandbox: SandboxClient, clock: ManualClock) -> None:
    task_id = await sandbox.task("[mood:grace:2]")
    assert [(await sandbox.read(task_id))["code"] for _ in range(3)] == [422, 422, 200]
    async with running_sandbox(now=clock.now) as other:
        task_id = await other.task("[mood:grace_seconds:90]")
        assert (await other.read(task_id))["msg"] == "recordInfo is null"
        clock.advance(90)
        assert (await other.read(task_id))["code"] == 200


async def test_unknown_state_and_backwards_end_in_success(sandbox: SandboxClient) -> None:
    task_id = await sandbox.task("[mood:unknown_state:1]")
    assert (await sandbox.read(task_id))["data"]["state"] == "contemplating"
    assert (await sandbox.wait_for_end(task_id))["state"] == "success"
    task_id = await sandbox.task("[mood:backwards:1]")
    await sandbox.wait_for_end(task_id)
    back, again = [(await sandbox.read(task_id))["data"] for _ in range(2)]
    assert (back["state"], back["resultJson"], again["state"]) == ("generating", None, "success")


async def test_noresult_is_empty_in_four_ways(sandbox: SandboxClient) -> None:
    found = [
        (await sandbox.wait_for_end(await sandbox.task(f"[mood:noresult:{way}]")))["resultJson"] for way in range(4)
    ]
    assert found == [None, "", '{"resultUrls":[]}', '{"resultUrls":["http']


async def test_several_results_and_a_dead_one(sandbox: SandboxClient) -> None:
    many = [await sandbox.client.get(url) for url in await sandbox.urls("[mood:multi:2]")]
    assert [answer.status_code for answer in many] == [200, 200]
    assert many[0].content != many[1].content
    some = [await sandbox.client.get(url) for url in await sandbox.urls("[mood:partial]")]
    assert [answer.status_code for answer in some] == [200, 404]


async def test_private_result_urls(sandbox: SandboxClient) -> None:
    assert await sandbox.urls("[mood:private_url]") == ["http://10.0.0.1/x.png"]
    moved = await sandbox.result("[mood:redirect_private]")
    assert (moved.status_code, moved.headers["location"][:23]) == (302, "http://169.254.169.254/")


async def test_lost_sends_no_callback(sandbox: SandboxClient, receiver: Receiver) -> None:
    await sandbox.task("[mood:lost]", receiver.url)
    await sandbox.wait_until_settled()
    assert receiver.callbacks == []


async def test_late_waits_and_twice_repeats(sandbox: SandboxClient, receiver: Receiver) -> None:
    task_id = await sandbox.task("[mood:late:0.2] [mood:twice:3]", receiver.url)
    record = await sandbox.wait_for_end(task_id)
    assert [callback.data["taskId"] for callback in await receiver.wait_for(3)] == [task_id] * 3
    (job,) = await sandbox.wait_until_settled()
    assert job["callbacks"][0]["at"] * 1000 - record["completeTime"] >= 195


async def test_disorder_sends_contradictions_after_the_true_callback(
    sandbox: SandboxClient, receiver: Receiver
) -> None:
    await sandbox.task("[mood:disorder]", receiver.url)
    callbacks = await receiver.wait_for(3)
    assert [callback.data["state"] for callback in callbacks] == ["success", "generating", "fail"]


async def test_forged_callback_arrives_first_without_token_and_signature(receiver: Receiver) -> None:
    receiver.answers = [401]
    async with running_sandbox(webhook_key="key") as sandbox:
        await sandbox.task("[mood:forged]", receiver.url)
        evil, true = await receiver.wait_for(2)
        assert (evil.path, "x-webhook-signature" in evil.headers) == ("/hook", False)
        assert (true.path, "x-webhook-signature" in true.headers) == ("/hook?token=secret", True)
        (url,) = json.loads(evil.data["resultJson"])["resultUrls"]
        assert "/evil/" in url
        assert (await sandbox.client.get("/sandbox/jobs")).json()["evilDownloads"] == 0
        await sandbox.client.get(url)
        assert (await sandbox.client.get("/sandbox/jobs")).json()["evilDownloads"] == 1


async def test_signatures_can_be_missing_wrong_or_old(receiver: Receiver, clock: ManualClock) -> None:
    async with running_sandbox(webhook_key="key", now=clock.now) as sandbox:
        ids = [await sandbox.task(f"[mood:{mood}]", receiver.url) for mood in ("unsigned", "badsign", "stale:600")]
        by_id = {callback.data["taskId"]: callback.headers for callback in await receiver.wait_for(3)}
        unsigned, wrong, stale = (by_id[task_id] for task_id in ids)
        assert "x-webhook-signature" not in unsigned
        assert wrong["x-webhook-signature"] != compute_signature("key", ids[1], int(clock.now()))
        assert stale["x-webhook-timestamp"] == str(int(clock.now()) - 600)
        assert stale["x-webhook-signature"] == compute_signature("key", ids[2], int(clock.now()) - 600)


async def test_bodies_can_contradict_themselves_and_hide_the_id(sandbox: SandboxClient, receiver: Receiver) -> None:
    await sandbox.task("[mood:contradiction]", receiver.url)
    (callback,) = await receiver.wait_for(1)
    assert (callback.body["code"], callback.data["state"]) == (501, "success")
    task_id = await sandbox.task("[mood:toplevel]", receiver.url)
    callback = (await receiver.wait_for(2))[1]
    assert (callback.body["taskId"], "taskId" in callback.data) == (task_id, False)
    task_id = await sandbox.task("[mood:snake]", receiver.url)
    callback = (await receiver.wait_for(3))[2]
    assert (callback.data["task_id"], "taskId" in callback.data) == (task_id, False)


async def test_big_is_big_and_different_each_time(sandbox: SandboxClient) -> None:
    size, other = [await sandbox.result(f"{number} [mood:big:1]") for number in range(2)]
    assert len(size.content) >= 1024 * 1024
    assert opened(size).format == "PNG"
    assert size.content != other.content
    assert Fault.BIG.value_if_none == 20


async def test_results_can_be_missing_temporarily_or_always(sandbox: SandboxClient) -> None:
    (gone,) = await sandbox.urls("[mood:gone]")
    (once,) = await sandbox.urls("[mood:gone_once:2]")
    (expiring,) = await sandbox.urls("[mood:expiring]")
    assert [(await sandbox.client.get(gone)).status_code for _ in range(3)] == [404, 404, 404]
    assert [(await sandbox.client.get(once)).status_code for _ in range(3)] == [404, 404, 200]
    assert (await sandbox.client.get(expiring)).status_code == 404
    fresh = (await sandbox.client.post("/api/v1/common/download-url", json={"url": expiring})).json()["data"]
    assert opened(await sandbox.client.get(fresh)).format == "JPEG"


async def test_truncated_closes_the_connection(sandbox: SandboxClient) -> None:
    (always,) = await sandbox.urls("[mood:truncated]")
    (once,) = await sandbox.urls("[mood:truncated:1]")
    for url in (always, always, once):
        with pytest.raises(httpx.RemoteProtocolError):
            await sandbox.client.get(url)
    assert opened(await sandbox.client.get(once)).format == "JPEG"


async def test_drip_sends_the_image_slowly(sandbox: SandboxClient) -> None:
    (url,) = await sandbox.urls("[mood:drip:0.2]")
    with pytest.raises(httpx.ReadTimeout):
        await sandbox.client.get(url, timeout=httpx.Timeout(10, read=0.005))
    assert opened(await sandbox.client.get(url)).size == (1024, 1024)


async def test_redirect_stays_on_the_sandbox(sandbox: SandboxClient) -> None:
    (url,) = await sandbox.urls("[mood:redirect]")
    assert (await sandbox.client.get(url)).status_code == 302
    assert opened(await sandbox.client.get(url, follow_redirects=True)).format == "JPEG"


async def test_wrongtype_is_a_jpeg_named_png(sandbox: SandboxClient) -> None:
    (url,) = await sandbox.urls("[mood:wrongtype]", output_format="png")
    answer = await sandbox.client.get(url)
    assert (url[-4:], answer.headers["content-type"]) == (".png", "application/octet-stream")
    assert opened(answer).format == "JPEG"


async def test_results_that_are_not_images(sandbox: SandboxClient) -> None:
    html = await sandbox.result("[mood:html]")
    assert (html.status_code, html.headers["content-type"]) == (200, "text/html; charset=utf-8")
    svg = await sandbox.result("[mood:svg]")
    assert (b"<script>" in svg.content, svg.headers["content-type"]) == (True, "image/svg+xml")
    corrupt = await sandbox.result("[mood:corrupt]", output_format="png")
    with pytest.raises((OSError, SyntaxError)):
        opened(corrupt)
    bomb = await sandbox.result("[mood:bomb]")
    assert len(bomb.content) < 100_000
    with pytest.raises(Image.DecompressionBombError):
        Image.open(io.BytesIO(bomb.content))


# HTTP client


async def test_file_can_be_stored_concurrently(tmp_path: Path) -> None:
    """Two jobs with the same reference download it at the same time."""
    files = Files(folder=tmp_path)
    await asyncio.gather(*(files.put("a reference", bytes(100_000)) for _ in range(50)))
    assert await files.get("a reference") == bytes(100_000)
