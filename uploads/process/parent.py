"""The parent's side of the child that validates images."""

from __future__ import annotations

import asyncio
import os
import signal
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Final

from storage.blobs.staging import Blob
from storage.blobs.store import BlobStore, validate_owner
from storage.children.parent import Child
from storage.errors import StorageError
from uploads.detect import MediaType
from uploads.process.messages import (
    CHILD_MODULE,
    MAX_ANSWER_BYTES,
    READY,
    THREADS,
    TOO_LONG,
    EndlessImage,
    ImageProcessSettings,
    ImageTask,
    MalformedAnswer,
    Validated,
    check_suitable,
    pack_number,
    pack_task,
    unpack_answer,
)
from uploads.structure import SEND_SMALLER, InvalidImage
from uploads.work import Dimensions

START_SECONDS: Final = 30.0
"""For a child to load its code."""
ANSWER_SECONDS: Final = 300.0
"""For one image: after that the child counts as lost. It rejects a decoder that never ends much earlier."""
MAX_SENT: Final = 32
"""Requests that the child has at a time, up to 256 KiB each; others wait here, where their bytes are not copied."""
SILENT_SECONDS: Final = 5.0
"""A cancelled caller waits no longer for a child that answers nothing: a broker that stops has little time."""
NO_MEMORY: Final = (
    "the process that validates images was killed, or has no memory: look at the memory of this machine, then try again"
)


class ImageProcess:
    """Work on images in a child process, which starts with the first image. Call `aclose` at the end.

    blobs: stores small images where `settings` names no folder. on_loss: called with the reason when a child ends that
    was not asked to; another one starts with the next image.
    """

    def __init__(
        self,
        blobs: BlobStore,
        settings: ImageProcessSettings,
        *,
        on_loss: Callable[[str], None],
        answer_seconds: float = ANSWER_SECONDS,
        child_module: str = CHILD_MODULE,
    ) -> None:
        self._blobs = blobs
        self._stores = settings.folder is not None
        self._child = _ImageChild(child_module, settings, on_loss, answer_seconds)
        self._suspects_child = _ImageChild(child_module, settings, on_loss, answer_seconds)
        self._one_suspect = asyncio.Lock()
        self._suspects = 0
        """Images that wait for the second child, or are in it."""

    @property
    def pids(self) -> list[int]:
        """Process ids of the children that run."""
        return [child.pid for child in (self._child, self._suspects_child) if child.pid is not None]

    async def aclose(self) -> None:
        await asyncio.gather(self._child.aclose(), self._suspects_child.aclose())

    async def store_small(self, owner: str, data: bytes, media_type: MediaType) -> tuple[Blob, Dimensions]:
        owner = validate_owner(owner)
        if not self._stores:
            done = await self._request(ImageTask.VALIDATE, pack_task(ImageTask.VALIDATE, media_type), data)
            blob = await self._blobs.new_draft(owner).store(data, media_type=media_type)
        else:
            done = await self._request(ImageTask.STORE, pack_task(ImageTask.STORE, media_type, owner), data)
            sha256 = done.sha256.hex()
            blob = Blob(name=f"{owner}/{sha256}", size=len(data), sha256=sha256)
        return blob, Dimensions(done.width, done.height)

    async def validate_file(self, path: Path, media_type: MediaType) -> Dimensions:
        head = pack_task(ImageTask.VALIDATE_FILE, media_type)
        done = await self._request(ImageTask.VALIDATE_FILE, head, os.fsencode(path))  # both have one working folder
        return Dimensions(done.width, done.height)

    async def _request(self, task: ImageTask, head: bytes, body: bytes) -> Validated:
        """Return the child's result.

        An image that the child worked on when it ended is tried again alone, and rejected if it ends that one, too; so
        is one for which memory was missing. The images that waited for the child go to the next one.
        """
        while True:
            try:
                return await self._child.request(task, head, body)
            except _ChildLost as loss:
                if loss.was_begun:
                    break
            except MemoryError:
                break
        self._suspects += 1
        try:
            async with self._one_suspect:
                return await self._request_alone(task, head, body)
        finally:
            self._suspects -= 1
            if not self._suspects:
                await self._suspects_child.stop()

    async def _request_alone(self, task: ImageTask, head: bytes, body: bytes) -> Validated:
        """Raises `StorageError` where the machine is to blame: the image is tried again later."""
        try:
            return await self._suspects_child.request(task, head, body)
        except MemoryError:
            raise StorageError(NO_MEMORY) from None
        except _ChildLost as loss:
            if loss.is_overdue:  # in processor time, which the child watches itself, it is not
                raise StorageError(
                    "the process that validates images does not answer: look at the disk of BROKER_BLOB_URL, then try "
                    "again"
                ) from None
            if not loss.is_malformed and await self._suspects_child.exit_code() == -signal.SIGKILL:
                raise StorageError(NO_MEMORY) from None
            raise InvalidImage("the image is damaged, it ends the decoder") from None


