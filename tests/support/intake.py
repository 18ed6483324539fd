"""Intake on a local folder for the tests of uploads."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from storage.blobs.local import LocalBlobs
from uploads.intake import AcceptedImage, Intake
from uploads.process.messages import CHILD_MODULE, ImageProcessSettings
from uploads.process.parent import ANSWER_SECONDS, ImageProcess
from uploads.structure import InvalidImage
from uploads.validation import ValidationLimits
from uploads.work import ThreadedWork

MAX_PIXELS = 120_000_000
MAX_DECODE_BYTES = 384 * 2**20
MAX_BYTES = 64 * 2**20


async def stream(data: bytes, step: int = 65_536) -> AsyncIterator[bytes]:
    for start in range(0, len(data), step):
        yield data[start : start + step]


@dataclass
class IntakeHarness:
    """An intake on a local store, in threads unless there is a process."""

    root: Path
    process: ImageProcess | None = None
    intake: Intake = field(init=False)

    def __post_init__(self) -> None:
        self.blobs = LocalBlobs(self.root)
        limits = ValidationLimits(max_pixels=MAX_PIXELS, max_decode_bytes=MAX_DECODE_BYTES)
        self.intake = Intake(self.blobs, self.process or ThreadedWork(self.blobs, limits))

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


@asynccontextmanager
async def open_process(
    root: Path,
    *,
    stores: bool = True,
    losses: list[str] | None = None,
    module: str = CHILD_MODULE,
    answer_seconds: float = ANSWER_SECONDS,
    **changes: Any,
) -> AsyncIterator[ImageProcess]:
    """Open a process for images; assert that it is gone in the end. losses: takes the reasons of losses."""
    values = {"max_pixels": MAX_PIXELS, "max_decode_bytes": MAX_DECODE_BYTES, "decoders": 2, **changes}
    process = ImageProcess(
        LocalBlobs(root),
        ImageProcessSettings(folder=root if stores else None, **values),
        on_loss=(list[str]() if losses is None else losses).append,
        child_module=module,
        answer_seconds=answer_seconds,
    )
    try:
        yield process
    finally:
        pids = process.pids
        await process.aclose()
    assert [pid for pid in pids if is_running(pid)] == []


def is_running(pid: int) -> bool:
    """Return whether there is a process with this id, a zombie included."""
    with suppress(ProcessLookupError):
        os.kill(pid, 0)
        return True
    return False


@pytest.fixture
def harness(tmp_path: Path) -> IntakeHarness:
    return IntakeHarness(tmp_path)
