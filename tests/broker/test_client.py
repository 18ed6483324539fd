"""The client towards brokers that misbehave, and lines that break: what is repeated, what is believed, what is told."""

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
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from email.message import Message
from pathlib import Path
from typing import Any

import PIL.Image
import pytest

from broker.client import (
    AsyncClient,
    Cost,
    Damaged,
    ErrorDetail,
    Image,
    Order,
    Refused,
    Result,
    Task,
    TaskCanceled,
    TaskFailed,
    TimedOut,
    Unreachable,
)
from broker.client.line import follow
from broker.client.results import Malformed
from tests.broker.api_house import png
from tests.faults.faulty_http import Script, Server, Visit, answers, head, rst, says, serve

pytestmark = pytest.mark.anyio

KEY = "a-key-of-a-caller"
ID = "task_" + "1" * 32
PNG = png()
SHA = hashlib.sha256(PNG).hexdigest()


def says_json(document: Any, status: str = "200 OK", *headers: str) -> Script:
    return answers(status, json.dumps(document).encode(), "Content-Type: application/json", *headers)


def told(status: str = "processing", **more: Any) -> dict[str, Any]:
    return {"success": True, "data": {"id": ID, "status": status, **more}}


BUSY = says_json(
    {"success": False, "error": "Too many.", "code": "rate_limited", "retryable": True},
    "429 Too Many Requests",
    "Retry-After: 7",
)


def in_turn(*scripts: Script) -> Script:
    """One script for each connection; the last for all that follow."""
    left = list(scripts)

    async def script(visit: Visit) -> None:
        await (left.pop(0) if len(left) > 1 else left[0])(visit)

    return script


def hearing(bodies: list[bytes], script: Script) -> Script:
    """Keeps the body of the request, then answers."""

    async def hear(visit: Visit) -> None:
        bodies.append(await visit.hear_body())
        await script(visit)

    return hear


ACCEPTED = says_json({"success": True, "taskId": ID, "taskIds": [ID], "ignored": ["seed"]}, "202 Accepted")
ORDERED = hearing([], ACCEPTED)


@dataclass
class Pauses:
    """Sleeps no time at all, and remembers how long it should have been."""

    seconds: list[float] = field(default_factory=list)

    async def __call__(self, seconds: float) -> None:
        self.seconds.append(seconds)
        await asyncio.sleep(0)


@asynccontextmanager
async def meeting(script: Any, **options: Any) -> AsyncIterator[tuple[AsyncClient, Server, Pauses]]:
    """A client that has heard its broker once, and the broker's script for all that follows."""
    pauses = Pauses()
    healthy = says_json({"status": "healthy"})

    async def welcome(visit: Visit) -> None:
        await (healthy if visit.path == "/health" else script)(visit)

    async with serve(welcome) as server, AsyncClient(server.url("/"), key=KEY, sleep=pauses, **options) as client:
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
        says(),
        says(head("202 Accepted", "Content-Length: 500"), b'{"taskIds":'),
        answers("503 Service Unavailable"),
    ],
    ids=["reset", "closed", "cut short", "503"],
)
async def test_an_order_that_was_not_heard_is_the_same_order_again(fault: Script) -> None:
    """Whether it was heard nobody knows: only the same key and the same bytes make the second try free."""
    bodies: list[bytes] = []
    async with meeting(in_turn(hearing(bodies, fault), hearing(bodies, ACCEPTED))) as (client, server, pauses):
        order = await client.create("a fox", images=[PNG])
        assert order == Order(ids=(ID,), ignored=("seed",), key=order.key)
        assert len(pauses.seconds) == 1
    keys = [header(head, "idempotency-key") for head in server.heads]
    assert keys == [order.key] * 2
    first, second = (parts(head, body) for head, body in zip(server.heads, bodies, strict=True))
    assert [part.get_payload(decode=True) for part in first] == [part.get_payload(decode=True) for part in second]


async def test_each_order_has_a_key_of_its_own_unless_it_is_given() -> None:
    async with meeting(ORDERED) as (client, server, _):
        orders = [await client.create("a fox"), await client.create("a fox")]
        assert (await client.create("a fox", idempotency_key="mine")).key == "mine"
    assert orders[0].key != orders[1].key
    assert [header(head, "idempotency-key") for head in server.heads] == [orders[0].key, orders[1].key, "mine"]


