"""Reference images as callers have them: a path, bytes, a Pillow image, an image of the broker, or a URL.

Each is read once, before the order is sent, so that a repeated order is the same order.
"""

from __future__ import annotations

import asyncio
import io
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Protocol, TypeAlias, runtime_checkable

from broker.client.models import Image

_PNG_MODES: Final = frozenset({"1", "L", "LA", "P", "RGB", "RGBA"})


@runtime_checkable
class Picture(Protocol):
    """Structural type of a Pillow image; Pillow itself is not imported."""

    @property
    def mode(self) -> str: ...

    def convert(self, mode: str, /) -> Any: ...

    def save(self, fp: Any, format: str) -> None: ...  # noqa: A002


Reference: TypeAlias = "str | os.PathLike[str] | bytes | Image | Picture"
"""Text that begins with http:// or https:// is a URL, other text is a path."""


@dataclass(frozen=True, kw_only=True)
class References:
    """References of one order."""

    files: tuple[bytes, ...]
    links: tuple[str, ...]
    """URLs that the broker fetches itself."""

    @classmethod
    async def read(cls, references: Reference | Iterable[Reference]) -> References:
        """Raises OSError for unreadable files, TypeError for other types."""
        single = isinstance(references, str | bytes | os.PathLike | Image | Picture)
        several: list[Any] = [references] if single else list(references)  # type: ignore[arg-type]
        return cls(
            files=tuple([await asyncio.to_thread(_read_bytes, one) for one in several if not _is_link(one)]),
            links=tuple(one for one in several if _is_link(one)),
        )


def _is_link(reference: Reference) -> bool:
    return isinstance(reference, str) and reference.lower().startswith(("http://", "https://"))


def _read_bytes(reference: Reference) -> bytes:
    match reference:
        case bytes():
            return reference
        case Image():
            return reference.content
        case str() | os.PathLike():
            return Path(reference).read_bytes()
        case Picture():
            out = io.BytesIO()
            (reference if reference.mode in _PNG_MODES else reference.convert("RGB")).save(out, format="PNG")
            return out.getvalue()
    raise TypeError(f"images are paths, addresses, bytes or pictures, not {type(reference).__name__}")
