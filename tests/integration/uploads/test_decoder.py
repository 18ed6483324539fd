"""Trial decode: memory limits and detected damage."""

from __future__ import annotations

import errno
import io
import os
import struct
import subprocess
import sys
import warnings
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from tests.support import samples as s
from tests.support.intake import MAX_DECODE_BYTES
from uploads.decoder import check_decodable
from uploads.detect import MediaType, validate_structure
from uploads.structure import ImageInfo, InvalidImage

SIZE = {"width": 24, "height": 17}
FAULTS = pytest.mark.faults


def attempt(tmp_path: Path, data: bytes, media_type: MediaType, info: ImageInfo) -> None:
    path = tmp_path / "image"
    path.write_bytes(data)
    with path.open("rb") as file:
        check_decodable(file, media_type, info, MAX_DECODE_BYTES)


def image_info(tmp_path: Path, data: bytes, media_type: MediaType) -> ImageInfo:
    path = tmp_path / "image"
    path.write_bytes(data)
    with path.open("rb") as file:
        return validate_structure(file, media_type, 10**9)


@pytest.mark.parametrize(
    ("name", "media_type"),
    [("jpeg progressive", "image/jpeg"), ("webp", "image/webp"), ("webp lossless", "image/webp")],
)
def test_image_above_the_memory_limit_is_rejected_with_the_limit(
    tmp_path: Path, name: str, media_type: MediaType
) -> None:
    attempt(tmp_path, s.IMAGES[name], media_type, ImageInfo(**SIZE, decode_bytes=MAX_DECODE_BYTES))
    too_large = ImageInfo(**SIZE, decode_bytes=MAX_DECODE_BYTES + 1)
    with pytest.raises(InvalidImage, match=r"takes 385 MiB .* 384 MiB are allowed \(BROKER_MAX_DECODE_BYTES\): send a"):
        attempt(tmp_path, s.IMAGES[name], media_type, too_large)


@pytest.mark.parametrize(
    ("name", "media_type", "decode_bytes"),
    [
        ("png", "image/png", 0),
        ("jpeg", "image/jpeg", 0),
        ("jpeg progressive", "image/jpeg", (9 + 4 + 4) * 128),
        ("jpeg grey progressive", "image/jpeg", 9 * 128),
        ("jpeg cmyk", "image/jpeg", 0),
        ("webp", "image/webp", 24 * 17 * 16 + 2 * len(s.WEBP)),
        ("webp lossless", "image/webp", 24 * 17 * 16 + 2 * len(s.WEBP_LOSSLESS)),
    ],
)
def test_memory_of_a_decode_is_computed_from_the_header(
    tmp_path: Path, name: str, media_type: MediaType, decode_bytes: int
) -> None:
    """Progressive JPEG keeps all coefficients, 128 bytes per block; WebP four canvases and the file; others rows."""
    assert image_info(tmp_path, s.IMAGES[name], media_type).decode_bytes == decode_bytes


def test_jpeg_in_separate_scans_counts_as_buffered(tmp_path: Path) -> None:
    """Baseline, but one colour after the other: a scan header that names one of three."""
    one_colour = struct.pack(">BBBBBB", 1, 1, 0, 0, 63, 0)
    before, _ = s.JPEG.split(b"\xff\xda", 1)
    data = before + s.segment(0xDA, one_colour) + b"scan" + b"\xff\xd9"
    assert image_info(tmp_path, data, "image/jpeg").decode_bytes == 17 * 128


@pytest.mark.parametrize(
    ("data", "media_type"),
    [(s.PNG, "image/png"), (s.JPEG, "image/jpeg"), (s.WEBP, "image/webp")],
    ids=["png", "jpeg", "webp"],
)
def test_sizes_of_structure_and_decoder_must_agree(tmp_path: Path, data: bytes, media_type: MediaType) -> None:
    attempt(tmp_path, data, media_type, ImageInfo(**SIZE, decode_bytes=0))
    with pytest.raises(InvalidImage, match="two sizes"):
        attempt(tmp_path, data, media_type, ImageInfo(width=17, height=24, decode_bytes=0))