async def test_an_order_says_all_that_it_was_given(tmp_path: Path) -> None:
    (tmp_path / "fox.png").write_bytes(PNG)
    ours = Image(url="http://x/uploads/images/a.png", content=b"an image of ours")
    bodies: list[bytes] = []
    async with meeting(hearing(bodies, ACCEPTED), language="zh") as (client, server, _):
        await client.create(
            "猫\r\n--x",
            images=["http://a.example/1.png", tmp_path / "fox.png", PNG[:9], ours, "https://b.example/2.png"],
            model="nano-banana-pro",
            aspect_ratio="16:9",
            resolution="2K",
            output_format="jpg",
            n=2,
            seed=0,
            callback_url="https://c.example/",
        )
    assert header(server.heads[0], "authorization") == f"Bearer {KEY}"
    assert header(server.heads[0], "accept-language") == "zh"
    said = [(name_of(part), part.get_payload(decode=True)) for part in parts(server.heads[0], bodies[0])]
    assert said == [
        ("prompt", "猫\r\n--x".encode()),
        ("model", b"nano-banana-pro"),
        ("aspectRatio", b"16:9"),
        ("resolution", b"2K"),
        ("outputFormat", b"jpg"),
        ("numberOfImages", b"2"),
        ("seed", b"0"),
        ("callbackUrl", b"https://c.example/"),
        ("imageUrls", b"http://a.example/1.png"),
        ("imageUrls", b"https://b.example/2.png"),
        ("image", PNG),
        ("image", PNG[:9]),
        ("image", b"an image of ours"),
    ]


async def test_one_reference_needs_no_list_and_text_is_a_path(tmp_path: Path) -> None:
    (tmp_path / "fox.png").write_bytes(PNG)
    bodies: list[bytes] = []
    async with meeting(hearing(bodies, ACCEPTED)) as (client, server, _):
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
async def test_a_picture_of_any_kind_is_sent_as_png(mode: str) -> None:
    bodies: list[bytes] = []
    async with meeting(hearing(bodies, ACCEPTED)) as (client, server, _):
        await client.create("a fox", images=[PIL.Image.new(mode, (4, 4))])
    content = parts(server.heads[0], bodies[0])[-1].get_payload(decode=True)
    assert isinstance(content, bytes)
    assert PIL.Image.open(io.BytesIO(content)).format == "PNG"


async def test_an_order_that_stays_unknown_tells_how_to_go_on_without_a_second_bill() -> None:
    async with meeting(rst, patience=0.0) as (client, _, _):
        with pytest.raises(Unreachable) as caught:
            await client.create("a fox", idempotency_key="order-4711")
    assert "'order-4711' is safe" in "".join(traceback.format_exception(caught.value))


# -- patience


async def test_a_busy_broker_is_given_the_time_it_asks_for() -> None:
    async with meeting(in_turn(BUSY, BUSY, says_json(told()))) as (client, server, pauses):
        assert (await client.get(ID)).status == "processing"
    assert len(server.heads) == 3
    assert all(7 < seconds < 8 for seconds in pauses.seconds)


async def test_what_would_take_longer_than_our_patience_is_told_at_once() -> None:
    async with meeting(BUSY, patience=5.0) as (client, server, pauses):
        with pytest.raises(Refused, match="Too many") as caught:
            await client.create("a fox")
    assert (caught.value.status, caught.value.code) == (429, "rate_limited")
    assert (caught.value.retryable, caught.value.retry_after) == (True, 7.0)
    assert (len(server.heads), pauses.seconds) == (1, [])


REFUSALS = {
    "bad": ("400 Bad Request", {"error": "No.", "code": "invalid_prompt", "field": "prompt", "retryable": False}),
    "never": ("429 Too Many Requests", {"error": "Order fewer.", "code": "rate_limited", "retryable": False}),
    "gone": ("410 Gone", {"error": "Deleted.", "code": "task_expired", "retryable": False}),
    "full": ("507 Insufficient Storage", {"error": "No space.", "code": "storage_full", "retryable": True}),
    "broken": ("500 Internal Server Error", {"error": "?", "code": "unknown_outcome", "retryable": False}),
}


