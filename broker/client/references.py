"""Reference images as callers have them: a path, bytes, a Pillow image, an image of the broker, or a URL."""

from __future__ import annotations

import asyncio
import io
import os
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from broker.client.models import Image

if TYPE_CHECKING:
    import PIL.Image

Reference: TypeAlias = "str | os.PathLike[str] | bytes | Image | PIL.Image.Image"
"""Text that begins with http:// or https:// is a URL, which the broker fetches itself; other text is a path."""

_PNG_MODES: Final = frozenset({"1", "L", "LA", "P", "RGB", "RGBA"})


async def read_references(references: Reference | Iterable[Reference]) -> list[tuple[str, Any]]:
    """Return the parts of the order's form. Raises OSError for unreadable files, TypeError for other types.

    Each reference is read once, before the order is sent, so that a repeated order is the same order.
    """
    if isinstance(references, str | bytes) or not isinstance(references, Iterable):
        references = [references]
    return [await asyncio.to_thread(_read_reference, number, one) for number, one in enumerate(references, 1)]


def _read_reference(number: int, reference: Any) -> tuple[str, Any]:
    if isinstance(reference, str) and reference.lower().startswith(("http://", "https://")):
        return "imageUrls", (None, reference.encode())
    return "image", (f"image-{number}", _read_bytes(reference))


def _read_bytes(reference: Any) -> bytes:
    match reference:
        case bytes():
            return reference
        case Image():
            return reference.content
        case str() | os.PathLike():
            return Path(reference).read_bytes()
        case _ if hasattr(reference, "convert"):  # a Pillow image; the client does not import Pillow
            out = io.BytesIO()
            (reference if reference.mode in _PNG_MODES else reference.convert("RGB")).save(out, format="PNG")
            return out.getvalue()
    raise TypeError(f"images are paths, URLs, bytes or Pillow images, not {type(reference).__name__}")
