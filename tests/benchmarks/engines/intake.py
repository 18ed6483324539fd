"""Cost of accepting one image: `python -m tests.benchmarks.engines.intake [rounds]`.

Pictures of 4096 x 4096 pixels in each format, and a JPEG at the pixel limit. Each is accepted into a local store by a
process of its own; the memory is the growth of its peak, read from /proc (Linux).
"""

from __future__ import annotations

import argparse
import asyncio
import re
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any, Final

from PIL import Image

from tests.benchmarks.engines.measuring import Child, Side, mb, ms, say, table
from tests.support import samples
from tests.support.intake import IntakeHarness, stream

SIDE: Final = 4096
FORMATS: Final[dict[str, tuple[str, dict[str, Any]]]] = {
    "PNG": ("PNG", {"compress_level": 3}),
    "JPEG": ("JPEG", {"quality": 92}),
    "progressive JPEG": ("JPEG", {"quality": 92, "progressive": True}),
    "WebP": ("WEBP", {"quality": 90, "method": 0}),
    "lossless WebP": ("WEBP", {"lossless": True, "quality": 0, "method": 0}),
}
LARGEST: Final = 10_900


def photo(side: int) -> Image.Image:
    """Large shapes with some noise, which compress about as photos do."""
    shapes = samples.picture(max(1, side // 16), max(1, side // 16)).resize((side, side), Image.Resampling.BICUBIC)
    return Image.blend(shapes, samples.picture(side, side), 0.06)


def write_images(folder: Path, side: int, largest: int) -> dict[str, Path]:
    """Write one file of each kind."""
    picture, written = photo(side), {}
    for name, (kind, options) in FORMATS.items():
        written[f"{name}, {side} x {side}"] = folder / name
        picture.save(folder / name, kind, **options)
    written[f"flat JPEG, {largest} x {largest}"] = folder / "largest"
    (folder / "largest").write_bytes(samples.flat_jpeg(largest))
    return written


async def accept(side: Side, path: str, store: str) -> tuple[float, float, int]:
    """Return wall and processor time in seconds, and the growth of the peak of memory in bytes."""
    harness, data = IntakeHarness(Path(store)), await asyncio.to_thread(Path(path).read_bytes)
    await harness.accept(samples.JPEG)  # the code is loaded
    await side.wait_for_go()
    before, wall, cpu = _peak_bytes(), time.perf_counter(), time.process_time()
    await harness.intake.from_stream("task_2", stream(data), max_bytes=len(data))
    return time.perf_counter() - wall, time.process_time() - cpu, _peak_bytes() - before


def _peak_bytes() -> int:
    found = re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text("ascii"))
    return int(found[1]) * 1024 if found else 0


async def measure(images: dict[str, Path], store: Path, rounds: int) -> list[Sequence[str]]:
    """Return a row for each image: the medians."""
    rows: list[Sequence[str]] = []
    for name, path in images.items():
        results = []
        for _ in range(rounds):
            child = Child(accept, str(path), str(store))
            await child.ready()
            results.append(await child.result())
        wall, cpu, memory = (median(column) for column in zip(*results, strict=True))
        rows.append((name, f"{path.stat().st_size / 1e6:.1f}", ms(wall), ms(cpu), mb(memory)))
    return rows


async def main(rounds: int, side: int = SIDE, largest: int = LARGEST) -> None:
    with tempfile.TemporaryDirectory() as folder:
        images = write_images(Path(folder), side, largest)
        say("\n### Accepting one image\n")
        rows = await measure(images, Path(folder) / "store", rounds)
        say(table(("image", "file MB", "ms", "CPU ms", "memory MB"), rows))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.engines.intake")
    parser.add_argument("rounds", type=int, nargs="?", default=5)
    asyncio.run(main(parser.parse_args().rounds))
