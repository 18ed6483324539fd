"""PNG copies have the pixels of the original, upright, in its colours."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from PIL import Image

from tests.support.samples import IMAGES, encoded, picture
from uploads.conversion import MAX_PIXELS, can_convert, convert_to_png
from uploads.decoder import open_image
from uploads.detect import detect_type

OTHERS = [name for name in IMAGES if name.startswith(("jpeg", "webp"))]


def convert(folder: Path, data: bytes) -> Image.Image:
    path = folder / "image"
    path.write_bytes(data)
    image = Image.open(io.BytesIO(convert_to_png(path, detect_type(data))))
    assert image.format == "PNG"
    image.load()
    return image


@pytest.mark.parametrize("name", OTHERS)
def test_every_other_type_becomes_a_png_of_the_same_pixels(tmp_path: Path, name: str) -> None:
    made = convert(tmp_path, IMAGES[name])
    with open_image(io.BytesIO(IMAGES[name]), detect_type(IMAGES[name])) as original:
        expected = original.convert("RGB") if original.mode == "CMYK" else original
        assert (made.size, made.mode) == (expected.size, expected.mode)
        assert made.tobytes() == expected.tobytes()


@pytest.mark.parametrize("kind", ["JPEG", "WEBP"])
def test_orientation_is_applied_and_the_profile_kept(tmp_path: Path, kind: str) -> None:
    exif = Image.Exif()
    exif[0x112] = 6
    options = {"lossless": True} if kind == "WEBP" else {}
    data = encoded(kind, picture(24, 17), exif=exif.tobytes(), icc_profile=b"a profile", **options)
    made = convert(tmp_path, data)
    with Image.open(io.BytesIO(data)) as original:
        assert made.tobytes() == original.transpose(Image.Transpose.ROTATE_270).tobytes()
    assert (made.size, made.info["icc_profile"]) == ((17, 24), b"a profile")
    assert "exif" not in made.info


def test_pngs_and_large_images_are_not_converted() -> None:
    assert not can_convert("image/png", 10, 10)
    for media_type, pixels in MAX_PIXELS.items():
        assert can_convert(media_type, pixels, 1)
        assert not can_convert(media_type, pixels + 1, 1)
