"""What bytes are, told by the bytes: by their beginning first, then by their whole structure."""

from __future__ import annotations

from collections.abc import Callable
from typing import BinaryIO, Final, Literal

from uploads import jpeg, png, webp
from uploads.shape import Malformed, Shape, Source

MediaType = Literal["image/png", "image/jpeg", "image/webp"]
Walk = Callable[[Source, int], Shape]

HEAD = 1024
"""Bytes that tell the type, and for what we do not take also its name."""

_WALKS: Final[dict[MediaType, Walk]] = {"image/png": png.walk, "image/jpeg": jpeg.walk, "image/webp": webp.walk}

_OTHERS: Final[tuple[tuple[int, bytes, str], ...]] = (
    (0, b"GIF8", "a GIF"),
    (0, b"BM", "a BMP"),
    (0, b"\0\0\1\0", "an icon (ICO)"),
    (0, b"II*\0", "a TIFF"),
    (0, b"MM\0*", "a TIFF"),
    (4, b"ftypavi", "an AVIF"),
    (4, b"ftyphe", "a HEIC photo"),
    (4, b"ftypmif1", "a HEIC photo"),
    (4, b"ftypmsf1", "a HEIC photo"),
    (4, b"ftyp", "a video (MP4)"),
    (0, b"\xff\x0a", "a JPEG XL"),
    (0, b"\0\0\0\x0cJXL ", "a JPEG XL"),
    (0, b"\0\0\0\x0cjP  ", "a JPEG 2000"),
    (0, b"\xff\x4f\xff\x51", "a JPEG 2000"),
    (0, b"8BPS", "a Photoshop file"),
    (0, b"%PDF", "a PDF"),
    (0, b"%!PS", "a PostScript file"),
    (8, b"AVI ", "a video (AVI)"),
    (8, b"WAVE", "a sound (WAV)"),
    (0, b"\x1aE\xdf\xa3", "a video (WebM)"),
    (0, b"PK\3\4", "a ZIP archive"),
    (0, b"\x1f\x8b", "a gzip archive"),
    (0, b"7z\xbc\xaf\x27\x1c", "a 7z archive"),
    (0, b"Rar!", "a RAR archive"),
    (0, b"MZ", "a Windows program"),
    (0, b"\x7fELF", "a Linux program"),
    (0, b"#!", "a script"),
)


def recognise(head: bytes) -> MediaType:
    """The type by the first `HEAD` bytes, or all there are. Raises `Malformed` that says what it is instead."""
    if head.startswith(png.MAGIC):
        return "image/png"
    if head.startswith(jpeg.MAGIC):
        return "image/jpeg"
    if head.startswith(webp.RIFF) and head[8:12] == webp.KIND:
        return "image/webp"
    raise _unwelcome(head)


def walk(file: BinaryIO, media_type: MediaType, max_pixels: int) -> Shape:
    """Read the structure of a whole file of that type, from its first byte to its last; memory stays flat."""
    file.seek(0)
    return _WALKS[media_type](Source(file), max_pixels)


def _unwelcome(head: bytes) -> Malformed:
    if not head:
        return Malformed("the image is empty: send it again", truncated=True)
    if _begins_one(head):
        return Malformed("the image ends after its first bytes: send it again", truncated=True)
    for offset, magic, name in _OTHERS:
        if head[offset:].startswith(magic):
            return Malformed(f"this is {name}: save it as PNG, JPEG or WebP")
    return _text(head) or Malformed("these bytes are no image we know: save it as PNG, JPEG or WebP")


def _begins_one(head: bytes) -> bool:
    riff = head.startswith(webp.RIFF) and len(head) < 12
    return riff or any(magic.startswith(head) for magic in (png.MAGIC, jpeg.MAGIC, webp.RIFF))


def _text(head: bytes) -> Malformed | None:
    text = head.removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    if text.startswith(b"<"):
        return _markup(text)
    if text.startswith((b"{", b"[")):
        return Malformed("this is JSON, not an image: use the address of the image itself")
    if b"\0" not in text and text.isascii():
        return Malformed("this is text, not an image: use the address of the image itself")
    return None


def _markup(text: bytes) -> Malformed:
    if any(tag in text for tag in (b"<!doctype html", b"<html", b"<head", b"<body")):
        return Malformed("this is an HTML page, not an image: use the address of the image itself")
    if b"<svg" in text or b"<!doctype svg" in text:
        return Malformed("SVG is not accepted: save it as PNG, JPEG or WebP")
    return Malformed("this is a page of markup (HTML or XML), not an image: use the address of the image itself")
