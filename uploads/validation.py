"""Validation of whole images: the structure first, because it bounds the work of the decoder."""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path

from storage.errors import StorageError
from uploads.detect import MediaType, validate_structure
from uploads.structure import ImageInfo

SMALL_DECODE_BYTES = 8 * 2**20
"""Memory of a decode that is not worth waiting for a decoder."""


@dataclass(frozen=True, kw_only=True)
class ValidationLimits:
    """Limits of one image."""

    max_pixels: int
    """Checked before anything is decoded."""
    max_decode_bytes: int
    """Memory of one decode; an image that needs more is rejected."""


class NeedsDecoder(Exception):
    """The image is small, but decoding it is not: it needs one of the few decoders."""


def validate_small(data: bytes, media_type: MediaType, limits: ValidationLimits) -> ImageInfo:
    """Validate bytes that are whole in memory; blocks. Raises `InvalidImage`, and `NeedsDecoder`."""
    from uploads.decoder import check_decodable

    file = io.BytesIO(data)
    info = validate_structure(file, media_type, limits.max_pixels)
    if info.decode_bytes > SMALL_DECODE_BYTES:
        raise NeedsDecoder
    check_decodable(file, media_type, info, limits.max_decode_bytes)
    return info


def validate_file(path: Path, media_type: MediaType, limits: ValidationLimits) -> ImageInfo:
    """Validate a file; blocks. Raises `InvalidImage`, and `StorageError` for a file that cannot be read."""
    from uploads.decoder import check_decodable

    try:
        with path.open("rb") as file:
            info = validate_structure(file, media_type, limits.max_pixels)
            check_decodable(file, media_type, info, limits.max_decode_bytes)
    except OSError as error:
        raise StorageError(
            f"the image cannot be read back ({error.strerror}): look at the disk of BROKER_BLOB_URL"
        ) from error
    return info