@pytest.mark.parametrize("name", REFUSALS)
async def test_a_refusal_is_told_and_not_tried_again(name: str) -> None:
    status, document = REFUSALS[name]
    async with meeting(says_json({"success": False, **document}, status)) as (client, server, _):
        with pytest.raises(Refused) as caught:
            await client.get(ID)
    error = caught.value
    assert (str(error), error.status, error.code) == (document["error"], int(status[:3]), document["code"])
    assert (error.field, error.retryable) == (document.get("field"), document["retryable"])
    assert error.retry_after is None
    assert len(server.heads) == 1


async def test_what_a_proxy_answers_is_no_refusal_of_the_broker() -> None:
    script = in_turn(answers("502 Bad Gateway", b"<h1>nginx</h1>"), answers("403 Forbidden", b"<h1>nginx</h1>"))
    async with meeting(script) as (client, _, _):
        with pytest.raises(Refused, match="HTTP 403") as caught:
            await client.get(ID)
    assert caught.value.code is None


@pytest.mark.parametrize("body", [b"<h1>hello</h1>", b"[]", b"{}", b'{"data": 7}', b'{"data": {"id": 7}}'])
async def test_what_is_no_broker_is_told_so(body: bytes) -> None:
    async with meeting(answers("200 OK", body)) as (client, server, _):
        with pytest.raises(Unreachable) as caught:
            await client.get(ID)
    assert client.base in str(caught.value)
    assert "hello" not in str(caught.value)
    assert len(server.heads) <= 20


async def test_a_broker_that_was_never_there_is_not_waited_for() -> None:
    """Somebody who mistyped the address should not sit there for a minute and a half."""
    pauses = Pauses()
    async with AsyncClient("http://127.0.0.1:9", sleep=pauses) as client:
        assert not await client.alive()
        with pytest.raises(Unreachable, match="`broker serve` starts one") as caught:
            await client.create("a fox")
    assert not caught.value.sent
    assert not hasattr(caught.value, "__notes__")
    assert len(pauses.seconds) < 8
    assert sum(pauses.seconds) < 5


@pytest.mark.parametrize(
    "base",
    ["", "127.0.0.1:8000", "ftp://x/", "http://", "http://u:s3cret@x/", "http://x/?a=s3cret", "http://x/#s3cret"],
)
def test_an_address_that_is_none_is_refused_and_its_secrets_are_not_told(base: str) -> None:
    with pytest.raises(ValueError, match=r"like http://127\.0\.0\.1:8000") as caught:
        AsyncClient(base)
    assert "s3cret" not in str(caught.value)


async def test_a_key_is_told_to_nobody() -> None:
    async with meeting(rst, patience=0.0) as (client, _, _):
        with pytest.raises(Unreachable) as caught:
            await client.get(ID)
        assert KEY not in repr(client) + "".join(traceback.format_exception(caught.value))
    async with AsyncClient("http://127.0.0.1:9", key=f"{KEY}\n") as client:
        with pytest.raises(Unreachable, match="Authorization") as caught:
            await client.get(ID)
        assert not caught.value.passing
        assert KEY not in "".join(traceback.format_exception(caught.value))


# -- looking


async def test_a_wait_is_held_by_the_broker_and_goes_on_after_broken_lines() -> None:
    script = in_turn(says_json(told()), rst, says(), says_json(told("completed")))
    async with meeting(script) as (client, server, _):
        assert (await client.wait(Order(ids=(ID,)))).status == "completed"
    assert paths(server) == [f"/api/task/{ID}?wait=25"] * 4


async def test_a_broker_that_does_not_hold_is_not_asked_all_the_time() -> None:
    async with meeting(in_turn(says_json(told()), says_json(told()), says_json(told("failed")))) as (client, _, pauses):
        assert (await client.wait(ID)).status == "failed"
    assert all(0.5 < seconds <= 1 for seconds in pauses.seconds)
    assert len(pauses.seconds) == 2


async def test_the_time_to_wait_is_ours_to_choose() -> None:
    async def hold(visit: Visit) -> None:
        await visit.reader.read()

    async with meeting(hold) as (client, _, _):
        with pytest.raises(TimedOut, match=r"0\.05 seconds. It goes on") as caught:
            await client.wait(ID, timeout=0.05)
    assert caught.value.task_id == ID


async def test_what_the_broker_holds_may_take_longer_than_a_request() -> None:
    async def hold(visit: Visit) -> None:
        await asyncio.sleep(0.3)
        await says_json(told("completed"))(visit)

    async with meeting(hold, timeout=0.1) as (client, server, _):
        assert (await client.wait(ID)).ended
    assert len(server.heads) == 1


