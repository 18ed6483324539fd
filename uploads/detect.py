"""Detection of the image type by its first bytes, and dispatch to the structure checks."""

from __future__ import annotations

from collections.abc import Callable
from typing import BinaryIO, Final, Literal, get_args

from uploads import jpeg, png, webp
from uploads.structure import SAVE_AS, SEND_AGAIN, ImageInfo, InvalidImage, Source

MediaType = Literal["image/png", "image/jpeg", "image/webp"]
MEDIA_TYPES: Final[tuple[str, ...]] = get_args(MediaType)

HEAD_BYTES = 1024
"""Bytes needed to detect the type, or to name an unsupported one."""

_VALIDATORS: Final[dict[MediaType, Callable[[Source, int], ImageInfo]]] = {
    "image/png": png.validate_structure,
    "image/jpeg": jpeg.validate_structure,
    "image/webp": webp.validate_structure,
}

_UNSUPPORTED_TYPES: Final[tuple[tuple[str, int, tuple[bytes, ...]], ...]] = (
    ("a GIF", 0, (b"GIF8",)),
    ("a BMP", 0, (b"BM",)),
    ("an icon (ICO)", 0, (b"\0\0\1\0",)),
    ("a TIFF", 0, (b"II*\0", b"MM\0*")),
    ("an AVIF", 4, (b"ftypavi",)),
    ("a HEIC photo", 4, (b"ftyphe", b"ftypmif1", b"ftypmsf1")),
    ("a video (MP4)", 4, (b"ftyp",)),
    ("a JPEG XL", 0, (b"\xff\x0a", b"\0\0\0\x0cJXL ")),
    ("a JPEG 2000", 0, (b"\0\0\0\x0cjP  ", b"\xff\x4f\xff\x51")),
    ("a Photoshop file", 0, (b"8BPS",)),
    ("a PDF", 0, (b"%PDF",)),
    ("an archive", 0, (b"PK\3\4", b"\x1f\x8b", b"7z\xbc\xaf\x27\x1c", b"Rar!")),
)
"""Name, offset, and the bytes there, of which one suffices."""


def detect_type(head: bytes) -> MediaType:
    """Return the type by the first `HEAD_BYTES` bytes; raises `InvalidImage` that names what the file is instead."""
    if head.startswith(png.MAGIC):
        return "image/png"
    if head.startswith(jpeg.MAGIC):
        return "image/jpeg"
    if head.startswith(webp.RIFF) and head[8:12] == webp.KIND:
        return "image/webp"
    raise _name_unsupported(head)


def validate_structure(file: BinaryIO, media_type: MediaType, max_pixels: int) -> ImageInfo:
    """Check the structure of a whole file of that type in constant memory; raises `InvalidImage`."""
    file.seek(0)
    return _VALIDATORS[media_type](Source(file), max_pixels)


def _name_unsupported(head: bytes) -> InvalidImage:
    if not head:
        return InvalidImage("the image is empty", SEND_AGAIN, truncated=True)
    if _is_prefix_of_image(head):
        return InvalidImage("the image ends after its first bytes", SEND_AGAIN, truncated=True)
    for name, offset, magics in _UNSUPPORTED_TYPES:
        if head.startswith(magics, offset):
            return InvalidImage(f"this is {name}", SAVE_AS)
    return _describe_text(head) or InvalidImage("this is not a known image format", SAVE_AS)


def _is_prefix_of_image(head: bytes) -> bool:
    riff = head.startswith(webp.RIFF) and len(head) < 12
    return riff or any(magic.startswith(head) for magic in (png.MAGIC, jpeg.MAGIC, webp.RIFF))


def _describe_text(head: bytes) -> InvalidImage | None:
    text = head.removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    if text.startswith(b"<"):
        if any(tag in text for tag in (b"<!doctype html", b"<html", b"<head", b"<body")):
            kind = "an HTML page"
        elif b"<svg" in text or b"<!doctype svg" in text:
            return InvalidImage("SVG is not accepted", SAVE_AS)
        else:
            kind = "a page of markup (HTML or XML)"
    elif text.startswith((b"{", b"[")):
        kind = "JSON"
    elif b"\0" not in text and text.isascii():
        kind = "text"
    else:
        return None
    return InvalidImage(f"this is {kind}, not an image", "use the address of the image itself")
