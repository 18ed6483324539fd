"""Thumbnails: eligible images, appearance, and memory."""

from __future__ import annotations

import io
import os
import subprocess
import sys
import warnings
import zlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image, ImageOps

from storage.images import StoredImage
from tests.support import samples as s
from uploads.detect import detect_type, validate_structure
from uploads.thumbnails import (
    MAX_MEMORY_BYTES,
    THUMBNAIL_SIZES,
    Thumbnail,
    ThumbnailError,
    ThumbnailSize,
    has_thumbnail,
    make_thumbnail,
    thumbnail_size,
)

QUARTERS = ("red", "lime", "blue", "white")
"""Top left, top right, bottom left, bottom right."""


def row(media_type: str, width: int, height: int, size: int = 1000) -> StoredImage:
    return StoredImage(
        name="generated_1.png",
        owner="task_1",
        kind="result",
        position=0,
        blob="task_1/0",
        media_type=media_type,
        size=size,
        width=width,
        height=height,
        sha256="0",
        created_at=0,
    )


def small(folder: Path, data: bytes, size: ThumbnailSize = 128) -> Thumbnail:
    path = folder / "image"
    path.write_bytes(data)
    with path.open("rb") as file:
        info = validate_structure(file, detect_type(data), 10**9)
    return make_thumbnail(path, row(detect_type(data), info.width, info.height, len(data)), size)


def pixels(thumbnail: Thumbnail, mode: str = "RGB") -> Image.Image:
    with Image.open(io.BytesIO(thumbnail.data)) as image:
        assert (image.format, image.size) == ("WEBP", (thumbnail.width, thumbnail.height))
        return image.convert(mode)


def quarters(width: int, height: int, mode: str = "RGB") -> Image.Image:
    image = Image.new("RGB", (2, 2))
    for at, colour in zip(((0, 0), (1, 0), (0, 1), (1, 1)), QUARTERS, strict=True):
        image.paste(colour, (*at, at[0] + 1, at[1] + 1))
    return image.resize((width, height), Image.Resampling.NEAREST).convert(mode)


