"""Client against faulty brokers and broken connections: retries, verification and errors."""

from __future__ import annotations

import asyncio
import base64
import email.parser
import email.policy
import hashlib
import io
import json
import re
import traceback
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.message import Message
from pathlib import Path
from typing import Any

import PIL.Image
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import Route

from broker.client import (
    AsyncClient,
    BrokerApiError,
    ChecksumMismatch,
    Cost,
    ErrorDetail,
    Image,
    Order,
    Result,
    Task,
    TaskCanceled,
    TaskFailed,
    Unreachable,
    WaitTimeout,
)
from tests.support.api import png
from tests.support.faulty_http import Script, Server, Visit, answers, head, rst, sends, serve

pytestmark = pytest.mark.anyio

KEY = "a-key-of-a-caller"
ID = "task_" + "1" * 43
PNG = png()
SHA = hashlib.sha256(PNG).hexdigest()


def respond_json(document: Any, status: str = "200 OK", *headers: str) -> Script:
    return answers(status, json.dumps(document).encode(), "Content-Type: application/json", *headers)


def task_document(status: str = "processing", **more: Any) -> dict[str, Any]:
    return {"success": True, "data": {"id": ID, "status": status, **more}}


RATE_LIMITED = respond_json(
    {"success": False, "error": "Too many.", "code": "rate_limited", "retryable": True},
    "429 Too Many Requests",
    "Retry-After: 7",
)


def one_per_connection(*scripts: Script) -> Script:
    """Run one script per connection; the last for all that follow."""
    left = list(scripts)

    async def script(visit: Visit) -> None:
        await (left.pop(0) if len(left) > 1 else left[0])(visit)

    return script


def recording_bodies(bodies: list[bytes], script: Script) -> Script:
    """Store the body of the request, then answer."""

    async def record(visit: Visit) -> None:
        bodies.append(await visit.read_body())
        await script(visit)

    return record


ACCEPTED = respond_json({"success": True, "taskId": ID, "taskIds": [ID], "ignored": ["seed"]}, "202 Accepted")
ACCEPT_ORDER = recording_bodies([], ACCEPTED)


@dataclass
class Pauses:
    """Sleep function that returns at once and records the durations."""

    seconds: list[float] = field(default_factory=list)

    async def __call__(self, seconds: float) -> None:
        self.seconds.append(seconds)
        await asyncio.sleep(0)


@asynccontextmanager
async def connected_client(script: Any, **options: Any) -> AsyncIterator[tuple[AsyncClient, Server, Pauses]]:
    """Yield a client that has reached its broker once, and run the script for all later requests."""
    pauses = Pauses()
    healthy = respond_json({"status": "healthy"})

    async def route(visit: Visit) -> None:
        await (healthy if visit.path == "/health" else script)(visit)

    async with serve(route) as server, AsyncClient(server.url("/"), key=KEY, sleep=pauses, **options) as client:
        assert await client.alive()
        server.heads.clear()
        yield client, server, pauses


def header(head: bytes, name: str) -> str | None:
    found = re.search(rf"^{name}: *(.*?)\r$", head.decode(), re.IGNORECASE | re.MULTILINE)
    return found[1] if found else None


def paths(server: Server) -> list[str]:
    return [head.split(b" ", 2)[1].decode() for head in server.heads]


def parts(head: bytes, body: bytes) -> list[Message]:
    kind = header(head, "content-type") or ""
    message = email.parser.BytesParser(policy=email.policy.HTTP).parsebytes(
        f"Content-Type: {kind}\r\n\r\n".encode() + body
    )
    return list(message.iter_parts())


def name_of(part: Message) -> str:
    return str(part.get_param("name", header="content-disposition"))


# -- ordering


