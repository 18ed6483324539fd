"""Messages of a process and its child that validates images.

request: number; task, type and length of the owner; the owner; the bytes of the image, or the path of its file
answer:  number and kind; for `DONE` SHA-256, width and height, else a JSON object with the error
"""

from __future__ import annotations

import json
import os
import struct
from dataclasses import asdict, dataclass
from enum import IntEnum, auto
from pathlib import Path
from typing import Final, cast, get_args

from storage.errors import StorageError, StorageFull
from uploads.detect import MEDIA_TYPES, MediaType
from uploads.structure import InvalidImage, InvalidImageCode
from uploads.validation import NeedsDecoder

CHILD_MODULE: Final = "uploads.process.child"
READY: Final = b"ready"
"""First message of a child that has loaded its code and started its threads."""
THREADS: Final = 6
"""Of the child: requests that it works on at a time. It takes them in their order, so they are the oldest ones."""
NUMBER_BYTES: Final = 8
SMALL_CPU_SECONDS: Final = 10.0
LARGE_CPU_SECONDS: Final = 60.0
"""Processor time for one image: ten times as much as the slowest one takes that the structure checks pass."""
_TASK: Final = struct.Struct("<BBB")
_ANSWER: Final = struct.Struct("<QB")
_DONE: Final = struct.Struct("<QB32sII")
MAX_TEXT_CHARACTERS: Final = 500
MAX_ANSWER_BYTES: Final = 8 * 1024
"""Room for two such texts in JSON."""
TOO_LONG: Final = "the image takes too long to decode"
_NO_HASH: Final = bytes(32)


class MalformedAnswer(Exception):
    """The child sent what no answer looks like."""


class EndlessImage(Exception):
    """Decoding the image takes too much processor time."""


class ImageTask(IntEnum):
    """What a request asks for."""

    VALIDATE = auto()
    """Validate small bytes."""
    STORE = auto()
    """Validate small bytes, and store them for an owner."""
    VALIDATE_FILE = auto()


class AnswerKind(IntEnum):
    """The first fact of an answer."""

    DONE = auto()
    NEEDS_DECODER = auto()
    INVALID = auto()
    UNAVAILABLE = auto()
    FULL = auto()
    NO_MEMORY = auto()
    ENDLESS = auto()
    """Decoding takes too much processor time. The child ends after this answer."""
    DEFECT = auto()


_BARE_ERRORS: Final[dict[AnswerKind, type[Exception]]] = {
    AnswerKind.NEEDS_DECODER: NeedsDecoder,
    AnswerKind.NO_MEMORY: MemoryError,
    AnswerKind.ENDLESS: EndlessImage,
}
"""Errors without facts."""


@dataclass(frozen=True, kw_only=True)
class ImageProcessSettings:
    """First message to a child."""

    max_pixels: int
    max_decode_bytes: int
    decoders: int
    """Images whose decoding takes much memory, at a time."""
    folder: Path | None
    """Root of the blobs; None where the child only validates."""
    free_floor: int = 0
    group_read: bool = False
    small_cpu_seconds: float = SMALL_CPU_SECONDS
    large_cpu_seconds: float = LARGE_CPU_SECONDS

    def pack(self) -> bytes:
        folder = str(self.folder.absolute()) if self.folder else None
        return json.dumps(asdict(self) | {"folder": folder}).encode()

    @classmethod
    def unpack(cls, message: bytes) -> ImageProcessSettings:
        values = json.loads(message)
        return cls(**values | {"folder": Path(values["folder"]) if values["folder"] else None})


@dataclass(frozen=True, kw_only=True)
class ImageRequest:
    """One image, as the child receives it."""

    number: int
    task: ImageTask
    media_type: MediaType
    owner: str
    data: bytes
    """The image, or the path of its file."""

    @property
    def path(self) -> Path:
        return Path(os.fsdecode(self.data))


@dataclass(frozen=True, kw_only=True)
class Validated:
    """Facts about a valid image."""

    sha256: bytes = _NO_HASH
    """Raw; zeros if the image was not stored."""
    width: int
    height: int


def pack_number(number: int) -> bytes:
    """Return the first part of a request."""
    return number.to_bytes(NUMBER_BYTES, "little")


def pack_task(task: ImageTask, media_type: MediaType, owner: str = "") -> bytes:
    """Return the second part of a request; the bytes or the path are the third."""
    return _TASK.pack(task, MEDIA_TYPES.index(media_type), len(owner)) + owner.encode("ascii")


