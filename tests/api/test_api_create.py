"""Orders over HTTP: accepted requests, and rejected ones that store nothing."""

from __future__ import annotations

import asyncio
import base64
import json
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import ANY

import httpx
import pytest

from broker.api.http.request_body import parse_json
from broker.api.native.schemas import OrderAccepted
from broker.errors import ApiError
from broker.ordering.service import OrderService
from storage.blobs.store import BlobStore
from storage.errors import StorageFull
from tests.support.api import ApiBroker, open_api, png
from uploads.intake import Intake
from webhooks import strict_json

pytestmark = pytest.mark.anyio

CREATE = "/api/generate/image"
PROMPT = {"prompt": "a banana"}
DATA_URI = "data:image/png;base64," + base64.b64encode(png()).decode()
Parts = list[tuple[str, tuple[str | None, Any] | tuple[str | None, Any, str]]]


def text(**fields: str) -> Parts:
    return [(name, (None, value)) for name, value in fields.items()]


def file(data: bytes = b"", name: str = "a.png", part: str = "image") -> Parts:
    return [(part, (name, data, "image/png"))]


# -- what is taken


async def test_json_order_is_accepted(tmp_path: Path) -> None:
    """With the response that existing front ends read, and the headers for the first poll."""
    async with open_api(tmp_path) as broker:
        answer = await broker.client.post(CREATE, json=PROMPT)
        document = answer.json()
        task_id, batch_id = document.pop("taskId"), document.pop("batchId")
        assert (document.pop("warnings"), document.pop("estimate")["total"]) == ([ANY], 4)
        assert answer.status_code == 202
        assert document == {
            "success": True,
            "status": "processing",
            "message": "Your image is being generated, please wait...",
            "pollUrl": f"/api/task/{task_id}",
            "taskIds": [task_id],
            "batchUrl": f"/api/batch/{batch_id}",
            "ignored": [],
        }
        assert answer.headers["location"] == f"/api/task/{task_id}"
        assert answer.headers["retry-after"] == "3"
        assert (await broker.client.get(document["pollUrl"])).json()["data"]["prompt"] == "a banana"


LANGUAGES = [
    ("zh-CN,zh;q=0.9,en;q=0.8", "图片生成中，请等待..."),
    ("ru", "Изображение создаётся, подождите..."),
    ("fr, de;q=0.9", "Your image is being generated, please wait..."),
    ("en;q=0.1, zh;q=0.5", "图片生成中，请等待..."),
    ("zh;q=0, *", "Your image is being generated, please wait..."),
    ("\u00ff;;;q=x, ru;q=0.2", "Изображение создаётся, подождите..."),
]


async def test_message_is_in_the_language_of_the_caller(tmp_path: Path) -> None:
    async with open_api(tmp_path) as broker:
        for language, message in LANGUAGES:
            headers = [(b"accept-language", language.encode("latin-1"))]
            answer = await broker.client.post(CREATE, json=PROMPT, headers=headers)
            assert answer.json()["message"] == message, language


async def test_response_is_the_document_of_its_model(tmp_path: Path) -> None:
    async with open_api(tmp_path) as broker:
        document = (await broker.client.post(CREATE, json={**PROMPT, "unknown": 1, "numberOfImages": 2})).json()
    built = OrderAccepted.model_validate(document).to_document()
    assert json.dumps(built) == json.dumps(document)


async def test_form_of_the_old_front_end_is_accepted(tmp_path: Path) -> None:
    """FormData as in the integration guide, with an empty file field and unused steps."""
    async with open_api(tmp_path) as broker:
        fields = text(prompt="星空", model="nano-banana", mode="text-to-image", aspectRatio="1:1", steps="30", seed="")
        answer = await broker.client.post(CREATE, files=[*fields, *file(b"", "")])
        assert answer.status_code == 202
        assert answer.json()["ignored"] == ["steps"]
        data = (await broker.client.get(answer.json()["pollUrl"])).json()["data"]
        assert (data["prompt"], data["aspectRatio"], data["mode"]) == ("星空", "1:1", "text-to-image")