@pytest.mark.parametrize(
    "fault",
    [
        rst,
        sends(),
        sends(head("202 Accepted", "Content-Length: 500"), b'{"taskIds":'),
        answers("503 Service Unavailable"),
    ],
    ids=["reset", "closed", "cut short", "503"],
)
async def test_order_with_a_lost_response_is_sent_again_with_the_same_key(fault: Script) -> None:
    """The outcome of the first attempt is unknown: only the same key and bytes make the second attempt free."""
    bodies: list[bytes] = []
    async with connected_client(
        one_per_connection(recording_bodies(bodies, fault), recording_bodies(bodies, ACCEPTED))
    ) as (client, server, pauses):
        order = await client.create("a fox", images=[PNG])
        assert order == Order(ids=(ID,), ignored=("seed",), key=order.key)
        assert len(pauses.seconds) == 1
    keys = [header(head, "idempotency-key") for head in server.heads]
    assert keys == [order.key] * 2
    first, second = (parts(head, body) for head, body in zip(server.heads, bodies, strict=True))
    assert [part.get_payload(decode=True) for part in first] == [part.get_payload(decode=True) for part in second]


async def test_each_order_has_a_random_key_unless_given() -> None:
    async with connected_client(ACCEPT_ORDER) as (client, server, _):
        orders = [await client.create("a fox"), await client.create("a fox")]
        assert (await client.create("a fox", idempotency_key="mine")).key == "mine"
    assert orders[0].key != orders[1].key
    assert [header(head, "idempotency-key") for head in server.heads] == [orders[0].key, orders[1].key, "mine"]


async def test_order_sends_every_option(tmp_path: Path) -> None:
    (tmp_path / "fox.png").write_bytes(PNG)
    stored_image = Image(url="http://x/uploads/images/a.png", content=b"an image of ours")
    bodies: list[bytes] = []
    async with connected_client(recording_bodies(bodies, ACCEPTED), language="zh") as (client, server, _):
        await client.create(
            "猫\r\n--x",
            images=["http://a.example/1.png", tmp_path / "fox.png", PNG[:9], stored_image, "https://b.example/2.png"],
            model="nano-banana-pro",
            aspect_ratio="16:9",
            resolution="2K",
            output_format="jpg",
            n=2,
            seed=0,
            provider="fal",
            priority="low",
            callback_url="https://c.example/",
        )
    assert header(server.heads[0], "authorization") == f"Bearer {KEY}"
    assert header(server.heads[0], "accept-language") == "zh"
    form = [(name_of(part), part.get_payload(decode=True)) for part in parts(server.heads[0], bodies[0])]
    assert form == [
        ("prompt", "猫\r\n--x".encode()),
        ("model", b"nano-banana-pro"),
        ("aspectRatio", b"16:9"),
        ("resolution", b"2K"),
        ("outputFormat", b"jpg"),
        ("seed", b"0"),
        ("provider", b"fal"),
        ("priority", b"low"),
        ("callbackUrl", b"https://c.example/"),
        ("numberOfImages", b"2"),
        ("imageUrls", b"http://a.example/1.png"),
        ("image", PNG),
        ("image", PNG[:9]),
        ("image", b"an image of ours"),
        ("imageUrls", b"https://b.example/2.png"),
    ]


async def test_dry_run_sends_the_same_form_and_returns_the_preview() -> None:
    bodies: list[bytes] = []
    preview = respond_json({"success": True, "dryRun": True, "data": {"price": 4}})
    async with connected_client(recording_bodies(bodies, preview)) as (client, server, _):
        assert await client.dry_run("a fox", resolution="2K") == {"price": 4}
    form = [(name_of(part), part.get_payload(decode=True)) for part in parts(server.heads[0], bodies[0])]
    assert form == [("prompt", b"a fox"), ("resolution", b"2K"), ("numberOfImages", b"1"), ("dryRun", b"true")]
    assert header(server.heads[0], "idempotency-key") is None


