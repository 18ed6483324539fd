"""Deterministic image generator: the same request always gives the same bytes."""

from __future__ import annotations

import hashlib
import io
import math
import struct
import textwrap
import zlib
from dataclasses import dataclass
from functools import lru_cache

from PIL import Image, ImageDraw, ImageFont, ImageOps

MAX_PROMPT_CHARACTERS = 600
PNG_HEAD = 33  # signature and IHDR: further chunks may follow


class NotAnImage(Exception):
    """The bytes are not a usable reference."""


@dataclass(frozen=True, kw_only=True)
class PaintOptions:
    """Parameters of one image. index: number of the image within its job."""

    prompt: str
    size: tuple[int, int]
    image_format: str
    seed: int | None = None
    index: int = 0
    thumbnails: tuple[bytes, ...] = ()


@lru_cache(maxsize=128)
def paint(options: PaintOptions) -> bytes:
    """Paint a gradient, the prompt, and the references in a row at the bottom."""
    first, second = _choose_colours(options)
    gradient = Image.linear_gradient("L").rotate(90 * (first[0] % 4)).resize(options.size)
    canvas = ImageOps.colorize(gradient, black=first, white=second)
    _write_prompt(canvas, options.prompt)
    _paste_references(canvas, options.thumbnails)
    return _encode_image(canvas, options.image_format)


def _choose_colours(options: PaintOptions) -> tuple[tuple[int, int, int], tuple[int, int, int]]:
    """Return a dark and a bright colour."""
    words = f"{options.prompt}\0{options.seed}\0{options.index}"
    d = hashlib.sha256(words.encode(errors="replace")).digest()
    return (d[0] // 2, d[1] // 2, d[2] // 2), (128 + d[3] // 2, 128 + d[4] // 2, 128 + d[5] // 2)


def _write_prompt(canvas: Image.Image, prompt: str) -> None:
    size = max(16, min(canvas.size) // 18)
    font = ImageFont.load_default(size)
    columns = max(8, int(canvas.width * 0.9 / font.getlength("n")))
    # control characters and lone surrogates cannot be drawn
    text = "".join(letter if letter.isprintable() else " " for letter in prompt[:MAX_PROMPT_CHARACTERS])
    lines = textwrap.wrap(text, columns)[: int(canvas.height * 0.6 / (size * 1.3))]
    edge, pen = canvas.width * 0.05, ImageDraw.Draw(canvas)
    for row, line in enumerate(lines):
        pen.text((edge, edge + row * size * 1.3), line, (255, 255, 255), font, stroke_width=2, stroke_fill=(0, 0, 0))


def _paste_references(canvas: Image.Image, thumbnails: tuple[bytes, ...]) -> None:
    if not thumbnails:
        return
    side = min(canvas.height // 4, canvas.width // len(thumbnails))
    for column, thumbnail in enumerate(thumbnails):
        with Image.open(io.BytesIO(thumbnail)) as small:
            canvas.paste(ImageOps.pad(small.convert("RGB"), (side, side)), (column * side, canvas.height - side))


def _encode_image(canvas: Image.Image, image_format: str) -> bytes:
    out = io.BytesIO()
    canvas.save(out, image_format, quality=90, compress_level=1)
    return out.getvalue()


def make_thumbnail(data: bytes) -> tuple[tuple[int, int], bytes]:
    """Return the size of a reference and a thumbnail as PNG; raise `NotAnImage` for anything else."""
    try:
        with Image.open(io.BytesIO(data), formats=("PNG", "JPEG", "WEBP")) as image:
            size = image.size
            image.thumbnail((256, 256))
            return size, _encode_image(image.convert("RGB"), "png")
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise NotAnImage(str(error)) from error


@lru_cache(maxsize=2)
def noise(size: int) -> bytes:
    """Return an incompressible PNG of at least `size` bytes."""
    side = math.isqrt(size // 3) + 1
    pixels = hashlib.shake_256(b"noise").digest(side * side * 3)
    out = io.BytesIO()
    Image.frombytes("RGB", (side, side), pixels).save(out, "png", compress_level=0)
    return out.getvalue()


def bomb() -> bytes:
    """Return a valid PNG of 50 KB with 400 million pixels."""
    side = 20_000
    packer = zlib.compressobj(9)
    row = b"\0" * (1 + side // 8)
    rows = b"".join(packer.compress(row) for _ in range(side)) + packer.flush()
    head = struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + _make_chunk(b"IHDR", head) + _make_chunk(b"IDAT", rows) + _make_chunk(b"IEND", b"")


def label_png(png: bytes, label: str) -> bytes:
    """Return the same pixels with other bytes."""
    comment = _make_chunk(b"tEXt", b"Comment\0" + hashlib.sha256(label.encode(errors="replace")).hexdigest().encode())
    return png[:PNG_HEAD] + comment + png[PNG_HEAD:]


def _make_chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