@pytest.mark.parametrize("part", ["image", "files"])
async def test_image_part_makes_the_order_image_to_image(tmp_path: Path, part: str) -> None:
    """Two files, one larger than the parser keeps in memory; both are stored as references."""
    async with open_api(tmp_path) as broker:
        parts = [*text(prompt="blend"), *file(png("red"), part=part), *file(png("blue"), "../../b.html", part=part)]
        answer = await broker.client.post(CREATE, files=parts)
        assert answer.status_code == 202, answer.text
        data = (await broker.client.get(answer.json()["pollUrl"])).json()["data"]
        assert data["mode"] == "image-to-image"
        owner = (await broker.services.tables.tasks.get(data["id"])).references  # type: ignore[union-attr]
        for reference, color in zip(owner, ("red", "blue"), strict=True):
            served = await broker.client.get(f"/uploads/references/{reference['name']}")
            assert served.content == png(color)


async def test_order_on_a_full_disk_is_storage_full(tmp_path: Path) -> None:
    """The second reference does not fit; the first is deleted at once, not by the next sweep."""
    async with open_api(tmp_path) as broker:
        broker.mount(orders=with_store(broker, _SecondIsFull(broker.services.blobs)))
        parts = [*text(prompt="blend"), *file(png("red")), *file(png("blue"))]
        answer = await broker.client.post(CREATE, files=parts)
        assert answer.status_code == 507
        assert (answer.json()["code"], answer.json()["retryable"]) == ("storage_full", True)
        assert not [path for path in (broker.folder / "blobs").rglob("*") if path.is_file()]


def with_store(broker: ApiBroker, blobs: BlobStore) -> OrderService:
    """Return the broker's order service with another image store."""
    orders = broker.services.orders
    intake = Intake.in_threads(blobs, max_pixels=10_000, max_decode_bytes=2**20)
    return replace(orders, references=replace(orders.references, blobs=blobs, intake=intake))


class _SecondIsFull:
    """A blob store whose disk is full after one draft."""

    def __init__(self, blobs: BlobStore) -> None:
        self._blobs = blobs
        self._drafts = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._blobs, name)

    def new_draft(self, owner: str) -> Any:
        self._drafts += 1
        if self._drafts > 1:
            raise StorageFull("no space is left for images")
        return self._blobs.new_draft(owner)


async def test_data_uris_and_aliases_are_accepted(tmp_path: Path) -> None:
    async with open_api(tmp_path) as broker:
        order = {**PROMPT, "images": [DATA_URI], "aspect_ratio": "16:9", "n": 2, "output_format": "jpeg", "color": "x"}
        answer = await broker.client.post(CREATE, json=order)
        assert answer.status_code == 202, answer.text
        assert len(set(answer.json()["taskIds"])) == 2
        assert answer.json()["taskIds"][0] == answer.json()["taskId"]
        assert answer.json()["ignored"] == ["color"]
        for task_id in answer.json()["taskIds"]:
            data = (await broker.client.get(f"/api/task/{task_id}")).json()["data"]
            assert (data["aspectRatio"], data["mode"]) == ("16:9", "image-to-image")


async def test_every_json_media_type_is_accepted(tmp_path: Path) -> None:
    async with open_api(tmp_path) as broker:
        for media_type in ("application/json; charset=UTF-8", "application/problem+json", "Application/JSON"):
            headers = {"content-type": media_type}
            assert (await broker.client.post(CREATE, content=b'{"prompt":"x"}', headers=headers)).status_code == 202


async def test_dry_run_stores_nothing(tmp_path: Path) -> None:
    async with open_api(tmp_path) as broker:
        before = await broker.stored_counts()
        by_json = await broker.client.post(CREATE, json={**PROMPT, "dryRun": True, "images": [DATA_URI], "odd": 1})
        by_form = await broker.client.post(CREATE, files=text(prompt="a banana", dryRun="TRUE"))
        for answer in (by_json, by_form):
            assert answer.status_code == 200, answer.text
            assert answer.json()["data"]["json"]["input"]["prompt"] == "a banana"
        assert by_json.json()["data"]["ignored"] == ["odd"]
        assert await broker.stored_counts() == before


