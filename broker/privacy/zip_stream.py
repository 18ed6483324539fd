"""A ZIP archive that is sent while it is written: nothing of it is kept but its directory, some hundred bytes per file.

Images are stored as they are, because they are compressed already.
"""

from __future__ import annotations

import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from io import RawIOBase
from typing import IO, Final

from typing_extensions import Buffer

_FIRST_YEAR: Final = 1980
"""ZIP has no earlier time."""


class _Sink(RawIOBase):
    """A file that is written only, and whose bytes are taken away."""

    def __init__(self) -> None:
        self._written = bytearray()

    def writable(self) -> bool:
        return True

    def write(self, data: Buffer, /) -> int:
        self._written += data
        return len(memoryview(data))

    def take(self) -> bytes:
        taken = bytes(self._written)
        self._written.clear()
        return taken


class ZipStream:
    """Writer of an archive. Use it with `with`; `take` returns what is to be sent next."""

    def __init__(self, at: float) -> None:
        """at: time of all entries, in seconds since the epoch."""
        self._sink = _Sink()
        self._archive = zipfile.ZipFile(self._sink, "w")
        moment = datetime.fromtimestamp(at, UTC)
        self._time = (max(moment.year, _FIRST_YEAR), *moment.timetuple()[1:6])

    @contextmanager
    def entry(self, name: str, *, is_compressed: bool = False) -> Iterator[IO[bytes]]:
        """Add a file of unknown size; write its bytes inside the block."""
        info = zipfile.ZipInfo(name, self._time)
        info.compress_type = zipfile.ZIP_DEFLATED if is_compressed else zipfile.ZIP_STORED
        info.external_attr = 0o600 << 16
        with self._archive.open(info, "w", force_zip64=True) as file:
            yield file

    def take(self) -> bytes:
        """Return the bytes that were written since the last call."""
        return self._sink.take()

    def __enter__(self) -> ZipStream:
        return self

    def __exit__(self, *_: object) -> None:
        self._archive.close()
