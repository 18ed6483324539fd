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

LONGEST: Final = 32_768
STRETCH: Final = 64
"""No side longer, and none this many times the other: there a row, or the pointers to the rows, is what costs."""
ROW_BYTES: Final = 8
"""Pillow keeps a pointer to every row."""

QUALITY: Final = 80
GAP: Final = 2
"""Reduced by whole numbers to this many times the wanted size first; the rest of the way is smooth and cheap."""
TILE: Final = 1024
COPIES: Final = 3
"""Of a tile at the worst: as it is in the image, in plain colours, and with its transparency multiplied in."""
ENCODER_BYTES: Final = 16 * 2**20

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
    shortest, longest = sorted((original.width, original.height))
    if original.media_type not in PIXEL_BYTES or longest > LONGEST or longest > STRETCH * shortest:
        return False
    return memory(original) <= DECODE_BYTES


def memory(original: StoredImage) -> int:
    """Bytes that the largest thumbnail takes at the worst: while the image is decoded, or while it is reduced."""
    pixels, rows = original.width * original.height, ROW_BYTES * original.height
    plain = 4 * pixels
    decoding = PIXEL_BYTES[original.media_type] * pixels + rows
    kept = plain + rows
    if original.media_type == "image/jpeg":  # the coefficients go when the pixels are there, at a half or less
        kept = plain // _drafted(original) ** 2 + rows
        decoding += kept
    elif original.media_type == "image/webp":  # the file and two canvases stay, what was handed over goes
        decoding += 2 * original.size
        kept = decoding - plain
    return max(decoding, kept + _reducing_bytes(original))


def _drafted(original: StoredImage) -> int:
    """How many times smaller a JPEG is decoded at the least."""
    target = _fitted((original.width, original.height), RUNGS[-1])
    return (
        2
        if all(have >= 2 * GAP * want for have, want in zip((original.width, original.height), target, strict=True))
        else 1
    )


def _reducing_bytes(original: StoredImage) -> int:
    """The copies of a tile, the reduced whole twice, halfway to the target, and the target on its way into a file."""
    size = (original.width, original.height)
    target = _fitted(size, RUNGS[-1])
    width, height = _reduced_size(size, _factors(size, target))
    return 4 * (COPIES * TILE**2 + 2 * width * height + target[0] * height + 3 * target[0] * target[1]) + ENCODER_BYTES


def rung_for(original: StoredImage, wish: int) -> Rung:
    """The size that is made for a wish: the next one up, and none that the image itself does not fill."""
    longest = max(original.width, original.height)
    return next((rung for rung in RUNGS if rung >= min(wish, longest)), RUNGS[-1])


def shrink(path: Path, original: StoredImage, rung: Rung) -> Thumbnail:
    """Make one; call it in a thread. Upright, transparent where the image is, never larger, without its metadata.

    Raises `Unshrinkable`, whatever Pillow raises; but MemoryError and OSError where another time may do.
    """
    with path.open("rb") as file:
        try:
            with opened(file, original.media_type) as image:
                small = _small(image, original, rung)
            return _encoded(small)
        except Exception as error:
            if _temporary(error):
                raise
            raise Unshrinkable("the image cannot be decoded") from error


def _temporary(error: Exception) -> bool:
    """The machine's fault and not the image's. A verdict of Pillow is an OSError, too, but has no number."""
    if isinstance(error, OSError):
        return error.errno is not None or "out of memory" in str(error)
    return isinstance(error, MemoryError)


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


def _factors(size: tuple[int, int], target: tuple[int, int]) -> tuple[int, int]:
    across, down = (max(1, have // (want * GAP)) for have, want in zip(size, target, strict=True))
    return across, down


def _reduced_size(size: tuple[int, int], factors: tuple[int, int]) -> tuple[int, int]:
    width, height = (-(-have // factor) for have, factor in zip(size, factors, strict=True))
    return width, height


def _reduced(image: Image.Image, target: tuple[int, int]) -> Image.Image:
    """Near the wanted size and in plain colours, tile by tile: there is never a second copy of the whole."""
    factors = _factors(image.size, target)
    whole: Image.Image | None = None
    for left, top, tile in _tiles(image, factors):
        part = _plain(tile).reduce(factors)
        whole = whole or Image.new(part.mode, _reduced_size(image.size, factors))
        whole.paste(part, (left // factors[0], top // factors[1]))
    if whole is None:
        raise Unshrinkable("the image has no pixels")
    return whole


def _tiles(image: Image.Image, factors: tuple[int, int]) -> Iterator[tuple[int, int, Image.Image]]:
    """Left, top, and the piece there, of whole blocks. As wide as it must be only: a row may be long, too."""
    width, height = (factor * max(1, TILE // factor) for factor in factors)
    for top in range(0, image.height, height):
        for left in range(0, image.width, width):
            yield left, top, image.crop((left, top, min(left + width, image.width), min(top + height, image.height)))


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