async def test_single_reference_needs_no_list_and_text_is_a_path(tmp_path: Path) -> None:
    (tmp_path / "fox.png").write_bytes(PNG)
    bodies: list[bytes] = []
    async with connected_client(recording_bodies(bodies, ACCEPTED)) as (client, server, _):
        for one in (PNG, str(tmp_path / "fox.png"), tmp_path / "fox.png", PIL.Image.open(io.BytesIO(PNG))):
            await client.create("a fox", images=one)
        with pytest.raises(FileNotFoundError):
            await client.create("a fox", images=["missing.png"])
        with pytest.raises(TypeError, match="not int"):
            await client.create("a fox", images=[7])  # type: ignore[list-item]
    files = [parts(head, body)[-1].get_payload(decode=True) for head, body in zip(server.heads, bodies, strict=True)]
    assert files[:3] == [PNG] * 3
    assert isinstance(files[3], bytes)
    assert PIL.Image.open(io.BytesIO(files[3])).getpixel((0, 0)) == (255, 255, 0)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr", "HSV", "F", "I", "I;16"])
async def test_pillow_image_of_any_mode_is_sent_as_png(mode: str) -> None:
    bodies: list[bytes] = []
    async with connected_client(recording_bodies(bodies, ACCEPTED)) as (client, server, _):
        await client.create("a fox", images=[PIL.Image.new(mode, (4, 4))])
    content = parts(server.heads[0], bodies[0])[-1].get_payload(decode=True)
    assert isinstance(content, bytes)
    assert PIL.Image.open(io.BytesIO(content)).format == "PNG"


async def test_order_with_unknown_outcome_names_its_key() -> None:
    async with connected_client(rst, patience=0.0) as (client, _, _):
        with pytest.raises(Unreachable) as caught:
            await client.create("a fox", idempotency_key="order-4711")
    assert "'order-4711' is safe" in "".join(traceback.format_exception(caught.value))


# -- retries


async def test_retry_after_of_a_busy_broker_is_respected() -> None:
    async with connected_client(one_per_connection(RATE_LIMITED, RATE_LIMITED, respond_json(task_document()))) as (
        client,
        server,
        pauses,
    ):
        assert (await client.get(ID)).status == "processing"
    assert len(server.heads) == 3
    assert all(7 < seconds < 8 for seconds in pauses.seconds)


async def test_pause_longer_than_the_patience_raises_at_once() -> None:
    async with connected_client(recording_bodies([], RATE_LIMITED), patience=5.0) as (client, server, pauses):
        with pytest.raises(BrokerApiError, match="Too many") as caught:
            await client.create("a fox")
    assert (caught.value.status, caught.value.code) == (429, "rate_limited")
    assert (caught.value.retryable, caught.value.retry_after) == (True, 7.0)
    assert (len(server.heads), pauses.seconds) == (1, [])


API_ERRORS = {
    "bad": ("400 Bad Request", {"error": "No.", "code": "invalid_prompt", "field": "prompt", "retryable": False}),
    "never": ("429 Too Many Requests", {"error": "Order fewer.", "code": "rate_limited", "retryable": False}),
    "gone": ("410 Gone", {"error": "Deleted.", "code": "task_expired", "retryable": False}),
    "full": ("507 Insufficient Storage", {"error": "No space.", "code": "storage_full", "retryable": True}),
    "broken": ("500 Internal Server Error", {"error": "?", "code": "internal_error", "retryable": False}),
}


@pytest.mark.parametrize("name", API_ERRORS)
async def test_api_error_is_raised_without_a_retry(name: str) -> None:
    status, document = API_ERRORS[name]
    async with connected_client(respond_json({"success": False, **document}, status)) as (client, server, _):
        with pytest.raises(BrokerApiError) as caught:
            await client.get(ID)
    error = caught.value
    assert (str(error), error.status, error.code) == (document["error"], int(status[:3]), document["code"])
    assert (error.field, error.retryable) == (document.get("field"), document["retryable"])
    assert error.retry_after is None
    assert len(server.heads) == 1


async def test_error_of_a_proxy_has_no_code() -> None:
    script = one_per_connection(
        answers("502 Bad Gateway", b"<h1>nginx</h1>"), answers("403 Forbidden", b"<h1>nginx</h1>")
    )
    async with connected_client(script) as (client, _, _):
        with pytest.raises(BrokerApiError, match="HTTP 403") as caught:
            await client.get(ID)
    assert caught.value.code is None


