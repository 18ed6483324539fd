"""Any bytes become an image or an InvalidImage, and no other file is left."""

from __future__ import annotations

import asyncio
import io
import struct
import warnings
import zlib
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from tests.support import samples as s
from tests.support.intake import IntakeHarness
from uploads.structure import InvalidImage

EXAMPLES = settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.too_slow])

FORMATS = ("PNG", "JPEG", "WEBP")


@pytest.fixture(scope="module")
def runner() -> Iterator[asyncio.Runner]:
    with asyncio.Runner() as runner:
        yield runner


@pytest.fixture(scope="module")
def harness(tmp_path_factory: pytest.TempPathFactory) -> IntakeHarness:
    return IntakeHarness(tmp_path_factory.mktemp("blobs"))


def judge(runner: asyncio.Runner, harness: IntakeHarness, data: bytes) -> bool:
    """Return whether the bytes were accepted; assert that they are stored whole or not at all."""

    async def accept() -> bool:
        try:
            image = await harness.accept(data)
        except InvalidImage as error:
            assert str(error)
            assert harness.files() == []
            return False
        (file,) = harness.files()
        assert file.read_bytes() == data
        assert image.blob.size == len(data)
        assert await harness.blobs.delete("task_1") == 1
        return True

    return runner.run(accept())


@EXAMPLES
@given(st.binary(max_size=300), st.sampled_from([b"", s.PNG_MAGIC, b"\xff\xd8\xff", b"RIFF\x40\0\0\0WEBPVP8X"]))
def test_random_bytes(runner: asyncio.Runner, harness: IntakeHarness, data: bytes, magic: bytes) -> None:
    assert not judge(runner, harness, magic + data)


@st.composite
def mutated(draw: st.DrawFn) -> bytes:
    """A good image with some bytes changed, left out, put in, or repeated."""
    data = bytearray(draw(st.sampled_from(sorted(s.IMAGES.values(), key=len)[:22])))
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, max(0, len(data) - 1)))
        length = draw(st.integers(0, 20))
        new = draw(st.binary(max_size=20) | st.just(bytes(data[at : at + length]) * 2))
        data[at : at + length] = new
    return bytes(data)


@EXAMPLES
@given(mutated())
def test_mutated_images(runner: asyncio.Runner, harness: IntakeHarness, data: bytes) -> None:
    judge(runner, harness, data)


@st.composite
def mutated_png(draw: st.DrawFn) -> bytes:
    """A PNG with mutated chunks and right checksums: what a random change never gets through."""
    names = ["png", "png palette", "png bilevel", "png with text and profile", "png 16 bit"]
    chunks = [(chunk[4:8], chunk[8:-4]) for chunk in s.chunks_of(s.IMAGES[draw(st.sampled_from(names))])]
    for _ in range(draw(st.integers(1, 3))):
        place = draw(st.integers(0, len(chunks) - 1))
        kind, body = chunks[place]
        kind = draw(st.sampled_from([kind, kind, kind, b"PLTE", b"tRNS", b"iCCP", b"zTXt", b"iTXt", b"eXIf", b"IDAT"]))
        chunks[place : place + draw(st.integers(0, 1))] = [(kind, draw(mutated_body(body)))]
    return s.PNG_MAGIC + b"".join(s.chunk(kind, body) for kind, body in chunks)


@st.composite
def mutated_jpeg(draw: st.DrawFn) -> bytes:
    """A JPEG with mutated segments of right lengths, scans among them."""
    names = ["jpeg", "jpeg grey", "jpeg cmyk", "jpeg progressive", "jpeg with restarts", "jpeg of a phone"]
    segments, rest = s.segments_of(s.IMAGES[draw(st.sampled_from(names))])
    for _ in range(draw(st.integers(1, 3))):
        place = draw(st.integers(0, len(segments) - 1))
        marker, body, scan = segments[place]
        marker = draw(st.sampled_from([marker, marker, marker, 0xC0, 0xC2, 0xC4, 0xDA, 0xDB, 0xDD, 0xE1, 0xEE]))
        part = marker, draw(mutated_body(body)), draw(st.just(scan) | mutated_body(scan))
        segments[place : place + draw(st.integers(0, 1))] = [part]
    return b"\xff\xd8" + b"".join(s.segment(marker, body) + scan for marker, body, scan in segments) + rest


@st.composite
def mutated_webp(draw: st.DrawFn) -> bytes:
    """A WebP with mutated chunks of right lengths."""
    names = ["webp", "webp lossless", "webp alpha", "webp with metadata"]
    chunks = s.riff_chunks_of(s.IMAGES[draw(st.sampled_from(names))])
    for _ in range(draw(st.integers(1, 3))):
        place = draw(st.integers(0, len(chunks) - 1))
        kind, body = chunks[place]
        kind = draw(st.sampled_from([kind, kind, kind, b"VP8X", b"VP8 ", b"VP8L", b"ALPH", b"ICCP", b"EXIF", b"XMP "]))
        chunks[place : place + draw(st.integers(0, 1))] = [(kind, draw(mutated_body(body)))]
    return s.riff(*(s.riff_chunk(kind, body) for kind, body in chunks))


@st.composite
def mutated_body(draw: st.DrawFn, body: bytes) -> bytes:
    """A body with up to four bytes changed, left out or put in, or as it was."""
    at = draw(st.integers(0, len(body)) | st.integers(0, min(len(body), 16)))
    return body[:at] + draw(st.binary(max_size=4)) + body[at + draw(st.integers(0, 4)) :]


@pytest.mark.parametrize("examples", [200, pytest.param(4_000, marks=[pytest.mark.faults, pytest.mark.timeout(600)])])
@pytest.mark.parametrize("mutated", [mutated_png(), mutated_jpeg(), mutated_webp()], ids=["png", "jpeg", "webp"])
def test_every_accepted_mutation_can_be_decoded_whole(
    runner: asyncio.Runner, harness: IntakeHarness, mutated: st.SearchStrategy[bytes], examples: int
) -> None:
    """By whoever reads it later: all pixels, and all that stands behind them."""

    @settings(EXAMPLES, max_examples=examples)
    @given(mutated)
    def check(data: bytes) -> None:
        if judge(runner, harness, data):
            with warnings.catch_warnings(action="ignore"), Image.open(io.BytesIO(data), formats=FORMATS) as image:
                image.load()

    check()


@EXAMPLES
@given(
    st.integers(1, 40),
    st.integers(1, 40),
    st.sampled_from([(1, 0), (8, 0), (8, 2), (4, 3), (8, 4), (16, 6)]),
    st.integers(-2, 2),
)
def test_pixel_data_must_have_exactly_its_length(
    runner: asyncio.Runner, harness: IntakeHarness, width: int, height: int, kind: tuple[int, int], surplus: int
) -> None:
    depth, colour = kind
    row = 1 + -(-width * depth * {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}[colour] // 8)
    pixels = zlib.compress(bytes(max(0, row * height + surplus)))
    pieces = [s.chunk(b"IDAT", pixels[at : at + 7]) for at in range(0, len(pixels), 7)]
    palette = [s.chunk(b"PLTE", struct.pack("3B", 1, 2, 3))] if colour == 3 else []
    assert judge(runner, harness, s.png(s.header(width, height, depth, colour), *palette, *pieces)) == (surplus == 0)
