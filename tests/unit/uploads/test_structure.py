"""Images that are cut off, damaged, or more than an image."""

from __future__ import annotations

import io
import random
import re
import struct
import zlib

import pytest
from PIL import Image

from tests.support import samples as s
from tests.support.intake import IntakeHarness
from uploads.structure import InvalidImage

pytestmark = pytest.mark.anyio

SMALL = {
    "png": s.encoded("PNG", s.picture(5, 4)),
    "png with metadata": s.plain_png(s.chunk(b"tEXt", b"a\0b"), s.chunk(b"pHYs", b"\0\0\0\1\0\0\0\1\0")),
    "png interlaced": s.interlaced(5, 4),
    "jpeg": s.encoded("JPEG", s.picture(9, 9)),
    "jpeg progressive": s.encoded("JPEG", s.picture(9, 9), progressive=True),
    "webp": s.encoded("WEBP", s.picture(9, 9)),
    "webp lossless": s.encoded("WEBP", s.picture(9, 9), lossless=True),
    "webp alpha": s.encoded("WEBP", s.picture(9, 9, "RGBA")),
}


@pytest.mark.parametrize("name", SMALL)
async def test_every_truncation_is_rejected_as_truncated(harness: IntakeHarness, name: str) -> None:
    """At each byte. Pillow alone opens a PNG that misses its last 20."""
    whole = SMALL[name]
    for length in range(len(whole)):
        error = await harness.reject(whole[:length])
        assert (length, error.code, error.truncated) == (length, "invalid_image", True)
    await harness.accept(whole)


async def test_phone_picture_cut_in_its_preview_is_rejected(harness: IntakeHarness) -> None:
    """A cut between the pictures cannot be detected; every other cut is."""
    first, second = SMALL["jpeg"], s.encoded("JPEG", s.picture(3, 3))
    for length in range(1, len(second)):
        assert (await harness.reject(first + second[:length])).truncated


TAILS = {
    "html": b"<html><script>alert(1)</script></html>",
    "zip": b"PK\3\4" + b"\0" * 40 + b"PK\5\6" + b"\0" * 18,
    "php": b"<?php system($_GET[0]); ?>",
    "script": b"*/=1;alert(1)//",
    "pdf": b"%PDF-1.7\n1 0 obj",
    "svg": b"<svg onload=alert(1)>",
    "mp4": b"\0\0\0\x18ftypmp42" + b"x" * 100,
    "phar": b"__HALT_COMPILER(); ?>",
    "newline": b"\n",
    "one byte": b"x",
    "zeros, then html": b"\0" * 100_000 + b"<html>",
}


@pytest.mark.parametrize("tail", TAILS)
@pytest.mark.parametrize("name", ["png", "jpeg", "jpeg of a phone", "webp", "webp lossless", "webp with metadata"])
async def test_trailing_data_is_rejected(harness: IntakeHarness, name: str, tail: str) -> None:
    """A file that is two things at once is served as the harmless one and used as the other."""
    error = await harness.reject(s.IMAGES[name] + TAILS[tail])
    assert "behind the end" in str(error)
    assert "image editor" in str(error)
    assert not error.truncated


@pytest.mark.parametrize("name", ["png", "webp"])
async def test_zeros_behind_an_image_are_only_usual_for_jpeg(harness: IntakeHarness, name: str) -> None:
    await harness.reject(s.IMAGES[name] + b"\0\0")


async def test_image_behind_another_is_only_usual_for_jpeg(harness: IntakeHarness) -> None:
    await harness.reject(s.PNG + s.PNG)
    await harness.reject(s.WEBP + s.WEBP)
    await harness.reject(s.JPEG + s.PNG)
    await harness.reject(s.PNG + s.JPEG)


def flipped(data: bytes, at: int) -> bytes:
    return data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]


async def test_every_flipped_bit_of_a_png_is_noticed(harness: IntakeHarness) -> None:
    whole = SMALL["png with metadata"]
    for at in range(len(whole)):
        await harness.reject(flipped(whole, at))