# -- once


async def test_same_key_returns_the_same_response(tmp_path: Path) -> None:
    async with open_api(tmp_path) as broker:
        headers = {"Idempotency-Key": "order-1"}
        answers = [await broker.client.post(CREATE, json={**PROMPT, "n": 2}, headers=headers) for _ in range(3)]
        assert [answer.status_code for answer in answers] == [202, 202, 202]
        assert len({answer.text for answer in answers}) == 1
        other = await broker.client.post(CREATE, json={"prompt": "other"}, headers=headers)
        assert (other.status_code, other.json()["code"]) == (422, "idempotency_mismatch")


async def test_concurrent_requests_with_one_key_are_one_order(tmp_path: Path) -> None:
    """A double click, or an SDK that retries by itself."""
    async with open_api(tmp_path) as broker:
        headers = {"Idempotency-Key": "double-click"}
        posts = (broker.client.post(CREATE, json={**PROMPT, "images": [DATA_URI]}, headers=headers) for _ in range(20))
        answers = await asyncio.gather(*posts)
        assert {answer.status_code for answer in answers} == {202}
        assert len({answer.json()["taskId"] for answer in answers}) == 1
        tasks, images, keys, files = await broker.stored_counts()
        assert (tasks, images, keys, files) == (1, 1, 1, 1)


async def test_two_hundred_concurrent_requests_with_one_key_are_one_order(tmp_path: Path) -> None:
    """More than the rate limit allows, but none is rejected: there is only one order."""
    async with open_api(tmp_path, rate_per_minute=2) as broker:
        headers = {"Idempotency-Key": "one-click"}
        order = {**PROMPT, "n": 2}
        answers = await asyncio.gather(*(broker.client.post(CREATE, json=order, headers=headers) for _ in range(200)))
        assert [answer.status_code for answer in answers] == [202] * 200
        assert len({answer.text for answer in answers}) == 1
        assert (await broker.stored_counts())[0] == 2


async def test_repeated_order_is_neither_counted_nor_validated_again(tmp_path: Path) -> None:
    """The first response is returned, even if a URL has stopped working."""
    async with open_api(tmp_path, rate_per_minute=1) as broker:
        headers = {"Idempotency-Key": "order-1"}
        order = {**PROMPT, "images": [DATA_URI]}
        first = await broker.client.post(CREATE, json=order, headers=headers)
        repeated = [await broker.client.post(CREATE, json=order, headers=headers) for _ in range(3)]
        assert {answer.text for answer in repeated} == {first.text}
        task_id = first.json()["taskId"]
        await broker.services.database.execute("DELETE FROM tasks WHERE id = :id", id=task_id)
        late = await broker.client.post(CREATE, json=order, headers=headers)
        assert (late.status_code, late.json()["code"]) == (410, "task_expired")


async def test_reference_url_is_compared_by_its_address(tmp_path: Path) -> None:
    """The second order sends no request: nothing listens at the address any more."""
    picture = png()

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\nConnection: close\r\n\r\n" % len(picture) + picture)
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    host = f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
    async with open_api(tmp_path, download_allow=(host,)) as broker:
        order = {**PROMPT, "imageUrls": [f"http://{host}/a.png"]}
        headers = {"Idempotency-Key": "order-1"}
        first = await broker.client.post(CREATE, json=order, headers=headers)
        server.close()
        await server.wait_closed()
        again = await broker.client.post(CREATE, json=order, headers=headers)
        other = {**PROMPT, "imageUrls": [f"http://{host}/b.png"]}
        mismatch = await broker.client.post(CREATE, json=other, headers=headers)
    assert (first.status_code, again.text) == (202, first.text)
    assert mismatch.json()["code"] == "idempotency_mismatch"