async def test_an_id_cannot_leave_its_place_in_the_address() -> None:
    async with meeting(says_json(told())) as (client, server, _):
        await client.get("../../metrics?x=1#")
    assert paths(server) == ["/api/task/..%2F..%2Fmetrics%3Fx%3D1%23"]


async def test_a_task_is_read_whole() -> None:
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
            }
        ],
        "error": None,
        "errorDetail": None,
        "progress": {"stage": "done"},
        "provider": "kie",
        "attempts": 2,
        "cost": {"amount": 4, "unit": "credits"},
        "createdAt": "2026-09-21T14:13:20.000Z",
        "updatedAt": "2026-09-21T14:13:21.500Z",
        "expiresAt": None,
        "somethingNew": {"of": "a later version"},
    }
    async with meeting(says_json({"success": True, "data": document})) as (client, _, _):
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
            ),
        ),
        progress={"stage": "done"},
        provider="kie",
        attempts=2,
        cost=Cost(amount=4.0, unit="credits"),
        created_at=datetime(2026, 9, 21, 14, 13, 20, tzinfo=UTC),
        updated_at=datetime(2026, 9, 21, 14, 13, 21, 500_000, tzinfo=UTC),
    )
    assert (task.ended, task.stage, task.images[0].name) == (True, "done", "a.png")
    assert "a fox" not in repr(task)
    assert hash(task)


@pytest.mark.parametrize("nonsense", [None, 7, "x", [], {}, True, [7], {"a": 1}])
def test_values_of_another_kind_are_as_good_as_none(nonsense: Any) -> None:
    keys = "prompt model error errorDetail progress attempts cost createdAt results provider".split()
    task = Task.of({"id": ID, "status": "pending", **dict.fromkeys(keys, nonsense)})
    assert task.created_at is None
    assert (task.images, task.attempts) == ((), 7 if nonsense == 7 and nonsense is not True else None)


async def test_pages_lead_from_one_to_the_next() -> None:
    first = {"success": True, "data": [told()["data"]], "nextCursor": "abc"}
    last = {"success": True, "data": [], "nextCursor": None}
    async with meeting(in_turn(says_json(first), says_json(last))) as (client, server, _):
        page = await client.tasks(status="failed", limit=1)
        assert [task.id for task in page.tasks] == [ID]
        assert (await client.tasks(cursor=page.cursor)).cursor is None
    assert paths(server) == ["/api/tasks?limit=1&status=failed", "/api/tasks?limit=20&cursor=abc"]


# -- events


def event(number: int, status: str, newline: str = "\n") -> bytes:
    return f"id: {number}\ndata: {json.dumps(told(status))}\n\n".replace("\n", newline).encode()


def stream(*parts: bytes) -> Script:
    return says(head("200 OK", "Content-Type: text/event-stream"), *parts)


async def seen(client: AsyncClient) -> list[str]:
    async with aclosing(client.events(ID)) as changes:
        return [task.status async for task in changes]


@pytest.mark.parametrize("newline", ["\n", "\r\n", "\r"])
async def test_events_are_told_until_the_task_has_ended(newline: str) -> None:
    whole = (
        b": ping\n\n" + event(1, "pending", newline) + b": ping\n\nevent: x\nretry: 5\n\n" + event(2, "failed", newline)
    )
    bites = [whole[n : n + 7] for n in range(0, len(whole), 7)]
    async with meeting(stream(*bites, event(3, "completed"))) as (client, server, _):
        assert await seen(client) == ["pending", "failed"]
    assert header(server.heads[0], "last-event-id") is None
    assert header(server.heads[0], "accept") == "text/event-stream"


async def test_a_broken_stream_goes_on_after_the_last_event() -> None:
    """Half an event is none: the broker sends it again."""
    script = in_turn(
        stream(event(1, "pending"), event(2, "processing")[:20]),
        rst,
        BUSY,
        stream(),
        stream(b": ping\n\n"),
        stream(event(2, "processing"), event(3, "completed")),
    )
    async with meeting(script) as (client, server, _):
        assert await seen(client) == ["pending", "processing", "completed"]
    assert [header(head, "last-event-id") for head in server.heads] == [None, "1", "1", "1", "1", "1"]