IDAT = s.chunk(b"IDAT", s.rows(4, 3))
PIXELS = zlib.compress((b"\0" + b"x" * 12) * 3)
LONG_TEXT = b"a\0\0" + zlib.compress(b"x" * 2_000_000)
PNGS = {
    "no header": s.png(IDAT),
    "a header that is not first": s.png(s.chunk(b"tEXt", b"a\0b"), s.header(4, 3), IDAT),
    "two headers": s.png(s.header(4, 3), s.header(4, 3), IDAT),
    "a short header": s.png(s.chunk(b"IHDR", b"\0" * 12), IDAT),
    "a depth that does not exist": s.png(s.header(4, 3, depth=3), IDAT),
    "a colour that does not exist": s.png(s.header(4, 3, colour=5), IDAT),
    "a depth that does not go with its colour": s.png(s.header(4, 3, depth=4, colour=2), IDAT),
    "an unknown interlacing": s.png(s.header(4, 3, interlace=2), IDAT),
    "no width": s.png(s.header(0, 3), IDAT),
    "no height": s.png(s.header(4, 0), IDAT),
    "no pixels": s.png(s.header(4, 3)),
    "a palette image without palette": s.png(s.header(4, 3, colour=3), s.chunk(b"IDAT", s.rows(4, 3, channels=1))),
    "a palette behind the pixels": s.png(s.header(4, 3), IDAT, s.chunk(b"PLTE", b"\0" * 3)),
    "transparency behind the pixels": s.png(s.header(4, 3), IDAT, s.chunk(b"tRNS", b"\0" * 6)),
    "pixels in two places": s.png(
        s.header(4, 3), s.chunk(b"IDAT", PIXELS[:5]), s.chunk(b"tEXt", b"a\0b"), s.chunk(b"IDAT", PIXELS[5:])
    ),
    "an unknown critical chunk": s.plain_png(s.chunk(b"CgBI", b"\0" * 4)),
    "a chunk with an impossible name": s.png(s.header(4, 3), IDAT, s.chunk(b"a<b>")),
    "an end with a body": s.plain_png()[:-12] + s.chunk(b"IEND", b"<html>"),
    "one row too few": s.png(s.header(4, 3), s.chunk(b"IDAT", s.rows(4, 2))),
    "one byte too few": s.png(s.header(4, 3), s.chunk(b"IDAT", zlib.compress(b"\0" * 38))),
    "one row too many": s.png(s.header(4, 3), s.chunk(b"IDAT", s.rows(4, 4))),
    "one byte too many": s.png(s.header(4, 3), s.chunk(b"IDAT", zlib.compress(b"\0" * 40))),
    "an unknown filter": s.png(s.header(4, 3), s.chunk(b"IDAT", zlib.compress((b"\5" + b"x" * 12) * 3))),
    "an unknown filter in its last row": s.png(
        s.header(4, 3), s.chunk(b"IDAT", zlib.compress((b"\0" + b"x" * 12) * 2 + b"\5" + b"x" * 12))
    ),
    "pixels that do not unpack": s.png(s.header(4, 3), s.chunk(b"IDAT", b"\0" * 50)),
    "a wrong checksum inside": s.png(s.header(4, 3), s.chunk(b"IDAT", PIXELS[:-1] + b"\0")),
    "no checksum inside": s.png(s.header(4, 3), s.chunk(b"IDAT", PIXELS[:-4])),
    "something behind the pixels": s.png(s.header(4, 3), s.chunk(b"IDAT", PIXELS + b"<script>")),
    "something behind the pixels, in a chunk of its own": s.png(
        s.header(4, 3), s.chunk(b"IDAT", PIXELS), s.chunk(b"IDAT", b"<script>")
    ),
    "animation": s.encoded("PNG", save_all=True, append_images=[s.picture(mode="L").convert("RGB")]),
    "animation of one frame": s.plain_png(s.chunk(b"acTL", struct.pack(">II", 1, 0))),
    "frames without animation": s.plain_png(s.chunk(b"fcTL", b"\0" * 26)),
    "text that unpacks to a lot": s.plain_png(s.chunk(b"zTXt", LONG_TEXT)),
    "text behind the pixels that unpacks to a lot": s.png(s.header(4, 3), IDAT, s.chunk(b"zTXt", LONG_TEXT)),
    "international text that unpacks to a lot": s.png(
        s.header(4, 3), IDAT, s.chunk(b"iTXt", b"a\0\1\0en\0b\0" + zlib.compress(b"x" * 2_000_000))
    ),
    "many texts that unpack to much": s.png(
        s.header(4, 3), IDAT, *[s.chunk(b"zTXt", b"a\0\0" + zlib.compress(b"x" * 1_000_000))] * 17
    ),
    "text that is compressed in an unknown way": s.png(s.header(4, 3), IDAT, s.chunk(b"zTXt", b"a\0\1x")),
    "a lot of text": s.plain_png(*[s.chunk(b"tEXt", b"a\0" + b"x" * 2_000_000)] * 9),
    "one huge text": s.plain_png(s.chunk(b"tEXt", b"a\0" + b"x" * 17_000_000)),
    "millions of empty chunks": s.plain_png(s.chunk(b"teXt") * 300_000),
    "many kinds of empty chunks": s.plain_png(*[s.chunk(b"tEXt", b"a\0") + s.chunk(b"teXt")] * 60_000),
    "millions of empty pixel chunks": s.png(s.header(4, 3), IDAT, s.chunk(b"IDAT") * 300_000),
}