async def test_same_files_with_one_key_are_one_order(tmp_path: Path) -> None:
    async with open_api(tmp_path) as broker:
        headers = {"Idempotency-Key": "order-1"}
        files = {"image": ("a.png", png(), "image/png")}
        answers = [
            await broker.client.post(CREATE, data={"prompt": "x"}, files=files, headers=headers) for _ in range(2)
        ]
        assert answers[0].status_code == 202, answers[0].text
        assert answers[0].text == answers[1].text
        another = {"image": ("a.png", png("blue"), "image/png")}
        other = await broker.client.post(CREATE, data={"prompt": "x"}, files=another, headers=headers)
        assert other.json()["code"] == "idempotency_mismatch"


@pytest.mark.parametrize("field", ["images", "imageUrls"])
@pytest.mark.parametrize("entry", ["", None])
async def test_empty_reference_is_rejected(tmp_path: Path, field: str, entry: str | None) -> None:
    """If it were dropped, image-to-image would become a paid text-to-image order."""
    async with open_api(tmp_path) as broker:
        answer = await broker.client.post(CREATE, json={**PROMPT, field: [entry]})
        assert (answer.status_code, answer.json()["code"]) == (400, "invalid_image")


async def test_idempotency_key_must_be_visible_ascii(tmp_path: Path) -> None:
    async with open_api(tmp_path) as broker:
        for keys in ([""], ["a b"], ["ü"], ["x" * 256], ["a", "a"]):
            headers = [(b"idempotency-key", key.encode("latin-1")) for key in keys]
            answer = await broker.client.post(CREATE, json=PROMPT, headers=headers)
            assert (answer.status_code, answer.json()["field"]) == (400, "Idempotency-Key"), keys


# -- what is refused

BAD_VALUES: list[tuple[str, Any, str]] = [
    ("prompt", "", "invalid_prompt"),
    ("prompt", "   \n", "invalid_prompt"),
    ("prompt", "\u200b\u200b", "invalid_prompt"),
    ("prompt", "x" * 5001, "invalid_prompt"),
    ("prompt", "x" * 300_000, ""),
    ("prompt", "a\u0000b", "invalid_prompt"),
    ("prompt", "a\u001bb", "invalid_prompt"),
    ("model", "no-such-model", "unsupported_parameter"),
    ("model", "../../etc/passwd", "unsupported_parameter"),
    ("model", "\u0000", "unsupported_parameter"),
    ("model", "x" * 100_000, "unsupported_parameter"),
    ("model", "'; DROP TABLE tasks; --", "unsupported_parameter"),
    ("mode", "video", "unsupported_parameter"),
    ("mode", "image-to-image", "invalid_request"),
    ("mode", "TEXT", "unsupported_parameter"),
    ("aspectRatio", "7:5", "unsupported_parameter"),
    ("aspectRatio", "1:1:1", "unsupported_parameter"),
    ("aspectRatio", "\u202e1:1", "unsupported_parameter"),
    ("aspect_ratio", "8:1", "unsupported_parameter"),
    ("resolution", "8K", "unsupported_parameter"),
    ("resolution", "4K", "unsupported_parameter"),
    ("outputFormat", "gif", "unsupported_parameter"),
    ("output_format", "svg", "unsupported_parameter"),
    ("numberOfImages", "0", "invalid_request"),
    ("numberOfImages", "7", "invalid_request"),
    ("numberOfImages", "-1", "invalid_request"),
    ("numberOfImages", "1.5", "invalid_request"),
    ("numberOfImages", "two", "invalid_request"),
    ("numberOfImages", "9" * 5000, "invalid_request"),
    ("numberOfImages", "٣", "invalid_request"),
    ("number_of_images", "1e1", "invalid_request"),
    ("n", "0x2", "invalid_request"),
    ("steps", "0", "invalid_request"),
    ("steps", "1001", "invalid_request"),
    ("steps", "many", "invalid_request"),
    ("seed", str(2**53), "invalid_request"),
    ("seed", str(-(2**80)), "invalid_request"),
    ("seed", "nan", "invalid_request"),
    ("dryRun", "yes", "invalid_request"),
    ("dryRun", "2", "invalid_request"),
    ("dry_run", "None", "invalid_request"),
    ("callbackUrl", "http://127.0.0.1/hook", "invalid_request"),
    ("callbackUrl", "https://example.com:8443/hook", "invalid_request"),
    ("callbackUrl", "https://user:word@example.com/hook", "invalid_request"),
    ("callbackUrl", "https://93.184.216.34/" + "x" * 2048, "invalid_request"),
    ("callback_url", "javascript:alert(1)", "invalid_request"),
    ("imageUrls", "http://127.0.0.1:22/", "invalid_image"),
    ("imageUrls", "http://169.254.169.254/latest/meta-data", "invalid_image"),
    ("imageUrls", "file:///etc/passwd", "invalid_image"),
    ("imageUrls", "not a url", "invalid_image"),
    ("imageUrls", "http://\u0000.example/", "invalid_image"),
    ("image_urls", "http://[::1]:1/x.png", "invalid_image"),
]
"""Values as text, so that forms and JSON share the table."""

