"""Check that other users of this machine cannot access files of the broker, which may be older than its umask."""

from __future__ import annotations

import asyncio
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Final

from broker.doctor.context import DoctorContext
from broker.providers.base import Finding
from broker.providers.health import ok, warning
from broker.settings import Settings
from storage.file_modes import GROUP_PASS_FOLDER, GROUP_READ_FOLDER, find_exposed
from storage.sql.sqlite import sqlite_path

MAX_NAMED_FILES: Final = 3
_NAME: Final = "file permissions"


async def check_file_modes(context: DoctorContext) -> Sequence[Finding]:
    """Name files and folders that others can read; those in a closed folder are out of their reach."""
    places = _Places.of(context.settings)
    return await asyncio.to_thread(lambda: list(_check_places(places)))


@dataclass(frozen=True, kw_only=True)
class _Places:
    """Where the broker keeps its files. All paths are absolute."""

    folders: Sequence[Path]
    """Folders of the broker alone, none in another."""
    files: Sequence[Path]
    """Single files in other folders, which may hold what belongs to others."""
    group_read: Path | None
    """The folder of the images if the group may read them."""

    @classmethod
    def of(cls, settings: Settings) -> _Places:
        data_dir, images = settings.data_dir.resolve(), settings.blob_folder.resolve()
        files: list[Path] = []
        if not settings.shared:
            database = sqlite_path(settings.database).resolve()
            files += [database, *(database.with_name(database.name + suffix) for suffix in ("-wal", "-shm"))]
        if settings.log_dir is not None:
            files += sorted(settings.log_dir.resolve().glob("app.log*"))
        folders = [data_dir] if images.is_relative_to(data_dir) else [data_dir, images]
        return cls(
            folders=folders,
            files=[file for file in files if not any(file.is_relative_to(folder) for folder in folders)],
            group_read=images if settings.blob_group_read and settings.bucket is None else None,
        )

    def permitted_bits(self, path: Path) -> int:
        """Return the bits that BROKER_BLOB_GROUP_READ sets: for the images, and for the folders above them."""
        if self.group_read is None:
            return 0
        if path.is_relative_to(self.group_read):
            return GROUP_READ_FOLDER
        return GROUP_PASS_FOLDER if self.group_read.is_relative_to(path) else 0

    def cure_folder(self, folder: Path) -> str:
        cure = f"chmod -R go= {_quote(folder)}"
        if self.group_read is None or not self.group_read.is_relative_to(folder):
            return cure
        above = [parent for parent in self.group_read.parents if parent.is_relative_to(folder)]
        opened = f"chmod -R g+rX {_quote(self.group_read)}"
        return " && ".join([cure, opened, *([f"chmod g+x {_quote(*above)}"] if above else [])])


def _check_places(places: _Places) -> Iterator[Finding]:
    is_private = True
    for folder in places.folders:
        exposed = list(islice(find_exposed(folder, permitted=places.permitted_bits), MAX_NAMED_FILES + 1))
        if exposed:
            is_private = False
            yield _exposed(exposed, places.cure_folder(folder))
    exposed = [found for file in places.files for found in find_exposed(file)]
    if exposed:
        is_private = False
        yield _exposed(exposed, f"chmod go= {_quote(*(path for path, _ in exposed))}")
    if is_private:
        exception = "" if places.group_read is None else "; the group reads the images"
        yield ok(_NAME, f"other users of this machine have no access{exception}")


def _exposed(found: Sequence[tuple[Path, int]], cure: str) -> Finding:
    named = ", ".join(f"{path} (mode {mode:o})" for path, mode in found[:MAX_NAMED_FILES])
    more = " and more" if len(found) > MAX_NAMED_FILES else ""
    return warning(_NAME, f"other users of this machine can access {named}{more}", cure)


def _quote(*paths: Path) -> str:
    return shlex.join(map(str, paths))