@pytest.mark.parametrize("name", PNGS)
async def test_invalid_png_is_rejected(harness: IntakeHarness, name: str) -> None:
    assert re.search(r": (save|send)", str(await harness.reject(PNGS[name])))


SOF = re.search(rb"\xff\xc0..(.{15})", s.JPEG, re.DOTALL)
assert SOF is not None
BEFORE_SCAN, SCAN = s.JPEG.split(b"\xff\xda", 1)
PROGRESSIVE = s.IMAGES["jpeg progressive"]


def with_size(width: int, height: int, jpeg: bytes = s.JPEG) -> bytes:
    return re.sub(
        rb"(\xff[\xc0\xc2]...)....", lambda m: m[1] + struct.pack(">HH", height, width), jpeg, count=1, flags=re.S
    )


JPEGS = {
    "no picture": b"\xff\xd8\xff\xd9",
    "no scan": BEFORE_SCAN + b"\xff\xd9",
    "a scan without header": b"\xff\xd8\xff\xda" + SCAN,
    "a scan with half a header": BEFORE_SCAN + s.segment(0xDA, SCAN[2:7]) + SCAN[12:],
    "two headers": s.with_segments(s.JPEG, s.segment(0xC0, SOF[1])),
    "a header of nothing": s.JPEG.replace(SOF[0], s.segment(0xC0, b"")),
    "a header that is too short": s.JPEG.replace(SOF[0], s.segment(0xC0, SOF[1][:-1])),
    "no width": with_size(0, 17),
    "no height": with_size(24, 0),
    "12 bit": s.JPEG.replace(SOF[0], s.segment(0xC1, b"\x0c" + SOF[1][1:])),
    "lossless": s.JPEG.replace(SOF[0], s.segment(0xC3, SOF[1])),
    "arithmetic": s.JPEG.replace(SOF[0], s.segment(0xC9, SOF[1])),
    "junk between its parts": s.with_segments(s.JPEG, b"<script>"),
    "junk that looks like a part": s.with_segments(s.JPEG, b"x\xe1\0\2"),
    "junk behind a mark": s.with_segments(s.JPEG, b"\xff\0"),
    "a restart outside of a scan": s.with_segments(s.JPEG, b"\xff\xd0\0\2"),
    "a part without length": s.with_segments(s.JPEG, b"\xff\xe1\0\0"),
    "a start inside": s.with_segments(s.JPEG, b"\xff\xd8"),
    "no quantization tables": s.JPEG.replace(b"\xff\xdb", b"\xff\xe5"),
    "thousands of parts": s.with_segments(s.JPEG, s.segment(0xE1, b"") * 10_000),
    "millions of fill bytes": s.with_segments(s.JPEG, b"\xff" * 3_000_000),
    "a lot of metadata": s.with_segments(s.JPEG, *[s.segment(0xE1, b"Exif\0\0" + b"x" * 65_000)] * 300),
    "thousands of scans": PROGRESSIVE[:-2]
    + (b"\xff\xda" + PROGRESSIVE.rpartition(b"\xff\xda")[2][:-2]) * 2_000
    + b"\xff\xd9",
    "a scan behind its pixels": s.JPEG[:-2] + b"\xff\xda" + SCAN,
    "tables behind its pixels": s.JPEG[:-2] + s.segment(0xC4, b"\0" * 17) + b"\xff\xd9",
    "an impossible sampling": s.JPEG.replace(SOF[0], s.segment(0xC0, SOF[1][:7] + b"\x55" + SOF[1][8:])),
    "no sampling": s.JPEG.replace(SOF[0], s.segment(0xC0, SOF[1][:7] + b"\0" + SOF[1][8:])),
    "thousands of pictures": s.JPEG * 1_000,
}