WRONG_TEXTS: list[Any] = [1, 1.5, True, [], ["x"], {}, {"a": 1}]
WRONG_NUMBERS: list[Any] = ["1", 1.5, 1.0, True, [], [1], {}, 10**100]
WRONG_TRUTHS: list[Any] = ["true", 1, 0, [], {}, 1.0]
WRONG_LINKS: list[Any] = [1, {}, [1], [{}]]
WRONG_IMAGES: list[Any] = [1, True, {}, [1], [None, 1], [[DATA_URI]], {"url": DATA_URI}]
BAD_JSON_VALUES: list[tuple[str, Any]] = [
    *((name, value) for name in ("prompt", "model", "mode", "aspectRatio", "resolution", "outputFormat", "callbackUrl")
      for value in WRONG_TEXTS),
    *((name, value) for name in ("numberOfImages", "steps", "seed") for value in WRONG_NUMBERS),
    *(("dryRun", value) for value in WRONG_TRUTHS),
    *(("images", value) for value in WRONG_IMAGES),
    *(("images", value) for value in ("x", ["data:,x"], ["data:image/png;base64,AAAA"], ["data:text/html;base64,PGI+"],
                                      ["https://example.com/a.png"], [DATA_URI] * 11, [DATA_URI + "="], ["\u0000"])),
    *(("imageUrls", value) for value in WRONG_LINKS),
    *(("imageUrls", value) for value in (["x"] * 11, ["x" * 300_000], [DATA_URI])),
]  # fmt: skip


async def check_rejected(broker: ApiBroker, what: str, answer: httpx.Response, code: str = "") -> None:
    """Check that the response is an error in the native shape; `what` names the case."""
    about = f"{what[:200]} → {answer.status_code} {answer.text[:300]}"
    assert 400 <= answer.status_code < 500, about
    document = answer.json()
    assert document["success"] is False, about
    assert isinstance(document["error"], str), about
    assert document["error"], about
    assert document["retryable"] is False, about
    assert not code or document["code"] == code, about


async def test_invalid_json_values_store_nothing(tmp_path: Path) -> None:
    async with open_api(tmp_path) as broker:
        before = await broker.stored_counts()
        for name, value, code in BAD_VALUES:
            if code:
                for wrong in _as_json(name, value):
                    answer = await broker.client.post(CREATE, json={**PROMPT, name: wrong})
                    await check_rejected(broker, f"{name}={wrong!r}", answer, code)
        for name, value in BAD_JSON_VALUES:
            answer = await broker.client.post(CREATE, json={**PROMPT, name: value})
            await check_rejected(broker, f"{name}={value!r}", answer)
            assert answer.json().get("field") in {name, "image", "imageUrls"}, (name, value)
        assert await broker.stored_counts() == before


