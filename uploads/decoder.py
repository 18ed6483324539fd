"""Trial decode with Pillow, and the only function that opens an image with it."""

from __future__ import annotations

from typing import BinaryIO, Final

from PIL.ImageFile import ImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.WebPImagePlugin import WebPImageFile

from uploads.detect import MediaType
from uploads.structure import SEND_SMALLER, ImageInfo, InvalidImage

TRIAL_REDUCTION = 8
"""A JPEG decoded at an eighth of its size proves as much for a fraction of the work."""

SCAN_PADDING: Final = b"\xff\0" * 8
"""64 one bits, because the decoder reads that many ahead. No code of a JPEG is all ones, so they stand for three codes
at most: what is left of a block, and one more."""


def open_image(file: BinaryIO, media_type: str) -> ImageFile:
    """Open the image with the reader of its type only; nothing is decoded yet. Raises what Pillow raises."""
    readers: dict[str, type[ImageFile]] = {"image/png": PngImageFile, "image/jpeg": _Jpeg, "image/webp": WebPImageFile}
    file.seek(0)
    return readers[media_type](file)


def check_decodable(file: BinaryIO, media_type: MediaType, info: ImageInfo, max_bytes: int) -> None:
    """Decode the image with Pillow; raises `InvalidImage` for any error of Pillow.

    Raises MemoryError, and OSError of the disk, unchanged: they say nothing about the image.

    max_bytes: limit of `info.decode_bytes`; raises `InvalidImage` with both for an image above it.
    """
    if info.decode_bytes > max_bytes:
        needed = f"decoding the image takes {-(-info.decode_bytes // 2**20)} MiB of memory"
        allowed = f"{max_bytes / 2**20:g} MiB are allowed (BROKER_MAX_DECODE_BYTES)"
        raise InvalidImage(f"{needed}, {allowed}", SEND_SMALLER)
    try:
        size = _decode_image(file, media_type, info)
    except Exception as error:
        if is_temporary(error):
            raise
        raise InvalidImage("the image is damaged, it cannot be decoded") from error
    if size != (info.width, info.height):
        raise InvalidImage("the image has two sizes")


def is_temporary(error: Exception) -> bool:
    """Return whether the machine caused the error. Pillow's own OSErrors about bad images have no errno."""
    if isinstance(error, OSError):
        return error.errno is not None or "out of memory" in str(error)
    return isinstance(error, MemoryError)


def _decode_image(file: BinaryIO, media_type: MediaType, info: ImageInfo) -> tuple[int, int]:
    with open_image(file, media_type) as image:
        size = image.size
        if isinstance(image, _Jpeg):
            image.draft(None, (max(1, size[0] // TRIAL_REDUCTION), max(1, size[1] // TRIAL_REDUCTION)))
            image.scan_end = info.scan_end
        # the structure check inflated the pixels of a PNG; load() would keep them all
        if media_type != "image/png":
            image.load()
        return size


class _Jpeg(JpegImageFile):
    """JPEG reader without the Exif resolution, whose reading warns (process-wide) about common bad Exif.

    scan_end: if set, the data for the decoder ends there, with `SCAN_PADDING` and without an end marker. At a marker
    the decoder fills missing pixels with grey and reports success; without one it waits for more, and Pillow reports
    a truncated image.
    """

    scan_end: int | None = None
    _is_padded = False

    def _read_dpi_from_exif(self) -> None:
        return

    def load_read(self, read_bytes: int) -> bytes:
        if self.scan_end is None or self.fp is None:
            return super().load_read(read_bytes)
        if missing := self.scan_end - self.fp.tell():
            return self.fp.read(min(missing, read_bytes))
        padding = b"" if self._is_padded else SCAN_PADDING
        self._is_padded = True
        return padding
