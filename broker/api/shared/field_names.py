"""Names of fields in sentences: the planner writes those of the native API, and each dialect has its own."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final

_NATIVE_NAME: Final = re.compile(r"\b(aspectRatio|callbackUrl|imageUrls|numberOfImages|outputFormat)\b")


def respell_names(sentence: str, spelling: Mapping[str, str]) -> str:
    """Return a sentence with the names of a dialect. spelling: names in the native API → in the dialect."""
    return _NATIVE_NAME.sub(lambda match: spelling.get(match[0], match[0]), sentence)
