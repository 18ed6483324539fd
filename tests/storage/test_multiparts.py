"""Unfinished uploads: every page is read, and nothing that a server says is trusted further than it must be."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable
from urllib.parse import parse_qs, urlsplit

import pytest

from storage.multiparts import ANSWER_BYTES, Multiparts, NoAnswer, Refused, Unfinished
from storage.sigv4 import Key
from tests.faults.faulty_http import Script, Visit, answers, says, serve
from tests.faults.faulty_http import head as top

pytestmark = pytest.mark.anyio


def page(*keys: str, more: str = "") -> bytes:
    uploads = "".join(
        f"<Upload><Key>{key}</Key><UploadId>id-{key}</UploadId><Initiated>2026-11-24T12:00:00.000Z</Initiated></Upload>"
        for key in keys
    )
    namespace = "http://s3.amazonaws.com/doc/2006-03-01/"
    return f'<ListMultipartUploadsResult xmlns="{namespace}">{more}{uploads}</ListMultipartUploadsResult>'.encode()


def more(marker: str) -> str:
    return (
        f"<IsTruncated>true</IsTruncated><NextKeyMarker>{marker}</NextKeyMarker>"
        f"<NextUploadIdMarker>id-{marker}</NextUploadIdMarker>"
    )


async def listed(script: Script, seconds: float = 5.0) -> list[Unfinished]:
    async with serve(script) as server:
        multiparts = Multiparts(
            endpoint=server.url("/store/"),
            bucket="bucket",
            region="us-east-1",
            key=Key(id="id", secret="secret"),
            seconds=seconds,
        )
        pages = multiparts.pages("images/")
        return await asyncio.to_thread(lambda: [upload for page in pages for upload in page])


async def test_all_pages_are_read() -> None:
    asked: list[dict[str, list[str]]] = []

    async def script(visit: Visit) -> None:
        assert visit.path.startswith("/store/bucket?")
        query = parse_qs(urlsplit(visit.path).query, keep_blank_values=True)
        asked.append(query)
        body = page("c") if "key-marker" in query else page("a", "b", more=more("b"))
        await answers("200 OK", body)(visit)

    assert [(upload.key, upload.id) for upload in await listed(script)] == [("a", "id-a"), ("b", "id-b"), ("c", "id-c")]
    assert asked[0] == {"uploads": [""], "prefix": ["images/"]}
    assert asked[1] == {**asked[0], "key-marker": ["b"], "upload-id-marker": ["id-b"]}


async def test_a_date_is_a_moment() -> None:
    (upload,) = await listed(answers("200 OK", page("a")))
    assert upload.begun_at == 1795521600.0


async def test_a_key_is_read_as_it_is() -> None:
    (upload,) = await listed(answers("200 OK", page("a&amp;b")))
    assert upload.key == "a&b"


BOMB = b'<!DOCTYPE x [<!ENTITY a "aaaaaaaaaa"><!ENTITY b "&a;&a;&a;&a;&a;">]><x>&b;</x>'


@pytest.mark.parametrize(
    "script",
    [
        answers("200 OK", b"not XML"),
        answers("200 OK", b"\xff\xfe<\0x\0/\0>\0"),
        answers("200 OK", BOMB),
        answers("200 OK", BOMB.decode().encode("utf-16")),
        answers("200 OK", page("a").replace(b"2026", b"MMXX")),
        answers("200 OK", page("a", more=more("a"))),
        answers("200 OK", b" " * (ANSWER_BYTES + 1)),
        says(b"SSH-2.0-OpenSSH\r\n"),
        says(b""),
    ],
    ids="no-XML UTF-16 entities entities-in-UTF-16 date endless large SSH nothing".split(),
)
async def test_what_makes_no_sense_is_no_answer(script: Script) -> None:
    with pytest.raises(NoAnswer):
        await listed(script)


async def test_an_answer_that_drips_is_given_up() -> None:
    """Every byte in time, and the whole never."""

    async def drip(visit: Visit) -> None:
        await visit.say(top())
        while not visit.writer.is_closing():
            await visit.say(b" ")
            await asyncio.sleep(0.01)

    with pytest.raises(NoAnswer):
        await listed(drip, seconds=0.1)


REASONS: dict[str, Callable[[Refused], bool]] = {
    "<Error><Code>AccessDenied</Code></Error>": lambda refused: refused.code == "AccessDenied",
    "<html>": lambda refused: refused.code is None,
    "": lambda refused: refused.code is None,
}


@pytest.mark.parametrize("body", REASONS)
async def test_a_refusal_keeps_its_reason(body: str) -> None:
    with pytest.raises(Refused, match="403") as caught:
        await listed(answers("403 Forbidden", body.encode()))
    assert REASONS[body](caught.value)


@pytest.mark.parametrize("status", ["405 Method Not Allowed", "501 Not Implemented"])
async def test_a_store_without_the_call_has_no_such_uploads(status: str) -> None:
    """Not every store that speaks S3 speaks all of it; the rest of a sweep must go on."""
    assert await listed(answers(status)) == []


async def test_an_abort_names_the_upload_and_is_signed() -> None:
    async with serve(answers("204 No Content")) as server:
        multiparts = Multiparts(
            endpoint=server.url(""), bucket="bucket", region="us-east-1", key=Key(id="id", secret="s"), seconds=5
        )
        await asyncio.to_thread(multiparts.abort, Unfinished(key="images/a/b", id="x+/=", begun_at=0))
    (head,) = server.heads
    assert head.startswith(b"DELETE /bucket/images/a/b?uploadId=x%2B%2F%3D HTTP/1.1\r\n")
    assert re.search(rb"\r\nauthorization: AWS4-HMAC-SHA256 Credential=id/", head)
    assert f"\r\nhost: {server.host}\r\n".encode() in head
