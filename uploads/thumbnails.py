"""Small WebP pictures of large images: which sizes there are, of what they can be made, and the making."""

from __future__ import annotations

import io
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from PIL import Image
from PIL.Image import Resampling, Transpose

from storage.images import StoredImage
from uploads import webp
from uploads.decoder import DECODE_BYTES, opened

Rung = Literal[128, 256, 512, 1024]
RUNGS: Final[tuple[Rung, ...]] = (128, 256, 512, 1024)
"""The longest sides there are. Names of images are passed on, and a stranger must not choose how much we make."""

PIXEL_BYTES: Final = {"image/png": 4, "image/jpeg": 8, "image/webp": webp.BYTES_PER_PIXEL}
"""What a decoder holds at the worst: pixels; the coefficients of a progressive JPEG in four colours; four canvases."""

QUALITY: Final = 80
GAP: Final = 2
"""Reduced by whole numbers to this many times the wanted size first; the rest of the way is smooth and cheap."""
STRIP_PIXELS: Final = 2**20

_TURNS: Final = {
    2: Transpose.FLIP_LEFT_RIGHT,
    3: Transpose.ROTATE_180,
    4: Transpose.FLIP_TOP_BOTTOM,
    5: Transpose.TRANSPOSE,
    6: Transpose.ROTATE_270,
    7: Transpose.TRANSVERSE,
    8: Transpose.ROTATE_90,
}
"""What undoes each orientation of Exif."""


class Unshrinkable(Exception):
    """The bytes are not the image they should be, or no decoder understands them."""


@dataclass(frozen=True, kw_only=True)
class Thumbnail:
    """data: a WebP file."""

    data: bytes
    width: int
    height: int


def shrinkable(original: StoredImage) -> bool:
    """Whether a thumbnail can be made within `DECODE_BYTES` of memory; always the same answer for the same image."""
    per_pixel = PIXEL_BYTES.get(original.media_type)
    if per_pixel is None:
        return False
    beside = 2 * original.size if original.media_type == "image/webp" else 0
    return original.width * original.height * per_pixel + beside <= DECODE_BYTES


def rung_for(original: StoredImage, wish: int) -> Rung:
    """The size that is made for a wish: the next one up, and none that the image itself does not fill."""
    longest = max(original.width, original.height)
    return next((rung for rung in RUNGS if rung >= min(wish, longest)), RUNGS[-1])


def shrink(path: Path, original: StoredImage, rung: Rung) -> Thumbnail:
    """Make one; call it in a thread. Upright, transparent where the image is, never larger, without its metadata.

    Raises `Unshrinkable`, whatever Pillow raises, and OSError if the file cannot be read.
    """
    with path.open("rb") as file:
        try:
            with opened(file, original.media_type) as image:
                small = _small(image, original, rung)
            return _encoded(small)
        except Exception as error:
            raise Unshrinkable("the image cannot be decoded") from error


def _small(image: Image.Image, original: StoredImage, rung: Rung) -> Image.Image:
    if image.size != (original.width, original.height):
        raise Unshrinkable("the image has another size than it had")
    target = _fitted(image.size, rung)
    image.draft(None, (target[0] * GAP, target[1] * GAP))  # a JPEG is decoded at a half, a quarter or an eighth
    image.load()
    small = _reduced(image, target).resize(target, Resampling.LANCZOS)
    turn = _TURNS.get(_orientation(image.info.get("exif")))
    return small.transpose(turn) if turn is not None else small


def _fitted(size: tuple[int, int], rung: int) -> tuple[int, int]:
    longest = max(size)
    if longest <= rung:
        return size
    width, height = (max(1, round(side * rung / longest)) for side in size)
    return width, height


def _reduced(image: Image.Image, target: tuple[int, int]) -> Image.Image:
    """Near the wanted size and in plain colours, strip by strip: there is never a second copy of the whole."""
    across, down = (max(1, have // (want * GAP)) for have, want in zip(image.size, target, strict=True))
    parts = [_plain(strip).reduce((across, down)) for strip in _strips(image, down)]
    whole = Image.new(parts[0].mode, (parts[0].width, sum(part.height for part in parts)))
    top = 0
    for part in parts:
        whole.paste(part, (0, top))
        top += part.height
    return whole


def _strips(image: Image.Image, multiple: int) -> Iterator[Image.Image]:
    rows = multiple * max(1, STRIP_PIXELS // (image.width * multiple))
    for top in range(0, image.height, rows):
        yield image.crop((0, top, image.width, min(top + rows, image.height)))


def _plain(image: Image.Image) -> Image.Image:
    """Eight bits a colour: grey, RGB or RGBA."""
    if image.mode.startswith("I"):  # sixteen bits of grey; converting alone would cut them off instead of scaling
        return image.convert("I").point(lambda value: value * (1 / 257)).convert("L")
    if image.has_transparency_data:
        return image.convert("RGBA")
    return image.convert("L" if image.mode in {"1", "L"} else "RGB")


def _encoded(image: Image.Image) -> Thumbnail:
    out = io.BytesIO()
    image.save(out, "WEBP", quality=QUALITY)
    return Thumbnail(data=out.getvalue(), width=image.width, height=image.height)


def _orientation(exif: bytes | None) -> int:
    """Tag 0x112 of the first directory, 1 where there is none. Pillow's own reader warns about bad Exif."""
    tiff = (exif or b"").removeprefix(b"Exif\0\0")
    order: Literal["little", "big"] = "little" if tiff[:2] == b"II" else "big"
    start = int.from_bytes(tiff[4:8], order)
    entries = min(int.from_bytes(tiff[start : start + 2], order), 1000)
    for at in range(start + 2, start + 2 + 12 * entries, 12):
        if int.from_bytes(tiff[at : at + 2], order) == 0x112:
            return int.from_bytes(tiff[at + 8 : at + 10], order)
    return 1
