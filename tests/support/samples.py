"""Images of every kind we take, and pieces to build those we do not."""

from __future__ import annotations

import io
import random
import struct
import zlib
from typing import Any

from PIL import Image

PNG_MAGIC = b"\x89PNG\r\n\x1a\n"


def picture(width: int = 24, height: int = 17, mode: str = "RGB") -> Image.Image:
    """Not flat, so that no coder can leave anything out."""
    noise = random.Random(1).randbytes(width * height * 3)
    return Image.frombytes("RGB", (width, height), noise).convert(mode)


def encoded(kind: str, image: Image.Image | None = None, **options: Any) -> bytes:
    file = io.BytesIO()
    (image or picture()).save(file, kind, **options)
    return file.getvalue()


def chunk(kind: bytes, body: bytes = b"") -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def header(width: int, height: int, depth: int = 8, colour: int = 2, interlace: int = 0) -> bytes:
    return chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, interlace))


def png(*chunks: bytes) -> bytes:
    return PNG_MAGIC + b"".join(chunks) + chunk(b"IEND")


def rows(width: int, height: int, *, channels: int = 3, level: int = 6) -> bytes:
    return zlib.compress((b"\0" + b"\x7f" * width * channels) * height, level)


def plain_png(*extra: bytes, width: int = 4, height: int = 3) -> bytes:
    """A PNG with extra chunks before its pixels."""
    return png(header(width, height), *extra, chunk(b"IDAT", rows(width, height)))


def chunks_of(data: bytes) -> list[bytes]:
    """The chunks of a PNG, each with length and checksum."""
    at, found = len(PNG_MAGIC), []
    while at < len(data):
        length = 12 + int.from_bytes(data[at : at + 4], "big")
        found.append(data[at : at + length])
        at += length
    return found


def segments_of(data: bytes) -> tuple[list[tuple[int, bytes, bytes]], bytes]:
    """The segments of a JPEG's first picture, each with marker, body and scan, and the rest from the end marker."""
    at, found = 2, []
    while data[at + 1] != 0xD9:
        begin = at + 2 + int.from_bytes(data[at + 2 : at + 4], "big")
        is_scan, end = data[at + 1] == 0xDA, begin
        while is_scan and (data[end] != 0xFF or data[end + 1] in {0, *range(0xD0, 0xD8)}):
            end += 1
        found.append((data[at + 1], data[at + 4 : begin], data[begin:end]))
        at = end
    return found, data[at:]


def riff_chunks_of(data: bytes) -> list[tuple[bytes, bytes]]:
    """The chunks of a WebP, each with kind and body."""
    at, found = 12, []
    while at < len(data):
        length = int.from_bytes(data[at + 4 : at + 8], "little")
        found.append((data[at : at + 4], data[at + 8 : at + 8 + length]))
        at += 8 + length + length % 2
    return found


def riff(*chunks: bytes) -> bytes:
    body = b"WEBP" + b"".join(chunks)
    return b"RIFF" + struct.pack("<I", len(body)) + body


def riff_chunk(kind: bytes, body: bytes) -> bytes:
    return kind + struct.pack("<I", len(body)) + body + b"\0" * (len(body) % 2)