def _as_json(name: str, value: str) -> list[Any]:
    """Return the number that a form writes out, and the text itself, which JSON must not read as a number."""
    try:
        return [json.loads(value)] if name not in {"prompt", "model", "mode"} else [value]
    except ValueError:
        return [value]


async def test_invalid_form_values_store_nothing(tmp_path: Path) -> None:
    async with open_api(tmp_path) as broker:
        before = await broker.stored_counts()
        for name, value, code in BAD_VALUES:
            answer = await broker.client.post(CREATE, files=text(**{**PROMPT, name: value}))
            await check_rejected(broker, f"{name}={value!r}", answer, code)
            if code:
                assert answer.json()["field"], name
        assert await broker.stored_counts() == before


async def test_invalid_forms_store_nothing(tmp_path: Path) -> None:
    """Files as text, text as files, repeated fields, files that are not images."""
    prompt = text(**PROMPT)
    cases: dict[str, tuple[Parts, str]] = {
        "no field at all": (text(other="x"), "invalid_prompt"),
        "prompt twice": ([*prompt, *text(prompt="another")], "invalid_prompt"),
        "two counts": ([*prompt, *text(n="1"), *text(numberOfImages="2")], "invalid_request"),
        "a file as prompt": (file(b"a banana", "p.txt", "prompt"), "invalid_prompt"),
        "a file as model": ([*prompt, *file(b"x", "m", "model")], "invalid_request"),
        "a file as url": ([*prompt, *file(b"x", "m", "imageUrls")], "invalid_image"),
        "text as image": ([*prompt, *text(image=DATA_URI)], "invalid_image"),
        "an empty file": ([*prompt, *file(b"", "a.png")], "invalid_image"),
        "a page": ([*prompt, *file(b"<html><script>alert(1)</script>")], "invalid_image"),
        "a drawing": ([*prompt, *file(b"<svg xmlns='http://www.w3.org/2000/svg'/>", "a.svg")], "invalid_image"),
        "half an image": ([*prompt, *file(png()[:-20])], "invalid_image"),
        "a good and a bad image": ([*prompt, *file(png()), *file(b"junk")], "invalid_image"),
        "too many images": ([*prompt, *(file(png()) * 11)], "too_many_images"),
        "images for text": ([*prompt, *text(mode="text-to-image"), *file(png())], "invalid_request"),
        "too many parts": ([*prompt, *(file(b"x") * 101)], "invalid_request"),
        "too many fields": ([*prompt, *(text(x="1") * 101)], "invalid_request"),
        "a large text": ([*prompt, *text(other="x" * 300_000)], "payload_too_large"),
    }
    async with open_api(tmp_path) as broker:
        before = await broker.stored_counts()
        for what, (parts, code) in cases.items():
            await check_rejected(broker, what, await broker.client.post(CREATE, files=parts), code)
        assert await broker.stored_counts() == before


def part(name: bytes, value: bytes, boundary: bytes = b"x") -> bytes:
    return b"--" + boundary + b'\r\nContent-Disposition: form-data; name="' + name + b'"\r\n\r\n' + value + b"\r\n"


