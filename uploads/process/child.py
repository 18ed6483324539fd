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
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Final

from storage.blobs.local import DISK, LocalBlobs
from storage.children.child import ParentMessages, connect_parent
from uploads.process.messages import (
    READY,
    THREADS,
    TOO_LONG,
    EndlessImage,
    ImageProcessSettings,
    ImageRequest,
    ImageTask,
    Validated,
    pack_answer,
    unpack_request,
)
from uploads.structure import SEND_SMALLER, InvalidImage
from uploads.validation import ValidationLimits, validate_file, validate_small

STOP_SECONDS: Final = 0.5
"""For requests in progress when the parent is gone. One that stops waits for them before."""
SPARE_BYTES: Final = 768 * 2**20
"""Memory beside large decodes: metadata, small images, stacks, and what the arenas of threads keep after large images,
measured as 300 MiB. libjpeg and libwebp report a lack of memory as a damaged image, so there must not be one.
"""
WATCH_SECONDS: Final = 1.0


def run_child(open_worker: Callable[[ImageProcessSettings], ImageWorker]) -> None:
    """Answer the requests of the parent until it closes its end. Does not return."""
    parent = connect_parent()
    first = parent.receive()
    if first is None:
        sys.exit()
    settings = ImageProcessSettings.unpack(first)
    import_module("uploads.decoder")  # before the first image
    lower_limits(settings)
    line = _RequestLine(parent, open_worker(settings), settings)
    threads = [threading.Thread(target=line.run, name="images", daemon=True) for _ in range(THREADS)]
    for thread in threads:
        thread.start()
    parent.send(READY)
    while not line.ended.wait(WATCH_SECONDS):
        line.reject_endless()
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

    def __init__(self, parent: ParentMessages, worker: ImageWorker, settings: ImageProcessSettings) -> None:
        self._parent = parent
        self._worker = worker
        self._settings = settings
        self._turn = threading.Lock()
        self._works: dict[int, _Work] = {}
        """What the threads do now, by thread."""
        self.ended = threading.Event()
        """Set when the parent sends no more requests, or a thread has failed."""

    def run(self) -> None:
        try:
            while (message := self._receive()) is not None:
                request = unpack_request(message)
                self._works[threading.get_ident()] = _Work.begin(request, self._settings)
                answer = self._worker.answer(request)
                del self._works[threading.get_ident()]
                self._parent.send(answer)
        finally:
            self.ended.set()

    def reject_endless(self) -> None:
        """Reject images that take too much processor time, and end, as a thread cannot be stopped.

        Those that have taken half of it go with the first one: so each of several does not need an end of its own.
        """
        shares = {work.number: work.used_share() for work in list(self._works.values())}
        if max(shares.values(), default=0.0) < 1:
            return
        *others, last = sorted(number for number, share in shares.items() if share > 1 / 2)
        for number in others:
            self._parent.send(pack_answer(number, InvalidImage(TOO_LONG, SEND_SMALLER)))
        self._parent.send(pack_answer(last, EndlessImage()))
        self.ended.set()

    def _receive(self) -> bytes | None:
        with self._turn:
            message = None if self.ended.is_set() else self._parent.receive()
            if message is None:
                self.ended.set()
            return message


@dataclass(frozen=True, kw_only=True)
class _Work:
    """A request in progress, on the clock of its thread, which counts processor time: a slow disk takes none."""

    number: int
    clock: int
    begun_at: float
    allowed_seconds: float

    @classmethod
    def begin(cls, request: ImageRequest, settings: ImageProcessSettings) -> _Work:
        is_large = request.task == ImageTask.VALIDATE_FILE
        clock = time.pthread_getcpuclockid(threading.get_ident())
        return cls(
            number=request.number,
            clock=clock,
            begun_at=time.clock_gettime(clock),
            allowed_seconds=settings.large_cpu_seconds if is_large else settings.small_cpu_seconds,
        )

    def used_share(self) -> float:
        """Return the part of the allowed processor time that was used."""
        return (time.clock_gettime(self.clock) - self.begun_at) / self.allowed_seconds


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
