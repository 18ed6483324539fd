"""Contract of a blob store: immutable bytes, stored completely or not at all, named by their hash."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from typing import Final, Literal, Protocol

from storage.blobs.staging import Draft

OWNER: Final = re.compile(r"[A-Za-z0-9_]{1,80}")
NAME: Final = re.compile(r"([A-Za-z0-9_]{1,80})/([0-9a-f]{64})")

BlobLinks = Literal["none", "presigned", "public"]


@dataclass(frozen=True, kw_only=True)
class Bucket:
    """A place in a store that speaks S3."""

    name: str
    prefix: str = ""
    endpoint: str | None = None
    """`http[s]://host[:port]`; None for AWS itself."""
    region: str = "us-east-1"
    access_key: str | None = field(default=None, repr=False)
    """None, like the other two, to use the environment, a web identity or the machine's role."""
    secret_key: str | None = field(default=None, repr=False)
    session_token: str | None = field(default=None, repr=False)
    links: BlobLinks = "none"
    """Kind of links that callers are redirected to, if any."""
    public_base: str | None = None
    """URL at which the bucket can be read without a key; "public" links need it."""


class BlobReader(Protocol):
    """Bytes of a blob, chunk by chunk. A caller that stops before the end calls `aclose` (`contextlib.aclosing`)."""

    def __aiter__(self) -> AsyncIterator[bytes]: ...
    async def __anext__(self) -> bytes: ...
    async def aclose(self) -> None: ...


class BlobStore(Protocol):
    """Store of immutable bytes.

    Every implementation keeps these promises: a blob is visible whole or not at all, also after a power cut;
    storing equal bytes for one owner twice is one blob; a reader in the middle keeps what it reads after a delete;
    memory use does not grow with the size of a blob; owners match `[A-Za-z0-9_]{1,80}`, anything else is a ValueError;
    messages of errors name a cure and no path.
    """

    def new_draft(self, owner: str) -> Draft:
        """Return a draft of `owner`; its file is created on entering the block, which may raise `StorageFull`."""

    async def open(self, name: str, start: int = 0, stop: int | None = None) -> BlobReader:
        """Return the bytes [start, stop), limited to the blob, in chunks of at most 1 MiB.

        Raises `BlobMissing` here, before the first chunk, also for an invalid name.
        """

    async def delete(self, owner: str) -> int:
        """Delete all blobs of an owner; return how many. A blob that is being stored at the same time may stay."""

    async def delete_of_owners(self, owners: Sequence[str]) -> None:
        """Delete all blobs of some hundred owners."""

    async def delete_stale_drafts(self, older_than: float) -> int:
        """Delete drafts of dead writers, untouched for `older_than` seconds; return how many."""

    async def list_owners(self, older_than: float, since: float = 0.0) -> list[str]:
        """Return the owners whose newest blob is older than `older_than` seconds, but not than `since` (epoch)."""

    async def get_link(self, name: str, seconds: int) -> str | None:
        """Return a public URL of the blob, valid for `seconds`; None if the store has no links.

        Does not check that the blob exists. A store with links raises `BlobMissing` for an invalid name.
        """

    def path_below_root(self, name: str) -> str | None:
        """Return the path of a blob below the store's folder, of plain characters; None for a store without a folder.

        Does not check that the blob exists. A store with a folder raises `BlobMissing` for an invalid name.
        """

    async def check(self) -> None:
        """Raise `StorageError` with the cure if nothing can be stored now."""


class BlobMissing(Exception):
    """The store has no blob of this name."""


def validate_owner(owner: str) -> str:
    """Return the owner if it is valid, else raise `ValueError`: paths and keys are built from valid owners only."""
    if OWNER.fullmatch(owner) is None:
        raise ValueError("an owner is 1 to 80 letters, digits and underscores")
    return owner