@pytest.mark.parametrize("body", [b"<h1>hello</h1>", b"[]", b"{}", b'{"data": 7}', b'{"data": {"id": 7}}'])
async def test_response_of_another_server_is_unreachable(body: bytes) -> None:
    async with connected_client(answers("200 OK", body)) as (client, server, _):
        with pytest.raises(Unreachable) as caught:
            await client.get(ID)
    assert client.base in str(caught.value)
    assert "hello" not in str(caught.value)
    assert len(server.heads) <= 20


async def test_broker_that_never_responded_is_retried_briefly_and_named_with_the_cure() -> None:
    """A mistyped address must not cost a minute and a half."""
    pauses = Pauses()
    async with AsyncClient("http://127.0.0.1:9", sleep=pauses) as client:
        assert not await client.alive()
        with pytest.raises(Unreachable, match="`broker serve` starts one"):
            await client.create("a fox")
    assert 1 < len(pauses.seconds) < 8
    assert sum(pauses.seconds) < 5


@pytest.mark.parametrize(
    "base",
    ["", "127.0.0.1:8000", "ftp://x/", "http://", "http://u:s3cret@x/", "http://x/?a=s3cret", "http://x/#s3cret"],
)
def test_invalid_base_is_rejected_without_quoting_secrets(base: str) -> None:
    with pytest.raises(ValueError, match=r"like http://127\.0\.0\.1:8000") as caught:
        AsyncClient(base)
    assert "s3cret" not in str(caught.value)


async def test_key_appears_in_no_error() -> None:
    async with connected_client(rst, patience=0.0) as (client, _, _):
        with pytest.raises(Unreachable) as caught:
            await client.get(ID)
        assert KEY not in repr(client) + "".join(traceback.format_exception(caught.value))
    async with serve(rst) as server, AsyncClient(server.url(), key=f"{KEY}\n") as client:
        with pytest.raises(Unreachable, match="Authorization") as caught:
            await client.get(ID)
        assert not caught.value.passing
        assert KEY not in "".join(traceback.format_exception(caught.value))


# -- polling


async def test_wait_is_a_long_poll_that_survives_broken_connections() -> None:
    script = one_per_connection(respond_json(task_document()), rst, sends(), respond_json(task_document("completed")))
    async with connected_client(script) as (client, server, _):
        assert (await client.wait(Order(ids=(ID,)))).status == "completed"
    assert paths(server) == [f"/api/task/{ID}?wait=25"] * 4


async def test_broker_without_long_polls_is_polled_once_a_second() -> None:
    async with connected_client(
        one_per_connection(
            respond_json(task_document()), respond_json(task_document()), respond_json(task_document("failed"))
        )
    ) as (client, _, pauses):
        assert (await client.wait(ID)).status == "failed"
    assert all(0.5 < seconds <= 1 for seconds in pauses.seconds)
    assert len(pauses.seconds) == 2


async def test_wait_times_out() -> None:
    async def hold(visit: Visit) -> None:
        await visit.reader.read()

    async with connected_client(hold) as (client, _, _):
        with pytest.raises(WaitTimeout, match=r"0\.05 seconds. It continues") as caught:
            await client.wait(ID, timeout=0.05)
    assert caught.value.task_id == ID


async def test_long_poll_may_take_longer_than_the_request_timeout() -> None:
    async def hold(visit: Visit) -> None:
        await asyncio.sleep(0.3)
        await respond_json(task_document("completed"))(visit)

    async with connected_client(hold, timeout=0.1) as (client, server, _):
        assert (await client.wait(ID)).ended
    assert len(server.heads) == 1


async def test_task_id_is_escaped_in_the_path() -> None:
    async with connected_client(respond_json(task_document())) as (client, server, _):
        await client.get("../../metrics?x=1#")
    assert paths(server) == ["/api/task/..%2F..%2Fmetrics%3Fx%3D1%23"]