async def test_a_stream_that_ends_at_once_is_not_opened_all_the_time() -> None:
    async with meeting(in_turn(stream(), stream(), stream(event(1, "canceled")))) as (client, _, pauses):
        assert await seen(client) == ["canceled"]
    assert len(pauses.seconds) == 2
    assert all(0.5 < seconds <= 1 for seconds in pauses.seconds)


async def test_a_stream_that_breaks_often_is_no_silent_broker() -> None:
    """Patience is for silence; each stream that begins is a sign of life."""
    cut = says(head("200 OK", "Content-Length: 999"), b": ping\n\n")
    async with meeting(in_turn(*[cut] * 8, stream(event(1, "completed"))), patience=1.0) as (client, server, _):
        assert await seen(client) == ["completed"]
    assert len(server.heads) == 9


async def test_a_stream_that_is_refused_is_over() -> None:
    status, document = REFUSALS["gone"]
    async with meeting(says_json(document, status)) as (client, _, _):
        with pytest.raises(Refused, match="Deleted"):
            await seen(client)


ENDLESS = {"line": b"data: " + bytes(9 * 2**20), "event": (b"data: " + bytes(2**20) + b"\n") * 9}


@pytest.mark.parametrize("data", [b"data: <html>\n\n", b"data: []\n\n", b"data: {}\n\n", *ENDLESS.values()])
async def test_a_stream_of_something_else_is_told_so(data: bytes) -> None:
    async with meeting(stream(data)) as (client, _, _):
        with pytest.raises(Unreachable, match="no broker"):
            await seen(client)


async def test_who_stops_listening_hangs_up() -> None:
    async def endless(visit: Visit) -> None:
        await visit.say(head("200 OK"), event(1, "pending"))
        await visit.reader.readexactly(1)

    async with meeting(endless) as (client, server, _):
        async with aclosing(client.events(ID)) as changes:
            assert (await anext(changes)).status == "pending"
        async with asyncio.timeout(5):
            await server.left.wait()


# -- changing


async def test_a_cancel_whose_answer_was_lost_is_done_all_the_same() -> None:
    conflict = says_json({"error": "It is canceled.", "code": "conflict", "retryable": False}, "409 Conflict")
    async with meeting(in_turn(rst, conflict, says_json(told("canceled")))) as (client, server, _):
        assert (await client.cancel(ID)).status == "canceled"
    assert [head.split()[0] for head in server.heads] == [b"DELETE", b"DELETE", b"GET"]
    async with meeting(in_turn(conflict, says_json(told("completed")))) as (client, _, _):
        with pytest.raises(Refused, match="It is canceled"):
            await client.cancel(ID)
    async with meeting(says_json({"error": "No key.", "code": "unauthorized"}, "401 Unauthorized")) as (
        client,
        server,
        _,
    ):
        with pytest.raises(Refused, match="No key"):
            await client.cancel(ID)
        assert len(server.heads) == 1


async def test_a_retry_is_the_same_one_when_it_has_to_be_asked_for_twice() -> None:
    again = says_json({"taskId": "task_2", "taskIds": ["task_2"]}, "202 Accepted")
    async with meeting(in_turn(rst, again)) as (client, server, _):
        assert await client.retry(ID) == Order(ids=("task_2",))
    assert [head.split()[:2] for head in server.heads] == [[b"POST", f"/api/task/{ID}/retry".encode()]] * 2


async def test_any_other_request_is_repeated_only_when_it_changes_nothing() -> None:
    async with meeting(in_turn(rst, says_json({"a": 1}))) as (client, server, _):
        assert await client.ask("GET", "/api/models", params={"q": "ü"}, headers={"X-A": "1"}) == {"a": 1}
        assert paths(server) == ["/api/models?q=%C3%BC"] * 2
        assert header(server.heads[0], "x-a") == "1"
    bodies: list[bytes] = []
    async with meeting(hearing(bodies, rst)) as (client, server, _):
        with pytest.raises(Unreachable):
            await client.ask("POST", "/api/anything", json={"a": 1})
    assert (len(server.heads), json.loads(bodies[0])) == (1, {"a": 1})


# -- images


def kept(server: Server, sha256: str | None = SHA) -> Result:
    return Result(url=server.url("/uploads/images/a.png"), media_type="image/png", sha256=sha256)