@pytest.mark.parametrize("name", JPEGS)
async def test_invalid_jpeg_is_rejected(harness: IntakeHarness, name: str) -> None:
    assert re.search(r": (save|send)", str(await harness.reject(JPEGS[name])))


LARGER = {
    "one": ["jpeg", "jpeg grey", "jpeg cmyk", "jpeg with restarts", "jpeg one pixel", "jpeg of a phone"],
    "several": ["jpeg progressive", "jpeg grey progressive"],
}


@pytest.mark.parametrize("name", LARGER["one"] + LARGER["several"])
async def test_jpeg_with_a_few_pixels_and_a_large_header_is_rejected(harness: IntakeHarness, name: str) -> None:
    """Decoders paint the missing ones grey and report success."""
    assert "fewer pixels" in str(await harness.reject(with_size(10_900, 10_900, s.IMAGES[name])))


async def test_only_the_first_scan_of_a_progressive_jpeg_has_every_block(harness: IntakeHarness) -> None:
    """Its later scans, however long, may leave blocks out."""
    pixels = random.Random(1).randbytes(128 * 128)
    noise = s.encoded("JPEG", Image.frombytes("L", (128, 128), pixels), quality=95, progressive=True)
    assert "fewer pixels" in str(await harness.reject(with_size(1000, 1000, noise)))
    await harness.accept(noise)


