"""Pixels of the models, which are the vendor's and the same at every provider."""

from __future__ import annotations

from collections.abc import Iterable

# Ratio -> pixels of nano-banana, pixels of the later models at 1K; 2K and 4K are exactly twice and four times that.
PIXELS: dict[str, tuple[tuple[int, int], tuple[int, int]]] = {
    "1:1": ((1024, 1024), (1024, 1024)),
    "2:3": ((832, 1248), (848, 1264)),
    "3:2": ((1248, 832), (1264, 848)),
    "3:4": ((864, 1184), (896, 1200)),
    "4:3": ((1184, 864), (1200, 896)),
    "4:5": ((896, 1152), (928, 1152)),
    "5:4": ((1152, 896), (1152, 928)),
    "9:16": ((768, 1344), (768, 1376)),
    "16:9": ((1344, 768), (1376, 768)),
    "21:9": ((1536, 672), (1584, 672)),
}
LONG_PIXELS = {"1:4": (512, 2048), "4:1": (2048, 512), "1:8": (384, 3072), "8:1": (3072, 384)}
RATIOS = tuple(PIXELS)
ALL_RATIOS = (*RATIOS, *LONG_PIXELS)
SCALE = {"0.5K": 0.5, "1K": 1, "2K": 2, "4K": 4}


def pixels_of(ratio: str, resolution: str = "1K", *, first_generation: bool = False) -> tuple[int, int]:
    """Return width and height of one ratio. first_generation: of nano-banana, whose images are slightly smaller."""
    width, height = LONG_PIXELS.get(ratio) or PIXELS[ratio][0 if first_generation else 1]
    return int(width * SCALE[resolution]), int(height * SCALE[resolution])


def sizes_of(
    ratios: Iterable[str], resolution: str = "1K", *, first_generation: bool = False
) -> tuple[tuple[int, int], ...]:
    """Return the sizes of several ratios, among which the reference decides."""
    return tuple(pixels_of(ratio, resolution, first_generation=first_generation) for ratio in ratios)