def names(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir()]


IMAGE = answers("200 OK", PNG)


@pytest.mark.parametrize(
    "fault",
    [rst, says(head("200 OK", f"Content-Length: {len(PNG)}"), PNG[:-1]), answers("200 OK", PNG[:-1]), BUSY],
    ids=["reset", "cut short", "other bytes", "429"],
)
async def test_an_image_that_did_not_arrive_whole_is_fetched_again(fault: Script, tmp_path: Path) -> None:
    async with meeting(in_turn(fault, IMAGE)) as (client, server, _):
        image = await client.image(kept(server))
        assert (image.content, image.media_type, image.name) == (PNG, "image/png", "a.png")
    async with meeting(in_turn(fault, IMAGE)) as (client, server, _):
        path = await client.download(kept(server), tmp_path)
    assert path == tmp_path / "a.png"
    assert path.read_bytes() == PNG
    assert names(tmp_path) == ["a.png"]


async def test_other_bytes_than_the_broker_keeps_are_never_handed_over(tmp_path: Path) -> None:
    place = tmp_path / "fox.png"
    place.write_bytes(b"an older image")
    async with meeting(answers("200 OK", PNG + b" ")) as (client, server, _):
        for fetch in (client.image(kept(server)), client.download(kept(server), place)):
            server.heads.clear()
            with pytest.raises(Damaged, match=r"a\.png"):
                await fetch
            assert len(server.heads) == 3
        assert (await client.image(kept(server, None))).content == PNG + b" "
    assert place.read_bytes() == b"an older image"
    assert names(tmp_path) == ["fox.png"]


async def test_more_bytes_than_there_should_be_are_not_taken_in() -> None:
    async with meeting(answers("200 OK", PNG + b" " * 2**20)) as (client, server, _):
        with pytest.raises(Damaged):
            await client.image(replace(kept(server, None), size=len(PNG)))


def test_a_redirect_leaves_https_for_nothing_else() -> None:
    assert follow("https://a.example/x", "https://b.example/y") == "https://b.example/y"
    assert follow("http://a.example/x", "/y") == "http://a.example/y"
    with pytest.raises(Malformed):
        follow("https://a.example/x", "http://10.0.0.1/y")


async def test_an_image_that_is_gone_is_told_so() -> None:
    status, document = REFUSALS["gone"]
    async with meeting(says_json(document, status)) as (client, server, _):
        with pytest.raises(Refused, match="Deleted"):
            await client.image(kept(server, None))
        assert len(server.heads) == 1


async def test_an_error_without_an_end_is_not_read_for_ever() -> None:
    async def endless(visit: Visit) -> None:
        await visit.say(head("404 Not Found"), bytes(2**21))
        await visit.reader.readexactly(1)

    async with meeting(endless) as (client, server, _), asyncio.timeout(10):
        with pytest.raises(Refused, match="HTTP 404"):
            await client.image(kept(server))


async def test_a_file_that_cannot_be_written_is_the_callers_to_hear_of(tmp_path: Path) -> None:
    async with meeting(IMAGE) as (client, server, _):
        with pytest.raises(FileNotFoundError):
            await client.download(kept(server), tmp_path / "nowhere" / "fox.png")
    assert names(tmp_path) == []


async def test_an_image_may_lie_in_a_store_which_does_not_hear_our_key() -> None:
    async with serve(IMAGE) as store:
        elsewhere = answers("307 Temporary Redirect", b"", f"Location: {store.url('/bucket/a.png?signature=x')}")
        async with meeting(elsewhere) as (client, server, _):
            assert (await client.image(kept(server))).content == PNG
    assert paths(store) == ["/bucket/a.png?signature=x"]
    assert header(store.heads[0], "authorization") is None


async def test_an_image_that_is_always_elsewhere_is_not_followed_for_ever() -> None:
    async with meeting(answers("302 Found", b"", "Location: /uploads/images/a.png")) as (client, server, _):
        with pytest.raises(Unreachable, match="somewhere else"):
            await client.image(kept(server))
    assert len(server.heads) == 4


