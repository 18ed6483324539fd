"""Pillow, asked whether it can open what we are about to keep; the only module of this package that imports it."""

from __future__ import annotations

from typing import BinaryIO

from PIL.ImageFile import ImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.WebPImagePlugin import WebPImageFile

from uploads.shape import MEND, Malformed, Shape
from uploads.sniff import MediaType

DECODE_BYTES = 256 * 2**20
"""Most memory that one decode may take. Beyond it (22 megapixels of WebP, 44 of progressive JPEG) there is none."""


def decode(file: BinaryIO, media_type: MediaType, shape: Shape) -> None:
    """Let Pillow try. Raises `Malformed`, whatever Pillow raises: it has many ways to say no."""
    if shape.decode_bytes > DECODE_BYTES:
        return
    file.seek(0)
    try:
        size = _decode(file, media_type)
    except Exception as error:
        raise Malformed(f"the image is damaged, it cannot be decoded: {MEND}") from error
    if size != (shape.width, shape.height):
        raise Malformed(f"the image has two sizes: {MEND}")


def _decode(file: BinaryIO, media_type: MediaType) -> tuple[int, int]:
    match media_type:
        # its pixels were inflated and counted by the walk; only compressed text behind them is nobody's business yet
        case "image/png":
            with PngImageFile(file) as image:
                return image.size
        case "image/jpeg":
            return _load(_Jpeg(file), shrink=8)
        case "image/webp":
            return _load(WebPImageFile(file))


def _load(image: ImageFile, shrink: int = 1) -> tuple[int, int]:
    with image:
        size = image.size
        if shrink > 1:
            image.draft(None, (max(1, size[0] // shrink), max(1, size[1] // shrink)))
        image.load()
        return size


class _Jpeg(JpegImageFile):
    """Without the look into Exif for a resolution, which warns (process-wide) about the many photos with bad Exif."""

    def _read_dpi_from_exif(self) -> None:
        return
