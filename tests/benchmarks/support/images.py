"""Image files that the pretend provider serves; made once."""

from __future__ import annotations

from pathlib import Path

from tests.support import samples


def small_image(cache: Path) -> Path:
    """Return a file of a few hundred bytes."""
    return _written(cache / "small.png", samples.plain_png())


def noise_image(cache: Path, megabytes: int) -> Path:
    """Return a PNG of about so many MB, which no coder could make smaller."""
    file = cache / f"noise-{megabytes}.png"
    if not file.exists():
        side = int((megabytes * 1e6 / 3) ** 0.5)
        _written(file, samples.encoded("PNG", samples.picture(side, side), compress_level=0))
    return file


def _written(file: Path, data: bytes) -> Path:
    if not file.exists():
        draft = file.with_suffix(".draft")
        draft.write_bytes(data)
        draft.rename(file)
    return file