@pytest.mark.parametrize(("media_type", "shown"), [("image/png", "png"), ("image/jpeg", "jpeg"), ("image/webp", None)])
def test_an_image_shows_itself(media_type: str, shown: str | None, tmp_path: Path) -> None:
    image = Image(url="http://x/uploads/images/a.png", media_type=media_type, content=PNG)
    assert image._repr_mimebundle_() == {media_type: base64.b64encode(PNG).decode()}
    assert image._repr_png_() == (PNG if shown == "png" else None)
    assert image._repr_jpeg_() == (PNG if shown == "jpeg" else None)
    assert len(repr(image)) < 300
    assert image.save(tmp_path) == tmp_path / "a.png"
    assert image.save(str(tmp_path / "b.png")).read_bytes() == PNG


# -- from the wish to the image


def broker_of(*tasks: tuple[str, dict[str, Any]]) -> Script:
    """Takes any order, and tells these tasks of it."""
    ids = [f"task_{n}" for n in range(len(tasks))]

    async def script(visit: Visit) -> None:
        if visit.head.startswith(b"POST"):
            await hearing([], says_json({"taskIds": ids}, "202 Accepted"))(visit)
        elif visit.path.startswith("/uploads"):
            await IMAGE(visit)
        else:
            number = int(visit.path.partition("?")[0].rpartition("_")[2])
            status, more = tasks[number]
            await says_json({"data": {"id": ids[number], "status": status, **more}})(visit)

    return script


def made(number: int) -> tuple[str, dict[str, Any]]:
    return "completed", {"results": [{"url": f"/uploads/images/{number}.png", "sha256": SHA, "mediaType": "image/png"}]}


FLAGGED = (
    "failed",
    {"error": "The filter refused it.", "errorDetail": {"code": "safety_input", "retryable": False, "billed": "no"}},
)


async def test_images_come_in_the_order_of_their_tasks() -> None:
    async with meeting(broker_of(made(0), made(1), made(2))) as (client, _, _):
        images = await client.generate("a fox", n=3)
        assert [image.name for image in images] == ["0.png", "1.png", "2.png"]
        assert [image.content for image in images] == [PNG] * 3
        assert [image.name for image in await client.images("task_1")] == ["1.png"]


async def test_an_end_without_an_image_tells_why_and_hands_over_what_was_paid_for() -> None:
    async with meeting(broker_of(made(0), FLAGGED, made(2))) as (client, _, _):
        with pytest.raises(TaskFailed, match=r"The filter refused it. \(code safety_input, billed: no\)") as caught:
            await client.generate("a fox", n=3)
        error = caught.value
        assert (error.task.id, error.code, error.retryable, error.billed) == ("task_1", "safety_input", False, "no")
        assert [image.name for image in error.made] == ["0.png", "2.png"]
        assert error.task.error_detail == ErrorDetail(code="safety_input", retryable=False, billed="no")
        with pytest.raises(TaskFailed, match="safety_input"):
            await client.images("task_1")
    async with meeting(broker_of(("canceled", {"error": "Canceled."}))) as (client, _, _):
        with pytest.raises(TaskCanceled, match="billed: unknown"):
            await client.generate("a fox")


async def test_when_one_of_several_is_lost_nobody_waits_for_the_others() -> None:
    async def script(visit: Visit) -> None:
        if visit.head.startswith(b"POST"):
            await hearing([], says_json({"taskIds": ["task_0", "task_1"]}, "202 Accepted"))(visit)
        elif "task_0" in visit.path:
            await says_json({"error": "Deleted.", "code": "task_expired"}, "410 Gone")(visit)
        else:
            await visit.reader.readexactly(1)

    async with meeting(script) as (client, server, _):
        with pytest.raises(Refused, match="Deleted"):
            await client.generate("a fox", n=2)
        async with asyncio.timeout(5):
            await server.left.wait()


async def test_many_who_wait_do_not_keep_others_from_asking() -> None:
    """Each wait holds a connection; there must be one left for the order that comes after them."""
    ended = asyncio.Event()

    async def script(visit: Visit) -> None:
        if "wait" in visit.path:
            await ended.wait()
        await says_json(told("completed" if ended.is_set() else "pending"))(visit)

    async with meeting(script) as (client, _, _), asyncio.TaskGroup() as group:
        waiters = [group.create_task(client.wait(ID)) for _ in range(100)]
        async with asyncio.timeout(10):
            for _ in range(20):
                assert (await client.get(ID)).status == "pending"
        ended.set()
    assert {waiter.result().status for waiter in waiters} == {"completed"}
