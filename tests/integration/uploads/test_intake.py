"""Intake: limits, data URIs, failing senders and stores, and memory."""

from __future__ import annotations

import asyncio
import base64
import os
import tracemalloc
import zlib
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from storage.blobs.local import LocalBlobs
from storage.errors import StorageError, StorageFull
from tests.support import samples as s
from tests.support.intake import MAX_BYTES, MAX_DECODE_BYTES, MAX_PIXELS, IntakeHarness, open_process, stream
from uploads.intake import WRITE_SIZE_BYTES, Intake
from uploads.structure import InvalidImage

pytestmark = pytest.mark.anyio

BOTH_WAYS = pytest.mark.parametrize("harness", ["threads", "process"], indirect=True)


@pytest.fixture
async def harness(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[IntakeHarness]:
    if getattr(request, "param", "threads") == "threads":
        yield IntakeHarness(tmp_path)
        return
    async with open_process(tmp_path) as process:
        yield IntakeHarness(tmp_path, process)


@pytest.mark.parametrize("step", [1, 7, 1023, 1024, 1025, 10**9])
async def test_chunks_may_have_any_size(harness: IntakeHarness, step: int) -> None:
    image = await harness.accept(s.PNG, step)
    assert image.blob.size == len(s.PNG)


async def test_empty_chunks_change_nothing(harness: IntakeHarness) -> None:
    async def chunks() -> AsyncIterator[bytes]:
        for byte in s.WEBP:
            yield b""
            yield bytes([byte])

    assert (await harness.intake.from_stream("task_1", chunks(), max_bytes=MAX_BYTES)).extension == "webp"


async def test_size_limit_is_enforced_while_reading(harness: IntakeHarness) -> None:
    """A sender that never stops is stopped, whatever length it announced."""
    read = 0

    async def endless() -> AsyncIterator[bytes]:
        nonlocal read
        yield s.PNG[:100]
        while True:
            read += 1000
            yield b"x" * 1000

    with pytest.raises(InvalidImage, match="larger than 1,000,000 bytes") as caught:
        await harness.intake.from_stream("task_1", endless(), max_bytes=1_000_000)
    assert caught.value.code == "payload_too_large"
    assert read <= 1_001_000
    assert harness.files() == []


@BOTH_WAYS
async def test_size_equal_to_the_limit_is_accepted(harness: IntakeHarness) -> None:
    size = len(s.PNG)
    await harness.intake.from_stream("task_1", stream(s.PNG), max_bytes=size)
    with pytest.raises(InvalidImage, match="larger"):
        await harness.intake.from_stream("task_1", stream(s.PNG), max_bytes=size - 1)


@BOTH_WAYS
async def test_same_image_twice_is_one_blob(harness: IntakeHarness) -> None:
    assert await harness.accept(s.JPEG) == await harness.accept(s.JPEG)
    assert len(harness.files()) == 1


@pytest.mark.parametrize("after", [0, 100, 2_000, 700_000])
async def test_failing_sender_leaves_no_file(harness: IntakeHarness, after: int) -> None:
    """The sender's error is raised: a lost connection is not a bad image."""
    data = s.plain_png(s.chunk(b"tEXt", b"a\0" + b"x" * 1_000_000))

    async def broken() -> AsyncIterator[bytes]:
        yield data[:after]
        raise ConnectionResetError

    with pytest.raises(ConnectionResetError):
        await harness.intake.from_stream("task_1", broken(), max_bytes=MAX_BYTES)
    assert harness.files() == []


async def test_full_disk_is_storage_full(tmp_path: Path) -> None:
    intake = Intake.in_threads(
        LocalBlobs(tmp_path, free_floor=2**60), max_pixels=MAX_PIXELS, max_decode_bytes=MAX_DECODE_BYTES
    )
    with pytest.raises(StorageFull, match="BROKER_RETENTION_HOURS"):
        await intake.from_stream("task_1", stream(s.PNG), max_bytes=MAX_BYTES)


@BOTH_WAYS
async def test_unreadable_draft_is_a_storage_error(harness: IntakeHarness) -> None:
    """Not a bad image: the same bytes may be accepted later."""

    async def chunks() -> AsyncIterator[bytes]:
        yield s.plain_png(s.chunk(b"tEXt", b"a\0" + b"x" * WRITE_SIZE_BYTES))
        for draft in harness.files():
            draft.unlink()

    with pytest.raises(StorageError, match="cannot be read back"):
        await harness.intake.from_stream("task_1", chunks(), max_bytes=MAX_BYTES)


@BOTH_WAYS
async def test_invalid_owner_is_rejected(harness: IntakeHarness) -> None:
    with pytest.raises(ValueError, match="owner"):
        await harness.intake.from_stream("../x", stream(s.PNG), max_bytes=MAX_BYTES)


async def test_pixel_limit_is_counted_exactly(harness: IntakeHarness) -> None:
    for limit, is_accepted in ((24 * 17, True), (24 * 17 - 1, False)):
        intake = Intake.in_threads(harness.blobs, max_pixels=limit, max_decode_bytes=MAX_DECODE_BYTES)
        for data in (s.PNG, s.JPEG, s.WEBP, s.WEBP_LOSSLESS):
            try:
                await intake.from_stream("task_1", stream(data), max_bytes=MAX_BYTES)
                assert is_accepted
            except InvalidImage:
                assert not is_accepted


# -- data URIs


def b64(data: bytes) -> str:
    return base64.b64encode(data).decode()


BIG = s.plain_png(s.chunk(b"tEXt", b"a\0" + os.urandom(500_000)))

GOOD_URIS = {
    "usual": "data:image/png;base64," + b64(s.PNG),
    "bare": b64(s.PNG),
    "a wrong type": "data:image/jpeg;base64," + b64(s.PNG),
    "no type": "data:;base64," + b64(s.PNG),
    "a parameter": "data:image/png;name=a.png;base64," + b64(s.PNG),
    "capitals": "DATA:IMAGE/PNG;BASE64," + b64(s.PNG),
    "large": "data:image/png;base64," + b64(BIG),
    "large and bare": b64(BIG),
}


@pytest.mark.parametrize("name", GOOD_URIS)
async def test_data_uri_is_decoded(harness: IntakeHarness, name: str) -> None:
    image = await harness.intake.from_data_uri("task_1", GOOD_URIS[name], max_bytes=MAX_BYTES)
    assert image.media_type == "image/png"
    (file,) = harness.files()
    assert file.read_bytes() == (BIG if "large" in name else s.PNG)


LONG = b64(BIG)
BAD_URIS = {
    "": "empty",
    "data:": "not base64",
    "data:image/png;base64,": "empty",
    "data:image/png;base64": "not base64",
    "data:image/png," + "%89PNG": "not base64",
    "data:image/svg+xml;base64," + b64(b"<svg/>"): "SVG",
    "data:text/html;base64," + b64(b"<html>"): "HTML",
    "data:" + "x" * 1000 + ";base64," + b64(s.PNG): "not base64",
    "https://example.com/cat.png": "web address",
    "HTTP://example.com": "web address",
    b64(s.PNG)[:-3]: "valid base64",
    b64(s.PNG) + "\n": "valid base64",
    " " + b64(s.PNG): "valid base64",
    b64(s.PNG)[:76] + "\n" + b64(s.PNG)[76:]: "valid base64",
    "data:image/png;base64, " + b64(s.PNG): "valid base64",
    base64.urlsafe_b64encode(b"\x89PNG\r\n\x1a\n" + b"\xff" * 9).decode(): "valid base64",
    b64(s.PNG) + "====": "valid base64",
    b64(s.PNG).replace("A", "é"): "valid base64",
    b64(s.PNG).replace("A", "\0"): "valid base64",
    b64(s.PNG).replace("A", "%"): "valid base64",
    LONG[:262_140] + "AA==" + LONG[262_144:]: "valid base64",  # padding at the end of a piece
    LONG[:300_000] + "=" + LONG[300_001:]: "valid base64",
    "not an image at all": "valid base64",
}


@pytest.mark.parametrize(
    ("uri", "problem"), [pytest.param(*item, id=str(i)) for i, item in enumerate(BAD_URIS.items())]
)
async def test_bad_data_uri_is_rejected(harness: IntakeHarness, uri: str, problem: str) -> None:
    with pytest.raises(InvalidImage, match=problem) as caught:
        await harness.intake.from_data_uri("task_1", uri, max_bytes=MAX_BYTES)
    assert caught.value.code == "invalid_image"
    assert harness.files() == []


@pytest.mark.parametrize("data", [s.PNG, s.PNG + b"\0", s.PNG + b"\0\0"])
async def test_limit_of_a_data_uri_is_that_of_its_bytes(harness: IntakeHarness, data: bytes) -> None:
    """Whatever padding there is."""
    with pytest.raises(InvalidImage) as caught:
        await harness.intake.from_data_uri("task_1", b64(data), max_bytes=len(data) - 1)
    assert caught.value.code == "payload_too_large"
    await harness.intake.from_data_uri("task_1", b64(s.PNG), max_bytes=len(s.PNG))


# -- memory


@BOTH_WAYS
async def test_memory_is_constant_for_many_large_images(harness: IntakeHarness) -> None:
    """Twenty senders of 20 MB at once."""
    side = 2600
    pixels = zlib.compress((b"\0" + os.urandom(side * 3)) * side, 0)
    data = memoryview(s.png(s.header(side, side), s.chunk(b"IDAT", pixels)))
    assert len(data) > 20_000_000

    async def chunks() -> AsyncIterator[bytes]:
        for start in range(0, len(data), 65_536):
            yield bytes(data[start : start + 65_536])

    tracemalloc.start()
    try:
        images = await asyncio.gather(
            *(harness.intake.from_stream(f"task_{n}", chunks(), max_bytes=MAX_BYTES) for n in range(20))
        )
        assert tracemalloc.get_traced_memory()[1] < 24 * 2**20
    finally:
        tracemalloc.stop()
    assert {image.blob.size for image in images} == {len(data)}


@BOTH_WAYS
async def test_large_data_uri_is_decoded_piece_by_piece(harness: IntakeHarness) -> None:
    uri = "data:image/png;base64," + b64(s.png(s.header(2600, 2600), s.chunk(b"IDAT", s.rows(2600, 2600, level=0))))
    tracemalloc.start()
    try:
        await harness.intake.from_data_uri("task_1", uri, max_bytes=MAX_BYTES)
        assert tracemalloc.get_traced_memory()[1] < 4 * 2**20
    finally:
        tracemalloc.stop()