def corners(image: Image.Image) -> list[tuple[int, ...]]:
    """The colours in the middle of each quarter, as far as a lossy picture keeps them: on or off."""
    width, height = image.size
    at = [(x * width // 4, y * height // 4) for y in (1, 3) for x in (1, 3)]
    found: list[Any] = [image.getpixel(point) for point in at]
    return [tuple(round(channel / 255) for channel in colour[:3]) for colour in found]


UPRIGHT = [(1, 0, 0), (0, 1, 0), (0, 0, 1), (1, 1, 1)]


@pytest.mark.parametrize("name", s.IMAGES)
def test_every_accepted_image_has_a_thumbnail(tmp_path: Path, name: str) -> None:
    assert pixels(small(tmp_path, s.IMAGES[name])).size == ((1, 1) if "one pixel" in name else (24, 17)), "as large"


@pytest.mark.parametrize(("kind", "options"), [
    ("PNG", {}), ("JPEG", {}), ("JPEG", {"progressive": True}), ("WEBP", {}), ("WEBP", {"lossless": True}),
])  # fmt: skip
@pytest.mark.parametrize("size", [(1600, 1200), (1200, 1600), (1025, 7), (7, 1025), (300, 300), (4100, 40)])
def test_longest_side_is_the_size_and_the_aspect_ratio_stays(
    tmp_path: Path, kind: str, options: dict[str, Any], size: tuple[int, int]
) -> None:
    thumbnail = small(tmp_path, s.encoded(kind, quarters(*size), **options), 256)
    assert max(thumbnail.width, thumbnail.height) == 256
    expected = [max(1, round(side * 256 / max(size))) for side in size]
    assert (abs(thumbnail.width - expected[0]), abs(thumbnail.height - expected[1])) <= (1, 1)
    if min(expected) > 30:
        assert corners(pixels(thumbnail)) == UPRIGHT


@pytest.mark.parametrize("mode", ["RGB", "P", "CMYK", "L", "1", "LA", "RGBA"])
def test_every_mode_keeps_its_colours(tmp_path: Path, mode: str) -> None:
    image = quarters(600, 400, "RGB").quantize(8) if mode == "P" else quarters(600, 400, mode)
    found = corners(pixels(small(tmp_path, s.encoded("JPEG" if mode == "CMYK" else "PNG", image))))
    if mode in {"RGB", "P", "CMYK", "RGBA"}:
        assert found == UPRIGHT
    else:
        assert [found[0], found[3]] == [(0, 0, 0), (1, 1, 1)]


def test_sixteen_bits_of_grey_are_scaled_and_not_cut_off(tmp_path: Path) -> None:
    image = Image.new("I;16", (400, 400), 128 * 257)
    (level, *_) = pixels(small(tmp_path, s.encoded("PNG", image))).getpixel((50, 50))  # type: ignore[misc]
    assert abs(level - 128) <= 2


def test_sixteen_bits_of_colour(tmp_path: Path) -> None:
    pixel = b"".join(value.to_bytes(2, "big") for value in (0xFFFF, 0, 0))
    body = zlib.compress((b"\0" + pixel * 300) * 300)
    data = s.png(s.header(300, 300, 16, 2), s.chunk(b"IDAT", body))
    assert corners(pixels(small(tmp_path, data))) == [(1, 0, 0)] * 4


def test_interlaced(tmp_path: Path) -> None:
    assert small(tmp_path, s.interlaced(300, 200)).width == 128


@pytest.mark.parametrize("size", [(64, 64), (3000, 2000)])
def test_transparency_is_kept(tmp_path: Path, size: tuple[int, int]) -> None:
    image = quarters(*size, "RGBA")
    image.paste((0, 0, 0, 0), (0, 0, size[0] // 2, size[1]))
    palette = image.quantize(8)
    grey = Image.merge("LA", (image.convert("L"), image.getchannel("A")))
    for data in (
        s.encoded("PNG", image),
        s.encoded("WEBP", image),
        s.encoded("PNG", palette),
        s.encoded("PNG", grey),
        s.encoded("PNG", quarters(*size), transparency=(255, 0, 0)),
    ):
        shown = pixels(small(tmp_path, data), "RGBA")
        alpha = shown.getchannel("A")
        assert alpha.getpixel((shown.width // 8, shown.height // 8)) == 0
        assert alpha.getpixel((shown.width * 7 // 8, shown.height // 8)) == 255


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
def test_orientation_is_applied(tmp_path: Path, kind: str, orientation: int) -> None:
    """Compared with Pillow's own transposition."""
    exif = Image.Exif()
    exif[0x112] = orientation
    data = s.encoded(kind, quarters(300, 200), exif=exif.tobytes())
    with Image.open(io.BytesIO(data)) as image:
        upright = ImageOps.exif_transpose(image).convert("RGB")
    shown = pixels(small(tmp_path, data))
    assert (shown.width > shown.height) is (upright.width > upright.height)
    assert corners(shown) == corners(upright)


@pytest.mark.parametrize(
    "exif",
    [
        b"",
        b"Exif\0\0",
        b"Exif\0\0II*\0",
        b"Exif\0\0MM\0*\xff\xff\xff\xff" + b"\xff" * 40,
        b"Exif\0\0II*\0\x08\0\0\0\xff\xff" + b"\xff" * 40,
        b"Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0\x2a\0\0\0",
        b"Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01",
    ],
)
def test_bad_exif_is_ignored_without_a_warning(tmp_path: Path, exif: bytes) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        data = s.encoded("JPEG", quarters(300, 200), **({"exif": exif} if exif else {}))
        assert corners(pixels(small(tmp_path, data))) == UPRIGHT


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
def test_no_metadata_is_copied(tmp_path: Path, kind: str) -> None:
    """Neither the location of a photo nor its comment."""
    exif = Image.Exif()
    exif[0x10E] = "secret place"
    more: dict[str, Any] = {} if kind == "PNG" else {"comment": b"secret"} if kind == "JPEG" else {"xmp": b"<secret/>"}
    data = s.encoded(kind, quarters(300, 200), exif=exif.tobytes(), icc_profile=b"secret" * 50, **more)
    assert b"secret" in data
    thumbnail = small(tmp_path, data)
    assert b"secret" not in thumbnail.data
    assert b"EXIF" not in thumbnail.data
    assert b"ICCP" not in thumbnail.data


def test_same_image_makes_the_same_thumbnail(tmp_path: Path) -> None:
    """The process that made it does not matter."""
    data = s.encoded("PNG", s.picture(400, 300))
    assert small(tmp_path, data) == small(tmp_path, data)


# -- sizes


@pytest.mark.parametrize(("requested", "size"), [
    (1, 128), (127, 128), (128, 128), (129, 256), (500, 512), (512, 512), (513, 1024), (1024, 1024), (999_999, 1024),
])  # fmt: skip
def test_requested_size_is_rounded_up(requested: int, size: int) -> None:
    assert thumbnail_size(row("image/png", 4096, 100), requested) == size


@pytest.mark.parametrize(("longest", "size"), [(1, 128), (128, 128), (129, 256), (700, 1024), (4096, 1024)])
def test_size_larger_than_the_image_is_not_made(longest: int, size: int) -> None:
    """All of them would be the same picture."""
    assert thumbnail_size(row("image/png", 1, longest), 1024) == size
    assert size in THUMBNAIL_SIZES


# -- limits


@pytest.mark.parametrize(("media_type", "width", "height"), [
    ("image/png", 8000, 4000), ("image/jpeg", 7000, 4000), ("image/webp", 4000, 4000),
    ("image/png", 32_768, 900), ("image/jpeg", 1, 32_768),
])  # fmt: skip
def test_image_above_the_pixel_or_side_limit_has_no_thumbnail(media_type: str, width: int, height: int) -> None:
    assert has_thumbnail(row(media_type, width, height))
    assert not has_thumbnail(row(media_type, width + 1, height + 1))


def test_other_media_types_have_no_thumbnail() -> None:
    assert not has_thumbnail(row("text/html", 10, 10))


MEMORY = """
import re, resource, sys
from pathlib import Path
from storage.images import StoredImage
from uploads.thumbnails import make_thumbnail
def peak():
    return int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) * 1024
path, media_type, width, height = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
original = StoredImage(
    name="generated_1.png", owner="task_1", kind="result", position=0, blob="task_1/0", media_type=media_type,
    size=path.stat().st_size, width=width, height=height, sha256="0", created_at=0,
)
before = peak()
if len(sys.argv) > 6:
    now = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (now + int(sys.argv[6]),) * 2)
try:
    make_thumbnail(path, original, int(sys.argv[5]))
except Exception as error:
    print(type(error).__name__)
else:
    print(peak() - before)
"""
LOADED_BYTES = 16 * 2**20
"""Code that is loaded during the call."""

needs_proc = pytest.mark.skipif(
    not Path("/proc/self/status").exists(), reason="the kernel's account is read from /proc"
)


def thumbnail_in_subprocess(
    path: Path, image: StoredImage, size: ThumbnailSize = 1024, *, room: int | None = None
) -> str:
    """Return the memory used by a process of its own, or the kind of its error."""
    arguments = [str(path), image.media_type, str(image.width), str(image.height), str(size)]
    if room is not None:
        arguments.append(str(room))
    ran = subprocess.run(
        [sys.executable, "-c", MEMORY, *arguments],
        capture_output=True, text=True, check=True, env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )  # fmt: skip
    return ran.stdout.strip()


@needs_proc
@pytest.mark.parametrize(("kind", "mode", "options", "size"), [
    ("PNG", "P", {"compress_level": 1}, (8000, 4000)), ("PNG", "RGBA", {"compress_level": 1}, (1000, 32_000)),
    ("JPEG", "CMYK", {"progressive": True}, (7000, 4000)), ("WEBP", "RGBA", {"method": 0}, (4000, 4000)),
])  # fmt: skip
def test_memory_stays_within_the_limit_for_the_largest_images(
    tmp_path: Path, kind: str, mode: str, options: dict[str, Any], size: tuple[int, int]
) -> None:
    """Measured by the kernel in a process of its own."""
    image = s.picture(50, 30)
    image = image.quantize(16) if mode == "P" else image.convert(mode)
    path = tmp_path / "image"
    image.resize(size, Image.Resampling.NEAREST).save(path, kind, **options)
    original = row(f"image/{kind.lower()}", *size, path.stat().st_size)
    assert has_thumbnail(original)
    assert int(thumbnail_in_subprocess(path, original)) < MAX_MEMORY_BYTES + 2 * path.stat().st_size + LOADED_BYTES


def flat_png(width: int, height: int) -> bytes:
    return s.png(s.header(width, height, 8, 6), s.chunk(b"IDAT", s.rows(width, height, channels=4, level=1)))


@needs_proc
def test_too_little_memory_is_a_temporary_error(tmp_path: Path) -> None:
    """A sound image must not be remembered as a damaged one."""
    path = tmp_path / "image"
    path.write_bytes(flat_png(4000, 4000))
    assert thumbnail_in_subprocess(path, row("image/png", 4000, 4000), room=30 * 2**20) == "MemoryError"


@pytest.mark.skipif(not Path("/proc/self/mem").exists(), reason="a file that opens and cannot be read")
@pytest.mark.parametrize("media_type", ["image/png", "image/jpeg", "image/webp"])
def test_unreadable_disk_is_a_temporary_error(media_type: str) -> None:
    with pytest.raises(OSError, match="Input/output error"):
        make_thumbnail(Path("/proc/self/mem"), row(media_type, 24, 17), 128)


# -- damaged images


DAMAGED = {
    "empty": b"",
    "text": b"<html></html>",
    "png without its end": s.PNG[: len(s.PNG) // 2],
    "jpeg without its middle": s.JPEG[:300],
    "webp without its end": s.WEBP[:60],
    "noise behind a signature": s.PNG_MAGIC + b"noise" * 100,
    "a bomb": s.png(s.header(24, 17), s.chunk(b"IDAT", zlib.compress(b"\0" * 10))),
    "text that unpacks to a gigabyte": s.plain_png(
        s.chunk(b"zTXt", b"a\0\0" + zlib.compress(b"x" * 20_000_000)), width=24, height=17
    ),
}


@pytest.mark.parametrize("name", DAMAGED)
def test_damaged_image_is_rejected(tmp_path: Path, name: str) -> None:
    path = tmp_path / "image"
    path.write_bytes(DAMAGED[name])
    for media_type in ("image/png", "image/jpeg", "image/webp"):
        with pytest.raises(ThumbnailError):
            make_thumbnail(path, row(media_type, 24, 17), 128)


def test_image_of_another_size_than_its_row_is_not_decoded(tmp_path: Path) -> None:
    """The limit was checked on the row: a bomb in place of the image must not be unpacked."""
    path = tmp_path / "image"
    path.write_bytes(s.png(s.header(30_000, 30_000), s.chunk(b"IDAT", s.rows(30_000, 30))))
    with pytest.raises(ThumbnailError):
        make_thumbnail(path, row("image/png", 24, 17), 128)


def test_any_flipped_byte_makes_a_thumbnail_or_an_error(tmp_path: Path) -> None:
    path = tmp_path / "image"
    for data in (s.PNG, s.JPEG, s.WEBP):
        image = replace(row(detect_type(data), 24, 17), size=len(data))
        for at in range(0, len(data), max(1, len(data) // 150)):
            path.write_bytes(data[:at] + bytes([data[at] ^ 0xFF]) + data[at + 1 :])
            try:
                assert make_thumbnail(path, image, 128).width <= 128
            except ThumbnailError:
                continue