MULTIPART = "multipart/form-data; boundary=x"
BODIES: list[tuple[str | None, bytes]] = [
    (None, b""),
    (None, b'{"prompt":"x"}'),
    ("", b'{"prompt":"x"}'),
    ("text/plain", b'{"prompt":"x"}'),
    ("application/x-www-form-urlencoded", b"prompt=x"),
    ("application/xml", b"<prompt/>"),
    ("json", b'{"prompt":"x"}'),
    (";;;", b"x"),
    ("application/json; charset=utf-16", '{"prompt":"x"}'.encode("utf-16")),
    ("application/json", b""),
    ("application/json", b" "),
    ("application/json", b"{"),
    ("application/json", b"[]"),
    ("application/json", b'["prompt"]'),
    ("application/json", b'"prompt"'),
    ("application/json", b"null"),
    ("application/json", b"1"),
    ("application/json", b"NaN"),
    ("application/json", b'{"prompt":"x","seed":NaN}'),
    ("application/json", b'{"prompt":"x","seed":Infinity}'),
    ("application/json", b'{"prompt":"x","other":NaN}'),
    ("application/json", b'{"prompt":"x","seed":' + b"9" * 5000 + b"}"),
    ("application/json", b'{"prompt":"x","seed":1e999}'),
    ("application/json", b'{"prompt":"\xff"}'),
    ("application/json", b'\xef\xbb\xbf{"prompt":"x"}'),
    ("application/json", b'{"prompt":"\\ud800"}'),
    ("application/json", b'{"prompt":"x","model":"\\udfff"}'),
    ("application/json", b'{"prompt":"x","\\ud800":1}'),
    ("application/json", b'{"prompt":"x","images":["\\ud800"]}'),
    ("application/json", b'{"prompt":"x\n"}'),
    ("application/json", b"[" * 100_000),
    ("application/json", b"[" * 100_000 + b"]" * 100_000),
    ("application/json", b'{"prompt":"x","a":' + b"[" * 50 + b"]" * 50 + b"}"),
    ("application/json", b"{'prompt':'x'}"),
    ("application/json", b'{"prompt":"x"}{}'),
    ("multipart/form-data", part(b"prompt", b"x") + b"--x--\r\n"),
    ("multipart/form-data; boundary=", part(b"prompt", b"x") + b"--x--\r\n"),
    ('multipart/form-data; boundary=""', b"--\r\n"),
    (MULTIPART, b""),
    (MULTIPART, b"--x--\r\n"),
    (MULTIPART, b"junk"),
    (MULTIPART, part(b"prompt", b"x")),
    (MULTIPART, part(b"prompt", b"x") + b"--x"),
    (
        MULTIPART,
        part(b"prompt", b"x") + b'--x\r\nContent-Disposition: form-data; name="image"; filename="a.png"\r\n\r\n',
    ),
    (MULTIPART, part(b"prompt", b"x") + part(b"n", b"6")),
    (MULTIPART, part(b"prompt", b"x", b"y") + b"--y--\r\n"),
    (MULTIPART, b"--x\r\n\r\nno headers\r\n--x--\r\n"),
    (MULTIPART, b"--x\r\nContent-Disposition: form-data\r\n\r\nno name\r\n--x--\r\n"),
    (MULTIPART, b"--x\r\nContent-Disposition\r\n\r\nx\r\n--x--\r\n"),
    (MULTIPART, b"--x\r\n" + b"A: b\r\n" * 1000 + b"\r\nx\r\n--x--\r\n"),
    (MULTIPART, b"--x\r\nA: " + b"b" * 100_000 + b"\r\n\r\nx\r\n--x--\r\n"),
    ("multipart/form-data; boundary=" + "y" * 5000, b"--" + b"y" * 5000),
    (MULTIPART + "; charset=utf-16", part(b"prompt", "x".encode("utf-16")) + b"--x--\r\n"),
    (MULTIPART + "; charset=idna", part(b"prompt", b"xn--" + b"a" * 100) + b"--x--\r\n"),
    (MULTIPART + "; charset=unicode_escape", part(b"prompt", b"\\ud800") + b"--x--\r\n"),
    (MULTIPART + "; charset=undefined", part(b"prompt", b"x") + b"--x--\r\n"),
    (MULTIPART + "; charset=rot13", part(b"prompt", b"x") + b"--x--\r\n"),
]


async def test_unreadable_bodies_store_nothing(tmp_path: Path) -> None:
    async with open_api(tmp_path) as broker:
        before = await broker.stored_counts()
        for media_type, body in BODIES:
            headers = {} if media_type is None else {"content-type": media_type}
            answer = await broker.client.post(CREATE, content=body, headers=headers)
            await check_rejected(broker, f"{media_type} {body[:80]!r}", answer)
        packed = await broker.client.post(
            CREATE, content=b"x", headers={"content-type": "application/json", "content-encoding": "gzip"}
        )
        await check_rejected(broker, "packed", packed, "invalid_request")
        assert await broker.stored_counts() == before