async def test_every_field_of_a_task_is_parsed() -> None:
    document = {
        "id": ID,
        "status": "completed",
        "prompt": "a fox",
        "model": "nano-banana",
        "mode": "text-to-image",
        "aspectRatio": "16:9",
        "resolution": "1K",
        "results": [
            {
                "url": "/uploads/images/a.png",
                "width": 4,
                "height": 3,
                "bytes": 99,
                "mediaType": "image/png",
                "sha256": SHA,
                "thumbnail": "/uploads/images/a.png?size=512",
                "mismatch": True,
            }
        ],
        "texts": ["Here it is."],
        "error": None,
        "errorDetail": None,
        "progress": {"stage": "done"},
        "provider": "kie",
        "attempts": 2,
        "cost": {"amount": 4, "unit": "credits", "usd": 0.02},
        "createdAt": "2026-09-21T14:13:20.000Z",
        "updatedAt": "2026-09-21T14:13:21.500Z",
        "expiresAt": None,
        "somethingNew": {"of": "a later version"},
    }
    async with connected_client(respond_json({"success": True, "data": document})) as (client, _, _):
        task = await client.get(ID)
        base = client.base
    assert task.raw == document
    assert task == Task(
        id=ID,
        status="completed",
        prompt="a fox",
        model="nano-banana",
        mode="text-to-image",
        aspect_ratio="16:9",
        resolution="1K",
        images=(
            Result(
                url=f"{base}/uploads/images/a.png",
                width=4,
                height=3,
                size=99,
                media_type="image/png",
                sha256=SHA,
                thumbnail=f"{base}/uploads/images/a.png?size=512",
                mismatch=True,
            ),
        ),
        texts=("Here it is.",),
        progress={"stage": "done"},
        provider="kie",
        attempts=2,
        cost=Cost(amount=4.0, unit="credits", usd=0.02),
        created_at=datetime(2026, 9, 21, 14, 13, 20, tzinfo=UTC),
        updated_at=datetime(2026, 9, 21, 14, 13, 21, 500_000, tzinfo=UTC),
    )
    assert (task.ended, task.stage, task.images[0].name) == (True, "done", "a.png")
    assert "a fox" not in repr(task)
    assert hash(task)


async def test_pages_follow_each_other() -> None:
    first = {"success": True, "data": [task_document()["data"]], "nextCursor": "abc"}
    last = {"success": True, "data": [], "nextCursor": None}
    async with connected_client(one_per_connection(respond_json(first), respond_json(last))) as (client, server, _):
        page = await client.tasks(status="failed", limit=1)
        assert [task.id for task in page.tasks] == [ID]
        assert (await client.tasks(cursor=page.cursor)).cursor is None
    assert paths(server) == ["/api/tasks?limit=1&status=failed", "/api/tasks?limit=20&cursor=abc"]


# -- events


def event(number: int, status: str, newline: str = "\n") -> bytes:
    return f"id: {number}\ndata: {json.dumps(task_document(status))}\n\n".replace("\n", newline).encode()


def stream(*parts: bytes) -> Script:
    return sends(head("200 OK", "Content-Type: text/event-stream"), *parts)


async def statuses_of_events(client: AsyncClient) -> list[str]:
    async with aclosing(client.events(ID)) as changes:
        return [task.status async for task in changes]


@pytest.mark.parametrize("newline", ["\n", "\r\n", "\r"])
async def test_events_end_with_the_task(newline: str) -> None:
    whole = (
        b": ping\n\n" + event(1, "pending", newline) + b": ping\n\nevent: x\nretry: 5\n\n" + event(2, "failed", newline)
    )
    bites = [whole[n : n + 7] for n in range(0, len(whole), 7)]
    async with connected_client(stream(*bites, event(3, "completed"))) as (client, server, _):
        assert await statuses_of_events(client) == ["pending", "failed"]
    assert header(server.heads[0], "last-event-id") is None
    assert header(server.heads[0], "accept") == "text/event-stream"


