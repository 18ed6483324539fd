"""WebP thumbnails: the sizes, the images that have them, and the resizing.

Pillow's `thumbnail` decodes a JPEG at a half, a quarter or an eighth, and reduces every image by whole steps before it
resamples. The cap on pixels bounds the memory of one image to about `MAX_MEMORY_BYTES`.
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal

from storage.images import StoredImage

if TYPE_CHECKING:
    from PIL import Image

ThumbnailSize = Literal[128, 256, 512, 1024]
THUMBNAIL_SIZES: Final[tuple[ThumbnailSize, ...]] = (128, 256, 512, 1024)
"""Longest sides in pixels. A fixed set: image URLs are shared, and strangers must not choose how many are made."""

MAX_MEMORY_BYTES: Final = 256 * 2**20
MAX_PIXELS: Final[dict[str, int]] = {"image/png": 32_000_000, "image/jpeg": 28_000_000, "image/webp": 16_000_000}
"""Memory per pixel in the worst case: a PNG and one copy of it, 8 bytes; the coefficients of a progressive JPEG in
four colours and its draft, 9; four canvases of a WebP, 16."""

MAX_SIDE_PIXELS: Final = 32_768
"""Pillow keeps a pointer to every row, which is most of the memory of a tall, narrow image."""

REDUCING_GAP: Final = 2.0
WEBP_QUALITY: Final = 80


class ThumbnailError(Exception):
    """The bytes are not the expected image, or cannot be decoded."""


@dataclass(frozen=True, kw_only=True)
class Thumbnail:
    """WebP file with its size in pixels."""

    data: bytes
    width: int
    height: int


def has_thumbnail(original: StoredImage) -> bool:
    """Return whether thumbnails of the image can be made."""
    return can_have_thumbnail(original.media_type, original.width, original.height)


def can_have_thumbnail(media_type: str, width: int, height: int) -> bool:
    return width * height <= MAX_PIXELS.get(media_type, 0) and max(width, height) <= MAX_SIDE_PIXELS


def thumbnail_size(original: StoredImage, requested: int) -> ThumbnailSize:
    """Return the smallest size that covers the requested one, or the whole image if that is smaller."""
    longest = max(original.width, original.height)
    return next((size for size in THUMBNAIL_SIZES if size >= min(requested, longest)), THUMBNAIL_SIZES[-1])


def make_thumbnail(path: Path, original: StoredImage, size: ThumbnailSize) -> Thumbnail:
    """Make an upright thumbnail, never larger than the image and without its metadata; call it in a thread.

    Raises `ThumbnailError` for a bad image; MemoryError and OSError where another attempt may succeed.
    """
    from PIL.Image import Resampling

    from uploads.decoder import is_temporary, open_image
    from uploads.orientation import read_orientation

    with path.open("rb") as file:
        try:
            with open_image(file, original.media_type) as image:
                if image.size != (original.width, original.height):
                    raise ThumbnailError("the image has another size than it had")
                scale = REDUCING_GAP * size / max(image.size)  # thumbnail() alone drafts wide and tall JPEGs too large
                image.draft(None, (round(image.width * scale), round(image.height * scale)))
                resized = _with_resizable_mode(image)
                resized.thumbnail((size, size), Resampling.LANCZOS, reducing_gap=REDUCING_GAP)
                resized.load()
                return _encode_webp(resized, read_orientation(image.info.get("exif")))
        except Exception as error:
            if is_temporary(error):
                raise
            raise ThumbnailError("the image cannot be decoded") from error


def _with_resizable_mode(image: Image.Image) -> Image.Image:
    """Convert the modes that Pillow resizes badly or not at all, and free the original then."""
    if image.mode.startswith("I"):
        mode = "I"
    elif image.mode in {"1", "P", "L", "RGB"} and image.has_transparency_data:
        mode = "RGBA"
    elif image.mode in {"1", "P"}:
        mode = "L" if image.mode == "1" else "RGB"
    else:
        return image
    converted = image.convert(mode)
    image.close()
    return converted


def _encode_webp(image: Image.Image, orientation: int) -> Thumbnail:
    from uploads.orientation import make_upright

    if image.mode == "I":  # sixteen bits of grey; convert() alone would clip instead of scale
        image = image.point(lambda value: value * (1 / 257)).convert("L")
    upright = make_upright(image, orientation)
    out = io.BytesIO()
    upright.save(out, "WEBP", quality=WEBP_QUALITY)
    return Thumbnail(data=out.getvalue(), width=upright.width, height=upright.height)
