"""Paints: the same order always gives the same bytes."""

from __future__ import annotations

import hashlib
import io
import math
import struct
import textwrap
import zlib
from collections.abc import Callable
from dataclasses import dataclass

import anyio
from anyio import to_thread
from PIL import Image, ImageDraw, ImageFont, ImageOps

from broker.sandbox.answers import Picture

SHOWN = 600  # characters of the prompt that are written on the picture
CACHE_BYTES = 64 * 1024 * 1024
PNG_HEAD = 33  # signature and IHDR: further chunks may follow


class NotAnImage(Exception):
    """These bytes cannot be a reference."""


@dataclass(frozen=True, kw_only=True)
class Painting:
    """What decides about every pixel. index: which of several pictures of one job."""

    prompt: str
    size: tuple[int, int]
    image_format: str
    seed: int | None = None
    index: int = 0
    thumbnails: tuple[bytes, ...] = ()


def paint(painting: Painting) -> bytes:
    """A gradient, the prompt, and the references in a row at the bottom."""
    first, second = _colours(painting)
    gradient = Image.linear_gradient("L").rotate(90 * (first[0] % 4)).resize(painting.size)
    canvas = ImageOps.colorize(gradient, black=first, white=second)
    _write(canvas, painting.prompt)
    _pin(canvas, painting.thumbnails)
    return _encoded(canvas, painting.image_format)


def _colours(painting: Painting) -> tuple[tuple[int, int, int], tuple[int, int, int]]:
    """A dark and a bright one."""
    words = f"{painting.prompt}\0{painting.seed}\0{painting.index}"
    d = hashlib.sha256(words.encode(errors="replace")).digest()
    return (d[0] // 2, d[1] // 2, d[2] // 2), (128 + d[3] // 2, 128 + d[4] // 2, 128 + d[5] // 2)


def _write(canvas: Image.Image, prompt: str) -> None:
    size = max(16, min(canvas.size) // 18)
    font = ImageFont.load_default(size)
    columns = max(8, int(canvas.width * 0.9 / font.getlength("n")))
    lines = textwrap.wrap(_printable(prompt), columns)[: int(canvas.height * 0.6 / (size * 1.3))]
    edge, pen = canvas.width * 0.05, ImageDraw.Draw(canvas)
    for row, line in enumerate(lines):
        pen.text((edge, edge + row * size * 1.3), line, (255, 255, 255), font, stroke_width=2, stroke_fill=(0, 0, 0))


def _printable(prompt: str) -> str:
    """Half surrogate pairs and control characters would stop the pen."""
    return "".join(letter if letter.isprintable() else " " for letter in prompt[:SHOWN])


def _pin(canvas: Image.Image, thumbnails: tuple[bytes, ...]) -> None:
    if not thumbnails:
        return
    side = min(canvas.height // 4, canvas.width // len(thumbnails))
    for column, thumbnail in enumerate(thumbnails):
        with Image.open(io.BytesIO(thumbnail)) as small:
            canvas.paste(ImageOps.pad(small.convert("RGB"), (side, side)), (column * side, canvas.height - side))


def _encoded(canvas: Image.Image, image_format: str) -> bytes:
    out = io.BytesIO()
    canvas.save(out, image_format, quality=90, compress_level=1)
    return out.getvalue()


def shrink(data: bytes) -> tuple[tuple[int, int], bytes]:
    """A reference's size and a thumbnail of it as PNG; `NotAnImage` for anything else."""
    try:
        with Image.open(io.BytesIO(data), formats=("PNG", "JPEG", "WEBP")) as image:
            size = image.size
            image.thumbnail((256, 256))
            return size, _encoded(image.convert("RGB"), "png")
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise NotAnImage(str(error)) from error


def noise(size: int) -> bytes:
    """A PNG of at least `size` bytes that no compressor makes smaller."""
    side = math.isqrt(size // 3) + 1
    pixels = hashlib.shake_256(b"noise").digest(side * side * 3)
    out = io.BytesIO()
    Image.frombytes("RGB", (side, side), pixels).save(out, "png", compress_level=0)
    return out.getvalue()


def bomb() -> bytes:
    """A flawless PNG of 50 KB that unpacks to 400 million pixels."""
    side = 20_000
    packer = zlib.compressobj(9)
    row = b"\0" * (1 + side // 8)
    rows = b"".join(packer.compress(row) for _ in range(side)) + packer.flush()
    head = struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + _chunk(b"IHDR", head) + _chunk(b"IDAT", rows) + _chunk(b"IEND", b"")


def labelled(png: bytes, label: str) -> Picture:
    """The same pixels under other bytes, without copying them."""
    comment = _chunk(b"tEXt", b"Comment\0" + hashlib.sha256(label.encode(errors="replace")).hexdigest().encode())
    pieces = (png[:PNG_HEAD], comment, memoryview(png)[PNG_HEAD:])
    return Picture(pieces=pieces, media_type="image/png")


def _chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


class Gallery:
    """Pictures already painted, the newest 64 MiB of them. One brush: what ten ask for at once is painted once."""

    def __init__(self) -> None:
        self._hung: dict[object, bytes] = {}
        self._brush = anyio.Lock()

    async def show(self, key: object, make: Callable[[], bytes]) -> bytes:
        """What `make` paints, in a thread; `key` must name everything it depends on."""
        async with self._brush:
            picture = self._hung.pop(key, b"") or await to_thread.run_sync(make)
            self._hung[key] = picture  # last = newest
            self._clear_out()
        return picture

    def _clear_out(self) -> None:
        while len(self._hung) > 1 and sum(map(len, self._hung.values())) > CACHE_BYTES:
            del self._hung[next(iter(self._hung))]
