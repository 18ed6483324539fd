"""Trial decode with Pillow, and the only function that opens an image with it."""

from __future__ import annotations

from typing import BinaryIO

from PIL.ImageFile import ImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.WebPImagePlugin import WebPImageFile

from uploads.detect import MediaType
from uploads.structure import ImageInfo, InvalidImage

MAX_DECODE_BYTES = 256 * 2**20
"""Memory limit of one decode. Larger images (16 megapixels of WebP, 44 of progressive JPEG) are not decoded."""

TRIAL_REDUCTION = 8
"""A JPEG decoded at an eighth of its size proves as much for a fraction of the work."""


def open_image(file: BinaryIO, media_type: str) -> ImageFile:
    """Open the image with the reader of its type only; nothing is decoded yet. Raises what Pillow raises."""
    readers: dict[str, type[ImageFile]] = {"image/png": PngImageFile, "image/jpeg": _Jpeg, "image/webp": WebPImageFile}
    file.seek(0)
    return readers[media_type](file)


def check_decodable(file: BinaryIO, media_type: MediaType, info: ImageInfo) -> None:
    """Decode the image with Pillow if its memory allows; raises `InvalidImage` for any error of Pillow."""
    if info.decode_bytes > MAX_DECODE_BYTES:
        return
    try:
        size = _decode_image(file, media_type)
    except Exception as error:
        raise InvalidImage("the image is damaged, it cannot be decoded") from error
    if size != (info.width, info.height):
        raise InvalidImage("the image has two sizes")


def _decode_image(file: BinaryIO, media_type: MediaType) -> tuple[int, int]:
    with open_image(file, media_type) as image:
        size = image.size
        if media_type == "image/jpeg":
            image.draft(None, (max(1, size[0] // TRIAL_REDUCTION), max(1, size[1] // TRIAL_REDUCTION)))
        # the structure check inflated the pixels of a PNG; load() would only inflate text behind them
        if media_type != "image/png":
            image.load()
        return size


class _Jpeg(JpegImageFile):
    """JPEG reader without the Exif resolution, whose reading warns (process-wide) about common bad Exif."""

    def _read_dpi_from_exif(self) -> None:
        return