async def test_unusual_bodies_are_accepted(tmp_path: Path) -> None:
    """Latin-1 text in a form, unknown fields with unusual names."""
    async with open_api(tmp_path) as broker:
        bodies_and_ignored: list[tuple[str, bytes, list[str]]] = [
            ("application/json", '{"prompt":"x","\\u0000":1,"ключ":[[]]}'.encode(), ["ключ"]),
            ("application/json", b'{"prompt":"x","model":null,"seed":null,"images":null,"image":[]}', []),
            (MULTIPART, part(b"prompt", b"\xff\xfe") + b"--x--\r\n", []),
            (MULTIPART, part(b"prompt", b"x") + part(b"\xff", b"y") + b"--x--\r\nepilogue", ["ÿ"]),
            ("application/json", b'{"prompt":"x",' + b",".join(b'"u%d":1' % n for n in range(99)) + b"}",
             [f"u{n}" for n in range(20)]),
        ]  # fmt: skip
        for media_type, body, ignored in bodies_and_ignored:
            answer = await broker.client.post(CREATE, content=body, headers={"content-type": media_type})
            assert answer.status_code == 202, (body, answer.text)
            assert answer.json()["ignored"] == ignored


async def test_all_invalid_fields_are_reported_at_once(tmp_path: Path) -> None:
    async with open_api(tmp_path) as broker:
        wrong = {"prompt": "", "model": "x", "aspectRatio": "9:9"}
        document = (await broker.client.post(CREATE, json=wrong)).json()
        assert (document["field"], document["code"]) == ("prompt", "invalid_prompt")
        assert [one["field"] for one in document["details"]] == ["prompt", "model", "aspectRatio"]


async def test_translated_error_keeps_the_rule(tmp_path: Path) -> None:
    """The developer of a client needs the exact rule in every language."""
    async with open_api(tmp_path) as broker:
        for language in ("zh", "ru"):
            answer = await broker.client.post(CREATE, json={**PROMPT, "n": 9}, headers={"accept-language": language})
            assert "from 1 to 6" in answer.json()["error"]
            assert not answer.json()["error"].isascii()


async def test_orders_above_the_rate_limit_are_rejected(tmp_path: Path) -> None:
    async with open_api(tmp_path, rate_per_minute=2) as broker:
        answers = [await broker.client.post(CREATE, json=PROMPT) for _ in range(3)]
        assert [answer.status_code for answer in answers] == [202, 202, 429]
        assert answers[2].json()["code"] == "rate_limited"
        assert answers[2].json()["retryable"] is True
        assert 1 <= int(answers[2].headers["retry-after"]) <= 60


async def test_json_with_a_duplicate_name_is_rejected(tmp_path: Path) -> None:
    """As in a form: one of two values would be used, and which one depends on the parser."""
    async with open_api(tmp_path) as broker:
        before = await broker.stored_counts()
        for body in (b'{"prompt": "a", "prompt": "b"}', b'{"prompt": "a", "n": 1, "\\u0070rompt": "b"}'):
            answer = await broker.client.post(CREATE, content=body, headers={"content-type": "application/json"})
            await check_rejected(broker, repr(body), answer, "invalid_request")
            assert answer.json()["field"] == "prompt"
            assert answer.json()["error"] == "prompt was given more than once: send one value."
        odd = b'{"prompt": "a", "\\ud800": 1, "\\ud800": 2}'
        answer = await broker.client.post(CREATE, content=odd, headers={"content-type": "application/json"})
        await check_rejected(broker, repr(odd), answer, "invalid_request")
        assert await broker.stored_counts() == before


def test_json_depth_is_limited() -> None:
    """A body at the limit is read, a deeper one is rejected."""
    deepest = strict_json.MAX_DEPTH - 1
    assert parse_json(b"[" * deepest + b"1" + b"]" * deepest)
    with pytest.raises(ApiError):
        parse_json(b"[" * (deepest + 1) + b"1" + b"]" * (deepest + 1))