async def test_broken_stream_continues_after_the_last_event() -> None:
    """Half an event is discarded; the broker sends it again."""
    script = one_per_connection(
        stream(event(1, "pending"), event(2, "processing")[:20]),
        rst,
        RATE_LIMITED,
        stream(),
        stream(b": ping\n\n"),
        stream(event(2, "processing"), event(3, "completed")),
    )
    async with connected_client(script) as (client, server, _):
        assert await statuses_of_events(client) == ["pending", "processing", "completed"]
    assert [header(head, "last-event-id") for head in server.heads] == [None, "1", "1", "1", "1", "1"]


async def test_stream_that_ends_at_once_is_opened_once_a_second() -> None:
    async with connected_client(one_per_connection(stream(), stream(), stream(event(1, "canceled")))) as (
        client,
        _,
        pauses,
    ):
        assert await statuses_of_events(client) == ["canceled"]
    assert len(pauses.seconds) == 2
    assert all(0.5 < seconds <= 1 for seconds in pauses.seconds)


async def test_each_opened_stream_restarts_the_patience() -> None:
    cut = sends(head("200 OK", "Content-Type: text/event-stream", "Content-Length: 999"), b": ping\n\n")
    async with connected_client(one_per_connection(*[cut] * 8, stream(event(1, "completed"))), patience=1.0) as (
        client,
        server,
        _,
    ):
        assert await statuses_of_events(client) == ["completed"]
    assert len(server.heads) == 9


async def test_stream_that_cannot_be_opened_ends_with_the_patience() -> None:
    async with connected_client(rst, patience=0.0) as (client, server, _), asyncio.timeout(10):
        with pytest.raises(Unreachable):
            await statuses_of_events(client)
    assert len(server.heads) == 1


async def test_api_error_ends_the_stream() -> None:
    status, document = API_ERRORS["gone"]
    async with connected_client(respond_json(document, status)) as (client, _, _):
        with pytest.raises(BrokerApiError, match="Deleted"):
            await statuses_of_events(client)


@pytest.mark.parametrize("data", [b"data: <html>\n\n", b"data: []\n\n", b"data: {}\n\n"])
async def test_stream_of_other_data_is_unreachable(data: bytes) -> None:
    async with connected_client(stream(data)) as (client, _, _):
        with pytest.raises(Unreachable, match="not a broker"):
            await statuses_of_events(client)


async def test_closing_the_iterator_closes_the_connection() -> None:
    async def endless(visit: Visit) -> None:
        await visit.send(head("200 OK", "Content-Type: text/event-stream"), event(1, "pending"))
        await visit.reader.readexactly(1)

    async with connected_client(endless) as (client, server, _):
        async with aclosing(client.events(ID)) as changes:
            assert (await anext(changes)).status == "pending"
        async with asyncio.timeout(5):
            await server.left.wait()


# -- changing


async def test_cancel_with_a_lost_response_succeeds() -> None:
    conflict = respond_json({"error": "It is canceled.", "code": "conflict", "retryable": False}, "409 Conflict")
    async with connected_client(one_per_connection(rst, conflict, respond_json(task_document("canceled")))) as (
        client,
        server,
        _,
    ):
        assert (await client.cancel(ID)).status == "canceled"
    assert [head.split()[0] for head in server.heads] == [b"DELETE", b"DELETE", b"GET"]
    async with connected_client(one_per_connection(conflict, respond_json(task_document("completed")))) as (
        client,
        _,
        _,
    ):
        with pytest.raises(BrokerApiError, match="It is canceled"):
            await client.cancel(ID)
    async with connected_client(
        respond_json({"error": "No key.", "code": "unauthorized", "retryable": False}, "401 Unauthorized")
    ) as (
        client,
        server,
        _,
    ):
        with pytest.raises(BrokerApiError, match="No key"):
            await client.cancel(ID)
        assert len(server.heads) == 1


async def test_retry_is_repeated_after_a_lost_response() -> None:
    again = respond_json({"taskId": "task_2", "taskIds": ["task_2"]}, "202 Accepted")
    async with connected_client(one_per_connection(rst, again)) as (client, server, _):
        assert await client.retry(ID) == Order(ids=("task_2",))
    assert [head.split()[:2] for head in server.heads] == [[b"POST", f"/api/task/{ID}/retry".encode()]] * 2