@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_jpeg_without_its_last_blocks_is_rejected(tmp_path: Path, mode: str) -> None:
    """Cut in the scan, and ended like a whole one: decoders paint the rest grey."""
    head, _, scan = s.encoded("JPEG", s.picture(64, 64, mode)).rpartition(b"\xff\xda")
    for missing in range(60, len(scan) - 14, 31):  # two blocks, for which the padding may stand
        data = head + b"\xff\xda" + scan[: -2 - missing].removesuffix(b"\xff") + b"\xff\xd9"
        with pytest.raises(InvalidImage):
            attempt(tmp_path, data, "image/jpeg", image_info(tmp_path, data, "image/jpeg"))


def test_undecodable_pixels_are_rejected(tmp_path: Path) -> None:
    """Right structure, wrong contents."""
    jpeg = s.JPEG.replace(b"\xff\xdb", b"\xff\xe5")
    webp = s.WEBP_LOSSLESS[:30] + bytes(len(s.WEBP_LOSSLESS) - 30)
    cases: list[tuple[bytes, MediaType]] = [(jpeg, "image/jpeg"), (webp, "image/webp")]
    for data, media_type in cases:
        info = image_info(tmp_path, data, media_type)
        with pytest.raises(InvalidImage, match="cannot be decoded"):
            attempt(tmp_path, data, media_type, info)


def test_bad_exif_does_not_warn(tmp_path: Path) -> None:
    """Warnings are process-wide state, and many phones write bad Exif."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        attempt(tmp_path, s.IMAGES["jpeg with broken exif"], "image/jpeg", ImageInfo(**SIZE, decode_bytes=0))
        attempt(tmp_path, s.IMAGES["jpeg of a phone"], "image/jpeg", ImageInfo(**SIZE, decode_bytes=0))
    assert caught == []


MEMORY = """
import asyncio, re, sys
from pathlib import Path
from tests.support.intake import IntakeHarness, stream
def peak():
    return int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) * 1024
data, harness = Path(sys.argv[1]).read_bytes(), IntakeHarness(Path(sys.argv[2]))
before = peak()
image = asyncio.run(harness.accept(data))
print(image.width * image.height, peak() - before)
"""
LOADED_BYTES = 24 * 2**20
"""Code that is loaded, and the fixed buffers of intake and decoder."""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the kernel's account is read from /proc")
@pytest.mark.parametrize(
    ("data", "media_type"),
    [
        pytest.param(lambda: s.flat_jpeg(10_900), "image/jpeg", id="jpeg"),
        pytest.param(
            lambda: s.png(s.header(10_900, 10_900, 1, 0), s.chunk(b"IDAT", zlib.compress(bytes(1_364) * 10_900))),
            "image/png",
            id="png",
        ),
        pytest.param(lambda: s.flat_jpeg(10_900, progressive=True), "image/jpeg", id="progressive", marks=FAULTS),
        pytest.param(
            lambda: s.encoded("WEBP", Image.new("RGB", (12_288, 1_536)), method=0),
            "image/webp",
            id="webp",
            marks=FAULTS,
        ),
    ],
)
def test_memory_of_the_largest_images_is_what_was_computed(
    tmp_path: Path, data: Callable[[], bytes], media_type: MediaType
) -> None:
    """Measured by the kernel in a process of its own."""
    path, size = tmp_path / "large", len(image := data())
    path.write_bytes(image)
    info = image_info(tmp_path, image, media_type)
    ran = subprocess.run(
        [sys.executable, "-c", MEMORY, str(path), str(tmp_path / "blobs")],
        capture_output=True, text=True, check=True, env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )  # fmt: skip
    pixels, peak = map(int, ran.stdout.split())
    assert pixels == info.width * info.height > 18_000_000
    assert peak < info.decode_bytes + size + LOADED_BYTES


class _BrokenFile(io.BytesIO):
    """A file whose pixels cannot be read: the error is that of the machine."""

    error: Exception

    def read(self, size: int | None = -1, /) -> bytes:
        if self.tell() > 100:
            raise self.error
        return super().read(size)


@pytest.mark.parametrize("error", [OSError(errno.EIO, "input/output error"), MemoryError()])
def test_error_of_the_machine_does_not_make_an_image_damaged(error: Exception) -> None:
    info = validate_structure(io.BytesIO(s.JPEG), "image/jpeg", 10_000)
    file = _BrokenFile(s.JPEG)
    file.error = error
    with pytest.raises(type(error)):
        check_decodable(file, "image/jpeg", info, 2**20)
