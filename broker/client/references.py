"""Reference images as callers have them: a path, bytes, a Pillow image, an image of the broker, or a URL."""

from __future__ import annotations

import io
import os
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from broker.client.models import Image

if TYPE_CHECKING:
    import PIL.Image

Reference: TypeAlias = "str | os.PathLike[str] | bytes | Image | PIL.Image.Image"
"""Text that begins with http:// or https:// is a URL, which the broker fetches itself; other text is a path."""


def read_references(references: Reference | Iterable[Reference]) -> list[tuple[str, Any]]:
    """Return the parts of the order's form. Raises OSError for unreadable files, TypeError for other types."""
    if isinstance(references, str | bytes) or not isinstance(references, Iterable):
        references = [references]
    return [_read_reference(number, one) for number, one in enumerate(references, 1)]


def _read_reference(number: int, reference: Any) -> tuple[str, Any]:
    match reference:
        case str() if reference.lower().startswith(("http://", "https://")):
            return "imageUrls", (None, reference)
        case bytes():
            content = reference
        case Image():
            content = reference.content
        case str() | os.PathLike():
            content = Path(reference).read_bytes()
        case _ if hasattr(reference, "convert"):  # a Pillow image; the client does not import Pillow
            out = io.BytesIO()
            is_png_mode = reference.mode in {"1", "L", "LA", "P", "RGB", "RGBA"}
            (reference if is_png_mode else reference.convert("RGB")).save(out, format="PNG")
            content = out.getvalue()
        case _:
            raise TypeError(f"images are paths, URLs, bytes or Pillow images, not {type(reference).__name__}")
    return "image", (f"image-{number}", content)
