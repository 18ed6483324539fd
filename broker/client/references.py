"""Reference images as people have them: a file, bytes, a picture in memory, one of our own images, an address.

Each is read once, when the order is written: an order that has to be sent again is still the same order.
"""

from __future__ import annotations

import asyncio
import io
import os
from collections.abc import AsyncIterator, Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final, Protocol, TypeAlias, runtime_checkable

from broker.client.results import Image
from broker.net.api_client import FilePart

PIECE: Final = 256 * 1024

_PNG_MODES: Final = frozenset({"1", "L", "LA", "P", "RGB", "RGBA"})


@runtime_checkable
class Picture(Protocol):
    """A picture in memory, as Pillow has it."""

    @property
    def mode(self) -> str: ...

    def convert(self, mode: str, /) -> Any: ...

    def save(self, fp: Any, format: str) -> None: ...  # noqa: A002


Reference: TypeAlias = "str | os.PathLike[str] | bytes | Image | Picture"
"""Text that begins with http:// or https:// is an address, other text is a path."""


@dataclass(frozen=True, kw_only=True)
class References:
    """What an order carries along. links: addresses that the broker fetches itself."""

    files: tuple[bytes, ...]
    links: tuple[str, ...]

    @classmethod
    async def read(cls, given: Reference | Iterable[Reference]) -> References:
        """Raises OSError for files that cannot be read, TypeError for what is no image at all."""
        several = [given] if isinstance(given, str | bytes | os.PathLike | Image | Picture) else list(given)
        links = [one for one in several if _is_link(one)]
        files = [await asyncio.to_thread(_bytes, one) for one in several if not _is_link(one)]
        return cls(files=tuple(files), links=tuple(map(str, links)))

    def parts(self) -> list[FilePart]:
        """Anew for each time they are sent. The broker looks at the bytes, not at names and types."""
        return [
            FilePart(
                name="image",
                filename=f"image-{number}",
                media_type="application/octet-stream",
                read=partial(_pieces, content),
            )
            for number, content in enumerate(self.files, 1)
        ]


def _is_link(reference: Reference) -> bool:
    return isinstance(reference, str) and reference.lower().startswith(("http://", "https://"))


def _bytes(reference: Reference) -> bytes:
    match reference:
        case bytes():
            return reference
        case Image():
            return reference.content
        case str() | os.PathLike():
            return Path(reference).read_bytes()
        case Picture():
            return _png(reference)
    raise TypeError(f"images are paths, addresses, bytes or pictures, not {type(reference).__name__}")


def _png(picture: Picture) -> bytes:
    out = io.BytesIO()
    (picture if picture.mode in _PNG_MODES else picture.convert("RGB")).save(out, format="PNG")
    return out.getvalue()


async def _pieces(content: bytes) -> AsyncIterator[bytes]:
    for start in range(0, len(content), PIECE):
        yield content[start : start + PIECE]
