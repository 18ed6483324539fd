"""The contract every blob store keeps: bytes in whole or not at all, named by what they are."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol

OWNER: Final = re.compile(r"[A-Za-z0-9_]{1,80}")
NAME: Final = re.compile(r"([A-Za-z0-9_]{1,80})/([0-9a-f]{64})")


@dataclass(frozen=True, kw_only=True)
class Blob:
    """Bytes at rest.

    name: `<owner>/<sha256>`, the only handle. size: bytes. sha256: lower-case hex.
    """

    name: str
    size: int
    sha256: str


class Draft(Protocol):
    """Bytes on their way in: written in chunks, looked at, then kept or dropped. Use it with `async with`.

    Leaving the block without `keep` leaves nothing behind. Every call of `write` costs a thread hop: hand over
    some hundred KiB at once.
    """

    @property
    def size(self) -> int:
        """Bytes written so far."""
        ...

    @property
    def sha256(self) -> str:
        """Of the bytes written so far, in lower-case hex."""
        ...

    @property
    def path(self) -> Path:
        """A local file with all bytes written so far, for a decoder to look at (in a thread)."""
        ...

    async def write(self, chunk: bytes) -> None:
        """Append; hashes and writes outside the event loop. Raises `StorageFull`. After an error, leave the block."""
        ...

    async def keep(self, media_type: str | None = None) -> Blob:
        """Make the bytes durable under their final name, atomically. Doing it twice for equal bytes is once.

        media_type: what a link to the blob says it is, where the store has links; others ignore it.
        The last call on a draft. Cancelled in the middle, it has kept the bytes or it has not.
        """
        ...

    async def __aenter__(self) -> Draft: ...
    async def __aexit__(self, *exc: object) -> None: ...


class Reading(Protocol):
    """The bytes of a blob, chunk by chunk. Who stops before the end calls `aclose` (`contextlib.aclosing`)."""

    def __aiter__(self) -> AsyncIterator[bytes]: ...
    async def __anext__(self) -> bytes: ...
    async def aclose(self) -> None: ...


class BlobStore(Protocol):
    """A store of immutable bytes.

    Every implementation keeps these promises: a blob is visible whole or not at all, also after a power cut;
    keeping equal bytes for one owner twice is one blob; a reader in the middle keeps what it reads after a delete;
    memory use does not grow with the size of a blob; owners match `[A-Za-z0-9_]{1,80}`, anything else is a ValueError;
    messages of errors name a cure and no path.
    """

    def draft(self, owner: str) -> Draft:
        """A place for new bytes of `owner`; it is made on entering the block, which raises `StorageFull` too."""
        ...

    async def open(self, name: str, start: int = 0, stop: int | None = None) -> Reading:
        """The bytes [start, stop) in chunks of at most 1 MiB; both ends are cut to what there is.

        Raises `BlobMissing` here, before the first chunk, also for what could never be a name.
        """
        ...

    async def delete(self, owner: str) -> int:
        """Remove all blobs of an owner; how many there were. A blob that is being kept meanwhile may stay."""
        ...

    async def sweep(self, older_than: float) -> int:
        """Remove leftovers of writers that died (drafts untouched for `older_than` seconds); how many."""
        ...

    async def owners(self, older_than: float, since: float = 0.0) -> list[str]:
        """Who has blobs, the last of them older than `older_than` seconds and not from before `since` (epoch)."""
        ...

    async def link(self, name: str, seconds: int) -> str | None:
        """Where anybody may fetch the blob without us for the next `seconds`; None where only we can serve it.

        Whether there is such a blob is not looked at; what could never be a name raises `BlobMissing`, if links are.
        """
        ...

    async def check(self) -> None:
        """Raise `StorageError` with the cure if nothing can be stored now."""
        ...


class BlobMissing(Exception):
    """No blob of that name."""


def known_owner(owner: str) -> str:
    """The owner, if it is one: no path and no key is ever built from anything else."""
    if OWNER.fullmatch(owner) is None:
        raise ValueError("an owner is 1 to 80 letters, digits and underscores")
    return owner
