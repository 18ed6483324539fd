"""PNG copies of images of other types: the same pixels, upright, with their colour profile.

Unlike a thumbnail, a copy is decoded in full size. The cap on pixels bounds the memory of one to about
`MAX_MEMORY_BYTES`, its own bytes included.
"""

from __future__ import annotations

import io
from pathlib import Path
from typing import Final

MAX_MEMORY_BYTES: Final = 400 * 2**20
MAX_PIXELS: Final[dict[str, int]] = {"image/jpeg": 28_000_000, "image/webp": 20_000_000}
"""Memory per pixel in the worst case: the coefficients of a progressive JPEG in four colours and its pixels, 12 bytes;
four canvases of a WebP, 16; then the turned copy, and up to 4 bytes of PNG."""

COMPRESSION_LEVEL: Final = 1
"""zlib's fastest: a photograph becomes a tenth larger, in a third of the time."""

_PNG_MODES: Final = frozenset({"1", "L", "LA", "P", "RGB", "RGBA", "I;16"})


def can_convert(media_type: str, width: int, height: int) -> bool:
    """Return whether `convert_to_png` takes an image of this type and size."""
    return width * height <= MAX_PIXELS.get(media_type, 0)


def convert_to_png(path: Path, media_type: str) -> bytes:
    """Return the image as a PNG; call it in a thread. Raises what Pillow raises."""
    from uploads.decoder import open_image
    from uploads.orientation import make_upright, read_orientation

    with path.open("rb") as file, open_image(file, media_type) as image:
        orientation, profile = read_orientation(image.info.get("exif")), image.info.get("icc_profile")
        image.load()
        upright = make_upright(image, orientation)
        if upright.mode not in _PNG_MODES:
            upright, profile = upright.convert("RGB"), None
        out = io.BytesIO()
        upright.save(out, "PNG", compress_level=COMPRESSION_LEVEL, icc_profile=profile)
        return out.getvalue()
