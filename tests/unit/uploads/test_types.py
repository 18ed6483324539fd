"""The first bytes decide what something is, and say what it is instead."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from tests.support.intake import MAX_BYTES, IntakeHarness
from tests.support.samples import IMAGES, interlaced
from uploads.detect import detect_type
from uploads.structure import InvalidImage

pytestmark = pytest.mark.anyio

OTHERS = {
    b"GIF89a\1\0\1\0": "GIF",
    b"GIF87a": "GIF",
    b"BM\x46\0\0\0": "BMP",
    b"\0\0\1\0\1\0\x10\x10": "ICO",
    b"II*\0\x08\0\0\0": "TIFF",
    b"MM\0*\0\0\0\x08": "TIFF",
    b"\0\0\0\x18ftypheic": "HEIC",
    b"\0\0\0\x18ftypmif1": "HEIC",
    b"\0\0\0\x1cftypavif": "AVIF",
    b"\0\0\0\x20ftypisom": "MP4",
    b"\xff\x0a\xfa\x1f": "JPEG XL",
    b"\0\0\0\x0cJXL \r\n\x87\n": "JPEG XL",
    b"\0\0\0\x0cjP  \r\n\x87\n": "JPEG 2000",
    b"8BPS\0\1": "Photoshop",
    b"%PDF-1.7\n": "PDF",
    b"RIFF\x24\0\0\0XXXXxxxx": "not a known image format",
    b"PK\3\4\x14\0": "an archive",
    b"\x1f\x8b\x08\0\0\0": "an archive",
    b"7z\xbc\xaf\x27\x1c": "an archive",
    b"Rar!\x1a\7": "an archive",
    b"<!DOCTYPE html><html>": "HTML page",
    b"\xef\xbb\xbf\r\n  <HTML>": "HTML page",
    b"<!-- hi --><head>": "HTML page",
    b"<body onload=alert(1)>": "HTML page",
    b"<script>alert(1)</script>": "markup",
    b'<?xml version="1.0"?><Error><Code>AccessDenied</Code></Error>': "markup",
    b'<svg xmlns="http://www.w3.org/2000/svg" onload="alert(1)"/>': "SVG",
    b'<?xml version="1.0"?>\n<!-- x -->\n<svg>': "SVG",
    b'{"error": "not found"}': "JSON",
    b"[1, 2]": "JSON",
    b"Not found": "text",
    b"\x89PNG\n\x1a\n\0\0\0\0": "not a known image format",
    b"\x89PNG\r\n\x1a\r\n": "not a known image format",
    b"\xff\xd8\0\0": "not a known image format",
    b"\0" * 100: "not a known image format",
    b"\x80\x81\x82\x83 noise \0": "not a known image format",
}


@pytest.mark.parametrize(("head", "name"), OTHERS.items())
async def test_unsupported_type_is_named(harness: IntakeHarness, head: bytes, name: str) -> None:
    error = await harness.reject(head)
    assert error.code == "invalid_image"
    assert name in str(error)
    assert not error.truncated
    assert not harness.root.joinpath(".drafts").exists()  # judged before anything was written


@pytest.mark.parametrize(
    "head", [b"", b"\x89", b"\x89PN", b"\x89PNG\r\n\x1a", b"\xff", b"\xff\xd8", b"R", b"RIFF", b"RIFF\1\2\3\4WEB"]
)
async def test_beginning_of_an_image_is_rejected_as_truncated(harness: IntakeHarness, head: bytes) -> None:
    """Asking again may help, unlike with a web page."""
    assert (await harness.reject(head)).truncated


@pytest.mark.parametrize("name", IMAGES)
async def test_every_supported_kind_is_accepted(harness: IntakeHarness, name: str) -> None:
    data = IMAGES[name]
    image = await harness.accept(data)
    assert (image.width, image.height) == ((1, 1) if "one pixel" in name else (24, 17))
    assert image.media_type == f"image/{name.partition(' ')[0]}" == detect_type(data[:12])
    assert image.extension == {"image/png": "png", "image/jpeg": "jpg", "image/webp": "webp"}[image.media_type]
    (file,) = harness.files()
    assert file.read_bytes() == data
    assert image.blob.size == len(data)


@pytest.mark.parametrize("size", [(1, 1), (2, 2), (3, 5), (5, 3), (8, 8), (9, 17), (1, 20), (20, 1), (33, 31)])
async def test_interlaced_png_is_accepted(harness: IntakeHarness, size: tuple[int, int]) -> None:
    image = await harness.accept(interlaced(*size))
    assert (image.width, image.height) == size


async def test_wrong_type_is_rejected_before_the_rest_is_read(harness: IntakeHarness) -> None:
    """60 MB of web page cost a kilobyte."""
    read = 0

    async def page() -> AsyncIterator[bytes]:
        nonlocal read
        while True:
            read += 500
            yield b"<html>" + b"x" * 494

    with pytest.raises(InvalidImage, match="HTML"):
        await harness.intake.from_stream("task_1", page(), max_bytes=MAX_BYTES)
    assert read <= 2_000
