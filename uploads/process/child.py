"""The child that validates images: `python -m uploads.process.child`, started by `uploads.process.parent`.

A few threads take turns at receiving, so that syncs of a slow disk overlap. While all of them work, requests wait in
the socket.
"""

from __future__ import annotations

import os
import resource
import sys
import threading
import time
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Final

from storage.blobs.local import DISK, LocalBlobs
from storage.children.child import ParentMessages, connect_parent
from uploads.process.messages import (
    READY,
    ImageProcessSettings,
    ImageRequest,
    ImageTask,
    Validated,
    pack_answer,
    unpack_request,
)
from uploads.validation import ValidationLimits, validate_file, validate_small

THREADS: Final = 6
STOP_SECONDS: Final = 0.5
"""For requests in progress when the parent is gone. One that stops waits for them before."""
SPARE_BYTES: Final = 384 * 2**20
"""Memory beside large decodes: metadata, small images, stacks and arenas of threads."""


def run_child(open_worker: Callable[[ImageProcessSettings], ImageWorker]) -> None:
    """Answer the requests of the parent until it closes its end. Does not return."""
    parent = connect_parent()
    first = parent.receive()
    if first is None:
        sys.exit()
    settings = ImageProcessSettings.unpack(first)
    import_module("uploads.decoder")  # before the first image
    lower_limits(settings)
    parent.send(READY)
    line = _RequestLine(parent, open_worker(settings))
    threads = [threading.Thread(target=line.run, name="images", daemon=True) for _ in range(THREADS)]
    for thread in threads:
        thread.start()
    line.ended.wait()
    ends_at = time.monotonic() + STOP_SECONDS
    for thread in threads:
        thread.join(max(0.0, ends_at - time.monotonic()))
    os._exit(0)  # without waiting for a decoder


class ImageWorker:
    """Does what requests ask for."""

    def __init__(self, settings: ImageProcessSettings) -> None:
        self._limits = ValidationLimits(max_pixels=settings.max_pixels, max_decode_bytes=settings.max_decode_bytes)
        self._blobs = (
            None
            if settings.folder is None
            else LocalBlobs(settings.folder, free_floor=settings.free_floor, group_read=settings.group_read)
        )

    def answer(self, request: ImageRequest) -> bytes:
        """Return the answer to a request, an error included."""
        try:
            return pack_answer(request.number, self._validate_and_store(request))
        except OSError as error:
            return pack_answer(request.number, DISK.storage_error(error))
        except Exception as error:
            return pack_answer(request.number, error)

    def _validate_and_store(self, request: ImageRequest) -> Validated:
        if request.task == ImageTask.VALIDATE_FILE:
            info = validate_file(request.path, request.media_type, self._limits)
        else:
            info = validate_small(request.data, request.media_type, self._limits)
        if request.task != ImageTask.STORE or self._blobs is None:
            return Validated(width=info.width, height=info.height)
        blob = self._blobs.store_whole(request.owner, request.data)
        return Validated(sha256=bytes.fromhex(blob.sha256), width=info.width, height=info.height)


class _RequestLine:
    """The requests of the parent, which several threads answer."""

    def __init__(self, parent: ParentMessages, worker: ImageWorker) -> None:
        self._parent = parent
        self._worker = worker
        self._turn = threading.Lock()
        self.ended = threading.Event()
        """Set when the parent sends no more requests, or a thread has failed."""

    def run(self) -> None:
        try:
            while (message := self._receive()) is not None:
                self._parent.send(self._worker.answer(unpack_request(message)))
        finally:
            self.ended.set()

    def _receive(self) -> bytes | None:
        with self._turn:
            message = None if self.ended.is_set() else self._parent.receive()
            if message is None:
                self.ended.set()
            return message


def lower_limits(settings: ImageProcessSettings) -> None:
    """Write no core dumps, which would hold images; and bound the memory to what validation can take.

    The kernel of Linux counts what a process may write to; where it does not say how much that is, there is no limit.
    """
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if sys.platform != "linux":
        return
    try:
        lines = Path("/proc/self/status").read_text("ascii").splitlines()
        loaded = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmData:"))
    except (OSError, StopIteration):
        return
    allowed = loaded + settings.decoders * settings.max_decode_bytes + SPARE_BYTES
    _, hard = resource.getrlimit(resource.RLIMIT_DATA)
    if hard == resource.RLIM_INFINITY or allowed < hard:
        resource.setrlimit(resource.RLIMIT_DATA, (allowed, allowed))


if __name__ == "__main__":
    run_child(ImageWorker)
