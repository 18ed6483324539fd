"""Pillow, asked whether it can open what we are about to keep; and the one way in which we open anything with it."""

from __future__ import annotations

from typing import BinaryIO

from PIL.ImageFile import ImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.WebPImagePlugin import WebPImageFile

from uploads.shape import MEND, Malformed, Shape
from uploads.sniff import MediaType

DECODE_BYTES = 256 * 2**20
"""Most memory that one decode may take. Beyond it (16 megapixels of WebP, 44 of progressive JPEG) there is none."""

SHRINK = 8
"""A JPEG decoded at an eighth proves as much, for a fraction of the work."""


def opened(file: BinaryIO, media_type: str) -> ImageFile:
    """The image, by the reader of its type and no other; nothing is decoded yet. Raises what Pillow raises."""
    readers: dict[str, type[ImageFile]] = {"image/png": PngImageFile, "image/jpeg": _Jpeg, "image/webp": WebPImageFile}
    file.seek(0)
    return readers[media_type](file)


def decode(file: BinaryIO, media_type: MediaType, shape: Shape) -> None:
    """Let Pillow try. Raises `Malformed`, whatever Pillow raises: it has many ways to say no."""
    if shape.decode_bytes > DECODE_BYTES:
        return
    try:
        size = _decode(file, media_type)
    except Exception as error:
        raise Malformed(f"the image is damaged, it cannot be decoded: {MEND}") from error
    if size != (shape.width, shape.height):
        raise Malformed(f"the image has two sizes: {MEND}")


def _decode(file: BinaryIO, media_type: MediaType) -> tuple[int, int]:
    with opened(file, media_type) as image:
        size = image.size
        if media_type == "image/jpeg":
            image.draft(None, (max(1, size[0] // SHRINK), max(1, size[1] // SHRINK)))
        # the walk inflated and counted the pixels of a PNG; compressed text behind them is nobody's business yet
        if media_type != "image/png":
            image.load()
        return size


class _Jpeg(JpegImageFile):
    """Without the look into Exif for a resolution, which warns (process-wide) about the many photos with bad Exif."""

    def _read_dpi_from_exif(self) -> None:
        return
