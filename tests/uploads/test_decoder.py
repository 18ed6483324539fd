"""What Pillow is asked, and what it is spared."""

from __future__ import annotations

import struct
import warnings
from pathlib import Path

import pytest

from tests.uploads import samples as s
from uploads.decoder import DECODE_BYTES, decode
from uploads.shape import Malformed, Shape
from uploads.sniff import MediaType, walk

SIZE = {"width": 24, "height": 17}


def attempt(tmp_path: Path, data: bytes, media_type: MediaType, shape: Shape) -> None:
    path = tmp_path / "image"
    path.write_bytes(data)
    with path.open("rb") as file:
        decode(file, media_type, shape)


def shape_of(tmp_path: Path, data: bytes, media_type: MediaType) -> Shape:
    path = tmp_path / "image"
    path.write_bytes(data)
    with path.open("rb") as file:
        return walk(file, media_type, 10**9)


@pytest.mark.parametrize("media_type", ["image/png", "image/jpeg", "image/webp"])
def test_a_decoder_is_not_asked_where_it_would_take_too_much_memory(tmp_path: Path, media_type: MediaType) -> None:
    with pytest.raises(Malformed):
        attempt(tmp_path, b"garbage", media_type, Shape(**SIZE, decode_bytes=DECODE_BYTES))
    attempt(tmp_path, b"garbage", media_type, Shape(**SIZE, decode_bytes=DECODE_BYTES + 1))


@pytest.mark.parametrize(
    ("name", "media_type", "per_pixel"),
    [
        ("png", "image/png", 0),
        ("jpeg", "image/jpeg", 0),
        ("jpeg progressive", "image/jpeg", 6),
        ("jpeg grey progressive", "image/jpeg", 2),
        ("jpeg cmyk", "image/jpeg", 0),
        ("webp", "image/webp", 16),
        ("webp lossless", "image/webp", 16),
    ],
)
def test_the_memory_of_a_decode_is_known_before(
    tmp_path: Path, name: str, media_type: MediaType, per_pixel: int
) -> None:
    """Progressive JPEG keeps all coefficients, WebP four canvases and the file; the others a few rows."""
    data = s.IMAGES[name]
    file = 2 * len(data) if media_type == "image/webp" else 0
    assert shape_of(tmp_path, data, media_type).decode_bytes == 24 * 17 * per_pixel + file


def test_a_jpeg_in_separate_scans_is_kept_whole_by_its_decoder(tmp_path: Path) -> None:
    """Baseline, but one colour after the other: a scan header that names one of three."""
    one_colour = struct.pack(">BBBBBB", 1, 1, 0, 0, 63, 0)
    before, _ = s.JPEG.split(b"\xff\xda", 1)
    data = before + s.segment(0xDA, one_colour) + b"scan" + b"\xff\xd9"
    assert shape_of(tmp_path, data, "image/jpeg").decode_bytes == 24 * 17 * 6


@pytest.mark.parametrize(
    ("data", "media_type"),
    [(s.PNG, "image/png"), (s.JPEG, "image/jpeg"), (s.WEBP, "image/webp")],
    ids=["png", "jpeg", "webp"],
)
def test_both_readings_agree_on_the_size(tmp_path: Path, data: bytes, media_type: MediaType) -> None:
    attempt(tmp_path, data, media_type, Shape(**SIZE, decode_bytes=0))
    with pytest.raises(Malformed, match="two sizes"):
        attempt(tmp_path, data, media_type, Shape(width=17, height=24, decode_bytes=0))


def test_pixels_that_do_not_decode_are_noticed(tmp_path: Path) -> None:
    """Right structure, wrong contents."""
    jpeg = s.JPEG.replace(b"\xff\xdb", b"\xff\xe5")
    webp = s.WEBP_LOSSLESS[:30] + bytes(len(s.WEBP_LOSSLESS) - 30)
    cases: list[tuple[bytes, MediaType]] = [(jpeg, "image/jpeg"), (webp, "image/webp")]
    for data, media_type in cases:
        shape = shape_of(tmp_path, data, media_type)
        with pytest.raises(Malformed, match="cannot be decoded"):
            attempt(tmp_path, data, media_type, shape)


def test_bad_exif_is_no_reason_to_warn(tmp_path: Path) -> None:
    """A warning goes through process-wide state, and many phones write bad Exif."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        attempt(tmp_path, s.IMAGES["jpeg with broken exif"], "image/jpeg", Shape(**SIZE, decode_bytes=0))
        attempt(tmp_path, s.IMAGES["jpeg of a phone"], "image/jpeg", Shape(**SIZE, decode_bytes=0))
    assert caught == []
