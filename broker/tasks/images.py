"""Image rows of tasks: who owns an image, and its public name."""

from __future__ import annotations

import secrets

from storage.images import Kind, StoredImage
from uploads.intake import AcceptedImage


def stored_image(image: AcceptedImage, *, owner: str, kind: Kind, position: int, now: float) -> StoredImage:
    """Return the row of an image whose bytes are stored, with a public name that cannot be guessed."""
    prefix = "generated" if kind == "result" else "reference"
    return StoredImage(
        name=f"{prefix}_{secrets.token_hex(16)}.{image.extension}",
        owner=owner,
        kind=kind,
        position=position,
        blob=image.blob.name,
        media_type=image.media_type,
        size=image.blob.size,
        width=image.width,
        height=image.height,
        sha256=image.blob.sha256,
        created_at=now,
    )