@pytest.mark.parametrize("name", LARGER["one"])
async def test_jpeg_in_one_scan_has_every_pixel_of_its_header(harness: IntakeHarness, name: str) -> None:
    """Up to the blocks at its edges, which are whole in the file."""
    block = 16 if name in {"jpeg", "jpeg with restarts", "jpeg one pixel", "jpeg of a phone"} else 8
    with Image.open(io.BytesIO(s.IMAGES[name])) as image:
        width, height = (-(-side // block) * block for side in image.size)
    for size in ((width + 1, height), (width, height + 1)):
        await harness.reject(with_size(*size, s.IMAGES[name]))
    await harness.accept(with_size(width, height, s.IMAGES[name]))


async def test_webp_with_a_few_pixels_and_a_large_header_is_rejected(harness: IntakeHarness) -> None:
    size = s.WEBP.index(b"\x9d\x01\x2a") + 3
    for width, height, problem in ((24, 1700, "cannot be decoded"), (10_900, 10_900, "BROKER_MAX_DECODE_BYTES")):
        forged = s.WEBP[:size] + struct.pack("<HH", width, height) + s.WEBP[size + 4 :]
        assert problem in str(await harness.reject(forged))


async def test_compressed_text_behind_the_pixels_is_accepted(harness: IntakeHarness) -> None:
    text = s.chunk(b"zTXt", b"a\0\0" + zlib.compress(b"x" * 1_000_000)), s.chunk(b"zTXt", b"a\0\0damaged")
    await harness.accept(s.png(s.header(4, 3), IDAT, *text, s.chunk(b"iTXt", b"a\0\0\0en\0b\0plain")))


@pytest.mark.parametrize("length", range(65_533, 65_539))
async def test_end_of_a_scan_is_found_across_pieces(harness: IntakeHarness, length: int) -> None:
    await harness.accept(BEFORE_SCAN + b"\xff\xda" + (SCAN[:-2] + b"\0" * 65_539)[: length + 12] + b"\xff\xd9")


VP8 = s.WEBP[12:]
FRAME = s.riff_chunk(b"ANMF", b"\0" * 16 + VP8)
WEBPS = {
    "nothing inside": s.riff(),
    "no picture": s.riff(s.vp8x(24, 17)),
    "two pictures": s.riff(VP8, VP8),
    "two canvases": s.riff(s.vp8x(24, 17), s.vp8x(24, 17), VP8),
    "a canvas behind the picture": s.riff(VP8, s.vp8x(24, 17)),
    "a canvas of another size": s.riff(s.vp8x(25, 17), VP8),
    "a short canvas": s.riff(s.riff_chunk(b"VP8X", b"\0" * 4), VP8),
    "animation": s.encoded("WEBP", save_all=True, append_images=[s.picture(mode="L").convert("RGB")]),
    "animation of one frame": s.riff(s.vp8x(24, 17, 2), s.riff_chunk(b"ANIM", b"\0" * 6), FRAME),
    "frames without animation": s.riff(s.vp8x(24, 17), FRAME),
    "a lossy picture without header": s.riff(s.riff_chunk(b"VP8 ", b"\0" * 40)),
    "a lossless picture without header": s.riff(s.riff_chunk(b"VP8L", b"\0" * 40)),
    "an empty picture": s.riff(s.riff_chunk(b"VP8L", b"")),
    "a part that is longer than the file": s.riff(VP8, b"XMP \xff\xff\0\0"),
    "half a part": s.riff(VP8, b"XMP "),
    "a picture of nothing": s.riff(s.riff_chunk(b"VP8 ", VP8[8:18] + b"\0" * 60)),
    "thousands of alpha parts": s.riff(s.vp8x(24, 17), VP8, s.riff_chunk(b"ALPH", b"") * 5_000),
    "thousands of parts": s.riff(VP8, s.riff_chunk(b"junk", b"") * 5_000),
    "a lot of metadata": s.riff(VP8, s.riff_chunk(b"XMP ", b"x" * 17_000_000)),
}


@pytest.mark.parametrize("name", WEBPS)
async def test_invalid_webp_is_rejected(harness: IntakeHarness, name: str) -> None:
    assert re.search(r": (save|send)", str(await harness.reject(WEBPS[name])))


LIMITS = {
    "a lot of text": (PNGS, "more than 16 MiB beside the picture"),
    "one huge text": (PNGS, "more than 16 MiB beside the picture"),
    "millions of empty chunks": (PNGS, "too many parts"),
    "many kinds of empty chunks": (PNGS, "too many parts"),
    "millions of empty pixel chunks": (PNGS, "too many parts"),
    "thousands of parts": (JPEGS, "too many parts"),
    "millions of fill bytes": (JPEGS, "too many parts"),
    "thousands of pictures": (JPEGS, "too many parts"),
    "thousands of scans": (JPEGS, "too many scans"),
    "a lot of metadata": (JPEGS, "more than 16 MiB beside the picture"),
    "thousands of parts ": (WEBPS, "too many parts"),
    "thousands of alpha parts": (WEBPS, "too many parts"),
    "a lot of metadata ": (WEBPS, "more than 16 MiB beside the picture"),
}


@pytest.mark.parametrize("name", LIMITS)
async def test_expensive_structure_is_rejected_before_decoding(harness: IntakeHarness, name: str) -> None:
    images, problem = LIMITS[name]
    assert problem in str(await harness.reject(images[name.strip()]))


WIDE = [(12288, 1536), (8192, 2048), (1536, 12288)]


@pytest.mark.parametrize(("width", "height"), WIDE)
async def test_largest_results_of_providers_are_accepted(harness: IntakeHarness, width: int, height: int) -> None:
    image = await harness.accept(s.plain_png(width=width, height=height))
    assert (image.width, image.height) == (width, height)


BOMBS = {
    "png": s.png(s.header(30_000, 30_000), s.chunk(b"IDAT", s.rows(30_000, 10))),
    "png, as wide as the format allows": s.png(s.header(2**31 - 1, 2**31 - 1), IDAT),
    "jpeg": with_size(30_000, 30_000),
    "jpeg progressive": with_size(65_500, 65_500, s.IMAGES["jpeg progressive"]),
    "webp": s.riff(s.vp8x(16_384, 16_384), VP8),
    "webp lossless": s.riff(s.riff_chunk(b"VP8L", b"\x2f" + (2**28 - 1).to_bytes(4, "little") + b"\0" * 40)),
}


@pytest.mark.parametrize("name", BOMBS)
async def test_more_pixels_than_allowed_are_rejected_by_the_header(harness: IntakeHarness, name: str) -> None:
    error = await harness.reject(BOMBS[name])
    assert "120 million" in str(error)
    assert error.code == "invalid_image"


async def test_inflating_stops_at_the_declared_size(harness: IntakeHarness) -> None:
    """40 kB that inflate to 40 MB behind a header of 4 x 3."""
    assert "more pixels" in str(
        await harness.reject(s.png(s.header(4, 3), s.chunk(b"IDAT", zlib.compress(bytes(40_000_000)))))
    )


async def test_error_never_names_a_path_or_a_python_type(harness: IntakeHarness) -> None:
    for data in [*PNGS.values(), *JPEGS.values(), *WEBPS.values()]:
        with pytest.raises(InvalidImage) as caught:
            await harness.accept(data)
        assert not re.search(r"/|Error|Exception|<_io|PIL|b'", str(caught.value))
