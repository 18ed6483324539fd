"""Orientation of an image, as its Exif data has it."""

from __future__ import annotations

from typing import Final, Literal

from PIL import Image
from PIL.Image import Transpose

_TRANSPOSE_BY_ORIENTATION: Final = {
    2: Transpose.FLIP_LEFT_RIGHT,
    3: Transpose.ROTATE_180,
    4: Transpose.FLIP_TOP_BOTTOM,
    5: Transpose.TRANSPOSE,
    6: Transpose.ROTATE_270,
    7: Transpose.TRANSVERSE,
    8: Transpose.ROTATE_90,
}


def make_upright(image: Image.Image, orientation: int) -> Image.Image:
    """Return the image as a viewer shows it; the same object if it is upright."""
    transpose = _TRANSPOSE_BY_ORIENTATION.get(orientation)
    return image.transpose(transpose) if transpose is not None else image


def read_orientation(exif: bytes | None) -> int:
    """Return tag 0x112 of the first directory, or 1. Pillow's own reader warns process-wide about bad Exif."""
    tiff = (exif or b"").removeprefix(b"Exif\0\0")
    order: Literal["little", "big"] = "little" if tiff[:2] == b"II" else "big"
    start = int.from_bytes(tiff[4:8], order)
    entries = min(int.from_bytes(tiff[start : start + 2], order), 1000)
    for at in range(start + 2, start + 2 + 12 * entries, 12):
        if int.from_bytes(tiff[at : at + 2], order) == 0x112:
            return int.from_bytes(tiff[at + 8 : at + 10], order)
    return 1