async def test_other_requests_are_repeated_only_if_safe() -> None:
    async with connected_client(one_per_connection(rst, respond_json({"a": 1}))) as (client, server, _):
        assert await client.ask("GET", "/api/models", params={"q": "ü"}, headers={"X-A": "1"}) == {"a": 1}
        assert paths(server) == ["/api/models?q=%C3%BC"] * 2
        assert header(server.heads[0], "x-a") == "1"
    bodies: list[bytes] = []
    async with connected_client(recording_bodies(bodies, rst)) as (client, server, _):
        with pytest.raises(Unreachable):
            await client.ask("POST", "/api/anything", json={"a": 1})
    assert (len(server.heads), json.loads(bodies[0])) == (1, {"a": 1})


# -- images


def stored_result(server: Server, sha256: str | None = SHA) -> Result:
    return Result(url=server.url("/uploads/images/a.png"), media_type="image/png", sha256=sha256)


def file_names(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir()]


IMAGE = answers("200 OK", PNG)


@pytest.mark.parametrize(
    "fault",
    [rst, sends(head("200 OK", f"Content-Length: {len(PNG)}"), PNG[:-1]), RATE_LIMITED],
    ids=["reset", "cut short", "429"],
)
async def test_incomplete_image_is_downloaded_again(fault: Script, tmp_path: Path) -> None:
    async with connected_client(one_per_connection(fault, IMAGE)) as (client, server, _):
        image = await client.image(stored_result(server))
        assert (image.content, image.media_type, image.name) == (PNG, "image/png", "a.png")
    async with connected_client(one_per_connection(fault, IMAGE)) as (client, server, _):
        path = await client.download(stored_result(server), tmp_path)
    assert path == tmp_path / "a.png"
    assert path.read_bytes() == PNG
    assert file_names(tmp_path) == ["a.png"]


async def test_wrong_bytes_are_never_returned(tmp_path: Path) -> None:
    path = tmp_path / "fox.png"
    path.write_bytes(b"an older image")
    async with connected_client(answers("200 OK", PNG + b" ")) as (client, server, _):
        for fetch in (client.image(stored_result(server)), client.download(stored_result(server), path)):
            with pytest.raises(ChecksumMismatch, match=r"a\.png"):
                await fetch
        assert (await client.image(stored_result(server, None))).content == PNG + b" "
    assert path.read_bytes() == b"an older image"
    assert file_names(tmp_path) == ["fox.png"]


async def test_redirect_from_https_to_http_is_rejected() -> None:
    async def respond(request: Request) -> Response:
        target = {"/plain": "http://10.0.0.1/y", "/store": "https://store.example/y"}.get(request.url.path)
        return RedirectResponse(target, 302) if target else Response(PNG)

    app = Starlette(routes=[Route("/{path:path}", respond)])
    async with AsyncClient("https://a.example", app=app) as client:
        assert (await client.image(Result(url="https://a.example/store"))).content == PNG
        with pytest.raises(Unreachable, match="https"):
            await client.image(Result(url="https://a.example/plain"))


async def test_deleted_image_is_an_api_error() -> None:
    status, document = API_ERRORS["gone"]
    async with connected_client(respond_json(document, status)) as (client, server, _):
        with pytest.raises(BrokerApiError, match="Deleted"):
            await client.image(stored_result(server, None))
        assert len(server.heads) == 1


async def test_unwritable_path_raises_oserror(tmp_path: Path) -> None:
    async with connected_client(IMAGE) as (client, server, _):
        with pytest.raises(FileNotFoundError):
            await client.download(stored_result(server), tmp_path / "nowhere" / "fox.png")
    assert file_names(tmp_path) == []


async def test_redirect_to_a_store_does_not_carry_the_key() -> None:
    async with serve(IMAGE) as store:
        elsewhere = answers("307 Temporary Redirect", b"", f"Location: {store.url('/bucket/a.png?signature=x')}")
        async with connected_client(elsewhere) as (client, server, _):
            assert (await client.image(stored_result(server))).content == PNG
    assert paths(store) == ["/bucket/a.png?signature=x"]
    assert header(store.heads[0], "authorization") is None


