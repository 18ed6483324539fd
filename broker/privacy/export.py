"""Export of an account: a ZIP archive with `data.json` and every image, sent while it is read.

What is deleted in the meantime is left out. Files that `data.json` names and that are gone are listed in
`missing.json`.
"""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any, Final

from broker.clock import Clock
from broker.principal import Principal
from broker.privacy.documents import MissingFiles
from broker.privacy.records import OwnerRecords, path_of_image, path_of_upload
from broker.privacy.zip_stream import ZipStream
from storage.blobs.store import BlobMissing, BlobStore

WRITE_BYTES: Final = 64 * 1024
"""Of JSON that are sent at a time."""


@dataclass(frozen=True, kw_only=True)
class AccountExporter:
    """Writes exports."""

    clock: Clock
    records: OwnerRecords
    blobs: BlobStore

    async def write_archive(self, principal: Principal) -> AsyncGenerator[bytes, None]:
        """Yield the archive of an owner, piece by piece, of at most about a megabyte each."""
        owner, missing = principal.owner, list[str]()
        with ZipStream(self.clock.now()) as archive:
            async with aclosing(self._write_document(archive, principal)) as pieces:
                async for piece in pieces:
                    yield piece
            async with aclosing(self._list_files(owner)) as files:
                async for path, blob in files:
                    async with aclosing(self._write_file(archive, path, blob, missing)) as pieces:
                        async for piece in pieces:
                            yield piece
            if missing:
                with archive.entry("missing.json") as entry:
                    entry.write(_to_json(MissingFiles(files=missing).to_document()))
        yield archive.take()

    async def _write_document(self, archive: ZipStream, principal: Principal) -> AsyncGenerator[bytes, None]:
        with archive.entry("data.json", is_compressed=True) as entry:
            async with aclosing(self._document(principal)) as texts:
                held = bytearray()
                async for text in texts:
                    held += text
                    if len(held) >= WRITE_BYTES:
                        entry.write(held)
                        held.clear()
                        yield archive.take()
                entry.write(held)
        yield archive.take()

    async def _document(self, principal: Principal) -> AsyncGenerator[bytes, None]:
        """Yield the JSON document, entry by entry."""
        head = _to_json((await self.records.make_head(principal)).to_document())
        yield head.removesuffix(b"}")
        for name, entries in self.records.lists(principal.owner).items():
            yield f',\n"{name}": ['.encode()
            separator = b"\n"
            async for entry in entries:
                yield separator + _to_json(entry.to_document())
                separator = b",\n"
            yield b"]"
        yield b"}\n"

    async def _list_files(self, owner: str) -> AsyncGenerator[tuple[str, str], None]:
        """Yield path and blob of every file, references of several tasks once."""
        seen = set[str]()
        async for record in self.records.tasks(owner):
            for image in (*record.results, *record.references):
                path = path_of_image(image)
                if path not in seen:
                    seen.add(path)
                    yield path, image.blob
        async for file in self.records.uploaded_files(owner):
            yield path_of_upload(file), file.blob

    async def _write_file(
        self, archive: ZipStream, path: str, blob: str, missing: list[str]
    ) -> AsyncGenerator[bytes, None]:
        try:
            reader = await self.blobs.open(blob)
        except BlobMissing:
            missing.append(path)
            return
        async with aclosing(reader):
            chunks: AsyncIterator[bytes] = reader
            with archive.entry(path) as entry:
                async for chunk in chunks:
                    entry.write(chunk)
                    yield archive.take()
        yield archive.take()


def _to_json(document: Any) -> bytes:
    """Encode as UTF-8; lone surrogates are escaped."""
    return json.dumps(document, ensure_ascii=False, allow_nan=False).encode("utf-8", "backslashreplace")
