"""Intake on a local folder for the tests of uploads."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from storage.blobs.local import LocalBlobs
from uploads.intake import AcceptedImage, Intake
from uploads.structure import InvalidImage

MAX_PIXELS = 120_000_000
MAX_DECODE_BYTES = 384 * 2**20
MAX_BYTES = 64 * 2**20


async def stream(data: bytes, step: int = 65_536) -> AsyncIterator[bytes]:
    for start in range(0, len(data), step):
        yield data[start : start + step]


@dataclass
class IntakeHarness:
    """An intake on a local store."""

    root: Path
    intake: Intake = field(init=False)

    def __post_init__(self) -> None:
        self.blobs = LocalBlobs(self.root)
        self.intake = Intake.in_threads(self.blobs, max_pixels=MAX_PIXELS, max_decode_bytes=MAX_DECODE_BYTES)

    async def accept(self, data: bytes, step: int = 65_536) -> AcceptedImage:
        return await self.intake.from_stream("task_1", stream(data, step), max_bytes=MAX_BYTES)

    async def reject(self, data: bytes) -> InvalidImage:
        """Return the error, and assert that nothing was stored."""
        with pytest.raises(InvalidImage) as caught:
            await self.accept(data)
        assert self.files() == []
        return caught.value

    def files(self) -> list[Path]:
        return [path for path in self.root.rglob("*") if path.is_file()]


@pytest.fixture
def harness(tmp_path: Path) -> IntakeHarness:
    return IntakeHarness(tmp_path)