async def test_endless_redirects_stop() -> None:
    async with connected_client(answers("302 Found", b"", "Location: /uploads/images/a.png")) as (client, server, _):
        with pytest.raises(Unreachable, match="maximum allowed redirects"):
            await client.image(stored_result(server))


def test_image_has_a_notebook_representation(tmp_path: Path) -> None:
    image = Image(url="http://x/uploads/images/a.png", media_type="image/webp", content=PNG)
    assert image._repr_mimebundle_() == {"image/webp": base64.b64encode(PNG).decode()}
    assert len(repr(image)) < 300
    assert image.save(tmp_path) == tmp_path / "a.png"
    assert image.save(str(tmp_path / "b.png")).read_bytes() == PNG


# -- generate


def broker_of(*tasks: tuple[str, dict[str, Any]]) -> Script:
    """Accept any order and answer with these tasks."""
    ids = [f"task_{n}" for n in range(len(tasks))]

    async def script(visit: Visit) -> None:
        if visit.head.startswith(b"POST"):
            await recording_bodies([], respond_json({"taskIds": ids}, "202 Accepted"))(visit)
        elif visit.path.startswith("/uploads"):
            await IMAGE(visit)
        else:
            number = int(visit.path.partition("?")[0].rpartition("_")[2])
            status, more = tasks[number]
            await respond_json({"data": {"id": ids[number], "status": status, **more}})(visit)

    return script


def completed_task(number: int) -> tuple[str, dict[str, Any]]:
    return "completed", {"results": [{"url": f"/uploads/images/{number}.png", "sha256": SHA, "mediaType": "image/png"}]}


FLAGGED_TASK = (
    "failed",
    {"error": "The filter refused it.", "errorDetail": {"code": "safety_input", "retryable": False, "billed": "no"}},
)


async def test_images_have_the_order_of_their_tasks() -> None:
    async with connected_client(broker_of(completed_task(0), completed_task(1), completed_task(2))) as (client, _, _):
        images = await client.generate("a fox", n=3)
        assert [image.name for image in images] == ["0.png", "1.png", "2.png"]
        assert [image.content for image in images] == [PNG] * 3
        assert [image.name for image in await client.images("task_1")] == ["1.png"]


async def test_failed_task_raises_with_the_images_of_the_others() -> None:
    async with connected_client(broker_of(completed_task(0), FLAGGED_TASK, completed_task(2))) as (client, _, _):
        with pytest.raises(TaskFailed, match=r"The filter refused it. \(code safety_input, billed: no\)") as caught:
            await client.generate("a fox", n=3)
        error = caught.value
        assert (error.task.id, error.code, error.retryable, error.billed) == ("task_1", "safety_input", False, "no")
        assert [image.name for image in error.made] == ["0.png", "2.png"]
        assert error.task.error_detail == ErrorDetail(code="safety_input", retryable=False, billed="no")
        with pytest.raises(TaskFailed, match="safety_input"):
            await client.images("task_1")
    async with connected_client(broker_of(("canceled", {"error": "Canceled."}))) as (client, _, _):
        with pytest.raises(TaskCanceled, match="billed: unknown"):
            await client.generate("a fox")


async def test_error_of_one_task_cancels_the_waits_for_the_others() -> None:
    async def script(visit: Visit) -> None:
        if visit.head.startswith(b"POST"):
            await recording_bodies([], respond_json({"taskIds": ["task_0", "task_1"]}, "202 Accepted"))(visit)
        elif "task_0" in visit.path:
            await respond_json({"error": "Deleted.", "code": "task_expired", "retryable": False}, "410 Gone")(visit)
        else:
            await visit.reader.readexactly(1)

    async with connected_client(script) as (client, server, _):
        with pytest.raises(BrokerApiError, match="Deleted"):
            await client.generate("a fox", n=2)
        async with asyncio.timeout(5):
            await server.left.wait()