class _ChildLost(Exception):
    """The child ended before it answered."""

    def __init__(self, *, was_begun: bool = True, is_overdue: bool = False, is_malformed: bool = False) -> None:
        """was_begun: the child may have worked on this image. is_overdue: it did not answer in time."""
        super().__init__()
        self.was_begun = was_begun
        self.is_overdue = is_overdue
        self.is_malformed = is_malformed


class _ImageChild:
    """One child, and the requests that it has not answered."""

    def __init__(
        self, module: str, settings: ImageProcessSettings, on_loss: Callable[[str], None], answer_seconds: float
    ) -> None:
        self._first = settings.pack()
        self._max_pixels = settings.max_pixels
        self._on_loss = on_loss
        self._answer_seconds = answer_seconds
        self._child = Child(module, on_message=self._receive, on_loss=self._lose, max_message_bytes=MAX_ANSWER_BYTES)
        self._starting = asyncio.Lock()
        self._ready: asyncio.Future[None] | None = None
        """Done when the child has loaded its code; None when there is no child."""
        self._is_closed = False
        self._last_number = 0
        self._waiting: dict[int, _Request] = {}
        """The oldest first."""
        self._unsent: deque[int] = deque()
        """Numbers of those that the child does not have yet; cancelled ones wait no more."""
        self._sent = 0
        self._timer: asyncio.TimerHandle | None = None
        self._silence_timer: asyncio.TimerHandle | None = None
        self._answered_at = 0.0

    @property
    def pid(self) -> int | None:
        return self._child.pid

    async def request(self, task: ImageTask, head: bytes, body: bytes) -> Validated:
        """Send a request, which starts the child; return the result, or raise its error.

        Raises `_ChildLost` if the child ends before it answers, MemoryError if it has too little memory, and
        `StorageError` if it cannot be started. A cancelled caller waits for the answer, or the end of a child that
        answers no more.
        """
        while self._ready is None or not self._ready.done():  # it may be lost before this task goes on
            await self._start()
        request = self._enter(task, (head, body))
        self._send_next()
        return await request.wait(self._cancel)

    async def exit_code(self) -> int:
        """Return how the last child ended that was lost; negative for a signal."""
        return await self._child.exit_code()

    async def stop(self) -> None:
        """Let the child end."""
        async with self._starting:
            self._ready = None
            await self._child.stop()
            self._fail_all()

    async def aclose(self) -> None:
        self._is_closed = True
        await self.stop()

    def _enter(self, task: ImageTask, parts: tuple[bytes, ...]) -> _Request:
        loop = asyncio.get_running_loop()
        self._last_number += 1
        request = self._waiting[self._last_number] = _Request(loop, task, (pack_number(self._last_number), *parts))
        self._unsent.append(self._last_number)
        if self._timer is None:
            self._timer = loop.call_later(self._answer_seconds, self._check_oldest)
        return request

    def _send_next(self) -> None:
        while self._unsent and self._sent < MAX_SENT:
            request = self._waiting.get(self._unsent.popleft())
            if request is not None:
                self._sent += 1
                self._child.send(*request.take_parts())

    def _cancel(self, request: _Request) -> None:
        """Forget a request that was not sent; otherwise its caller waits."""
        if request.is_sent:
            self._watch_silence()
            return
        number = int.from_bytes(request.take_parts()[0], "little")
        del self._waiting[number]
        request.end(asyncio.CancelledError())

    async def _start(self) -> None:
        async with self._starting:
            if self._is_closed:
                raise StorageError("no image can be stored while the broker stops: try again")
            if self._ready is not None:
                return
            self._ready = asyncio.get_running_loop().create_future()
            try:
                async with asyncio.timeout(START_SECONDS):
                    await self._child.start(self._first)
                    await self._ready
            except (OSError, TimeoutError, _ChildLost) as error:
                self._end_start()
                raise StorageError(
                    "the process that validates images does not start: look at the memory and the processes of this "
                    "machine, and at the broker's output"
                ) from error
            except BaseException:
                self._end_start()
                raise

    def _end_start(self) -> None:
        self._ready = None
        self._child.kill()

    # -- called by the child's connection, and by the timer

    def _receive(self, message: bytes) -> None:
        if message == READY and self._ready is not None and not self._ready.done():
            self._ready.set_result(None)
            return
        try:
            number, result = unpack_answer(message, self._max_pixels)
            if not self._waiting[number].is_sent:
                raise MalformedAnswer("to a request that was not sent")
            check_suitable(self._waiting[number].task, result)
        except (MalformedAnswer, KeyError) as error:
            self._give_up(f"it sent a malformed answer ({error})", is_malformed=True)
        else:
            request = self._waiting.pop(number)
            self._sent -= 1
            self._send_next()
            self._answered_at = asyncio.get_running_loop().time()
            if isinstance(result, EndlessImage):
                request.end(InvalidImage(TOO_LONG, SEND_SMALLER))
                self._give_up(TOO_LONG)  # now, as it ends: what it is sent until then would be suspected
            else:
                request.end(result)

    def _check_oldest(self) -> None:
        """Give the child up if its oldest request is too old; otherwise look again when it would be."""
        self._timer = None
        if not self._waiting:
            return
        loop = asyncio.get_running_loop()
        left_seconds = next(iter(self._waiting.values())).since + self._answer_seconds - loop.time()
        if left_seconds <= 0:
            self._give_up(f"an image took more than {self._answer_seconds:g} seconds", is_overdue=True)
        else:
            self._timer = loop.call_later(left_seconds, self._check_oldest)

    def _watch_silence(self) -> None:
        if self._silence_timer is None:
            self._silence_timer = asyncio.get_running_loop().call_later(SILENT_SECONDS, self._check_silence)

    def _check_silence(self) -> None:
        """Give the child up if a cancelled caller waits and nothing was answered; otherwise look again later."""
        self._silence_timer = None
        if any(request.is_cancelled for request in self._waiting.values()):
            if self._answered_at <= asyncio.get_running_loop().time() - SILENT_SECONDS:
                self._give_up(f"it answered nothing for {SILENT_SECONDS:g} seconds", is_overdue=True)
            else:
                self._watch_silence()

    def _give_up(self, reason: str, *, is_overdue: bool = False, is_malformed: bool = False) -> None:
        self._child.kill()
        self._end(reason, is_overdue=is_overdue, is_malformed=is_malformed)

    def _lose(self) -> None:
        self._end("it ended")

    def _end(self, reason: str, *, is_overdue: bool = False, is_malformed: bool = False) -> None:
        ready, self._ready = self._ready, None
        if ready is not None and not ready.done():
            ready.set_exception(_ChildLost())
        self._fail_all(is_overdue=is_overdue, is_malformed=is_malformed)
        self._on_loss(reason)

    def _fail_all(self, *, is_overdue: bool = False, is_malformed: bool = False) -> None:
        for timer in (self._timer, self._silence_timer):
            if timer is not None:
                timer.cancel()
        self._timer = self._silence_timer = None
        waiting, self._waiting = self._waiting, {}
        self._unsent.clear()
        self._sent = 0
        for position, request in enumerate(waiting.values()):
            begun = position < THREADS
            request.end(_ChildLost(was_begun=begun, is_overdue=is_overdue, is_malformed=is_malformed))