def vp8x(width: int, height: int, flags: int = 0) -> bytes:
    size = (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")
    return riff_chunk(b"VP8X", bytes([flags, 0, 0, 0]) + size)


def segment(marker: int, body: bytes) -> bytes:
    return bytes([0xFF, marker]) + struct.pack(">H", len(body) + 2) + body


def with_segments(jpeg: bytes, *segments: bytes) -> bytes:
    """Behind the first segment, so that the magic bytes stay."""
    first = 4 + int.from_bytes(jpeg[4:6], "big")
    return jpeg[:first] + b"".join(segments) + jpeg[first:]


def flat_jpeg(side: int, *, progressive: bool = False, components: int = 3) -> bytes:
    """A grey square in as few bytes as there can be: a bit for the mean of each block, and one for its end."""
    sampling = b"".join(
        bytes([index, 0x22 if index == 0 and components > 1 else 0x11, 0]) for index in range(components)
    )
    frame = struct.pack(">BHHB", 8, side, side, components) + sampling
    scan = bytes([components]) + b"".join(bytes([index, 0]) for index in range(components))
    scan += b"\0\0\0" if progressive else b"\0\x3f\0"
    blocks = (-(-side // 16)) ** 2 * 6 if components == 3 else (-(-side // 8)) ** 2
    one_code = bytes([1]) + bytes(16)
    return b"".join(
        (
            b"\xff\xd8",
            segment(0xDB, b"\0" + b"\1" * 64),
            segment(0xC2 if progressive else 0xC0, frame),
            segment(0xC4, b"\0" + one_code + b"\x10" + one_code),
            segment(0xDA, scan),
            bytes(-(-blocks * (1 if progressive else 2) // 8)),
            b"\xff\xd9",
        )
    )


PNG = encoded("PNG")
JPEG = encoded("JPEG")
WEBP = encoded("WEBP")
WEBP_LOSSLESS = encoded("WEBP", lossless=True)

IMAGES: dict[str, bytes] = {
    "png": PNG,
    "png grey": encoded("PNG", picture(mode="L")),
    "png bilevel": encoded("PNG", picture(mode="1")),
    "png palette": encoded("PNG", picture().quantize(16)),
    "png alpha": encoded("PNG", picture(mode="RGBA")),
    "png 16 bit": encoded("PNG", picture(mode="I;16")),
    "png one pixel": encoded("PNG", picture(1, 1)),
    "png with text and profile": encoded("PNG", icc_profile=b"profile" * 500, dpi=(72, 72)),
    "jpeg": JPEG,
    "jpeg grey": encoded("JPEG", picture(mode="L")),
    "jpeg cmyk": encoded("JPEG", picture(mode="CMYK")),
    "jpeg progressive": encoded("JPEG", progressive=True),
    "jpeg grey progressive": encoded("JPEG", picture(mode="L"), progressive=True),
    "jpeg with restarts": encoded("JPEG", restart_marker_blocks=1),
    "jpeg one pixel": encoded("JPEG", picture(1, 1)),
    "jpeg with comment": encoded("JPEG", comment=b"\xff\xd9 no end \xff\xd8"),
    "jpeg with large profile": encoded("JPEG", icc_profile=b"profile" * 30_000),
    "jpeg with zeros behind": JPEG + b"\0" * 200_000,
    "jpeg of a phone": encoded("MPO", save_all=True, append_images=[picture(8, 8), picture(4, 4)]),
    "jpeg with a padded preview": JPEG + b"\0" * 100 + encoded("JPEG", picture(8, 8)),
    "jpeg with broken exif": encoded("JPEG", exif=b"Exif\0\0II*\0\x08\0\0\0\xff\xff" + b"\xff" * 40),
    "jpeg with fill bytes": with_segments(JPEG, b"\xff\xff\xff"),
    "webp": WEBP,
    "webp lossless": WEBP_LOSSLESS,
    "webp alpha": encoded("WEBP", picture(mode="RGBA")),
    "webp with metadata": encoded("WEBP", exif=b"Exif\0\0" + b"x" * 21, xmp=b"<x/>", icc_profile=b"profile"),
    "webp one pixel": encoded("WEBP", picture(1, 1)),
}


def interlaced(width: int, height: int) -> bytes:
    """An Adam7 PNG, which Pillow reads and does not write."""
    passes = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))
    data = b""
    for x, y, step_x, step_y in passes:
        columns = len(range(x, width, step_x))
        data += (b"\0" + b"\x55" * columns) * len(range(y, height, step_y)) if columns else b""
    return png(header(width, height, 8, 0, 1), chunk(b"IDAT", zlib.compress(data)))