def unpack_request(message: bytes) -> ImageRequest:
    task, media_type, owner_length = _TASK.unpack_from(message, NUMBER_BYTES)
    owner_begin = NUMBER_BYTES + _TASK.size
    begin = owner_begin + owner_length
    return ImageRequest(
        number=int.from_bytes(message[:NUMBER_BYTES], "little"),
        task=ImageTask(task),
        media_type=cast("MediaType", MEDIA_TYPES[media_type]),
        owner=message[owner_begin:begin].decode("ascii"),
        data=message[begin:],
    )


def pack_answer(number: int, result: Validated | Exception) -> bytes:
    match result:
        case Validated(sha256=sha256, width=width, height=height):
            return _DONE.pack(number, AnswerKind.DONE, sha256, width, height)
        case NeedsDecoder() | MemoryError() | EndlessImage():
            return _ANSWER.pack(number, next(kind for kind, error in _BARE_ERRORS.items() if isinstance(result, error)))
        case InvalidImage():
            facts = {name: getattr(result, name) for name in ("problem", "cure", "code", "truncated")}
            return _pack_error(number, AnswerKind.INVALID, facts)
        case StorageFull():
            return _pack_error(number, AnswerKind.FULL, {"problem": str(result)})
        case StorageError():
            return _pack_error(number, AnswerKind.UNAVAILABLE, {"problem": str(result)})
        case _:
            return _pack_error(number, AnswerKind.DEFECT, {"problem": _locate(result)})


def check_suitable(task: ImageTask, result: Validated | Exception) -> None:
    """Raise `MalformedAnswer` for a result that no such request has."""
    if isinstance(result, NeedsDecoder) and task == ImageTask.VALIDATE_FILE:
        raise MalformedAnswer("a file needs a decoder")
    if isinstance(result, Validated) and (result.sha256 != _NO_HASH) != (task == ImageTask.STORE):
        raise MalformedAnswer("a hash where nothing was stored, or none")


def unpack_answer(message: bytes, max_pixels: int) -> tuple[int, Validated | Exception]:
    """Return the number of the request, and its result or the error to raise. Raises `MalformedAnswer`.

    The child may have been taken over by an image: every value is checked, and texts are short and printable.
    """
    try:
        number, code = _ANSWER.unpack_from(message)
        kind = AnswerKind(code)
        if kind == AnswerKind.DONE:
            _, _, sha256, width, height = _DONE.unpack(message)
            if not 0 < width * height <= max_pixels:
                raise MalformedAnswer("a size that no valid image has")
            return number, Validated(sha256=sha256, width=width, height=height)
        if error := _BARE_ERRORS.get(kind):
            return number, error()
        return number, _unpack_error(kind, message[_ANSWER.size :])
    except (struct.error, ValueError, RecursionError) as caught:
        raise MalformedAnswer(type(caught).__name__) from None


def _pack_error(number: int, kind: AnswerKind, facts: dict[str, object]) -> bytes:
    return _ANSWER.pack(number, kind) + json.dumps(facts).encode()


def _unpack_error(kind: AnswerKind, body: bytes) -> Exception:
    match kind, json.loads(body):
        case AnswerKind.INVALID, {"problem": problem, "cure": cure, "code": code, "truncated": bool(truncated)}:
            if code not in get_args(InvalidImageCode):
                raise MalformedAnswer("an unknown error code")
            return InvalidImage(_checked_text(problem), _checked_text(cure), code=code, truncated=truncated)
        case AnswerKind.FULL, {"problem": problem}:
            return StorageFull(_checked_text(problem))
        case AnswerKind.UNAVAILABLE, {"problem": problem}:
            return StorageError(_checked_text(problem))
        case AnswerKind.DEFECT, {"problem": problem}:
            return RuntimeError(f"the process that validates images failed: {_checked_text(problem)}")
        case _:
            raise MalformedAnswer("an error without its facts")


def _checked_text(text: object) -> str:
    if not isinstance(text, str) or not text.isprintable() or len(text) > MAX_TEXT_CHARACTERS:
        raise MalformedAnswer("a text that no error has")
    return text


def _locate(error: Exception) -> str:
    """Return the type of an unexpected error and the line that raised it; its text may hold bytes of the image."""
    traceback, place = error.__traceback__, ""
    while traceback is not None:
        place = f" at {Path(traceback.tb_frame.f_code.co_filename).name}:{traceback.tb_lineno}"
        traceback = traceback.tb_next
    return type(error).__name__ + place