class _Request:
    """A request without an answer yet."""

    def __init__(self, loop: asyncio.AbstractEventLoop, task: ImageTask, parts: tuple[bytes, ...]) -> None:
        """parts: of the message, the number first."""
        self._loop = loop
        self._parts = parts
        self.task = task
        self._answer: asyncio.Future[Validated] = loop.create_future()
        """Replaced when its waiter is cancelled."""
        self.has_ended = False
        self.is_cancelled = False
        self.since = loop.time()

    @property
    def is_sent(self) -> bool:
        return not self._parts

    def take_parts(self) -> tuple[bytes, ...]:
        """Return the parts of the message, which is sent now, and keep none of its bytes."""
        parts, self._parts = self._parts, ()
        self.since = self._loop.time()
        return parts

    async def wait(self, on_cancel: Callable[[_Request], None]) -> Validated:
        """on_cancel: called when the waiter is cancelled; it goes on waiting until `end`."""
        try:
            return await self._answer
        except asyncio.CancelledError:
            if not self.has_ended:
                self.is_cancelled = True
                on_cancel(self)
            while not self.has_ended:
                self._answer = self._loop.create_future()
                with suppress(asyncio.CancelledError, Exception):
                    await self._answer
            raise

    def end(self, result: Validated | BaseException) -> None:
        self.has_ended = True
        if self._answer.done():  # the waiter was cancelled in this turn
            return
        if isinstance(result, BaseException):
            self._answer.set_exception(result)
        else:
            self._answer.set_result(result)
