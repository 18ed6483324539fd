"""Checks of this machine: Python, the database, the images, the disks under both, and the secret."""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import sqlite3
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

from broker.bootstrap import FREE_FLOOR, blobs_for, missing_database_file, secret_file
from broker.cluster import MAX_HARMLESS_SKEW_SECONDS, max_clock_skew, secrets_match
from broker.doctor.context import DoctorContext
from broker.providers.base import Finding
from broker.providers.health import NTP_CURE, failed, ok, skipped, warning
from broker.settings import Settings
from storage.blobs.staging import FULL
from storage.cluster_state import ClusterState
from storage.sql import migrate
from storage.sql.database import Database
from storage.sql.migrate import SchemaTooNew
from storage.sql.sqlite import sqlite_path

MIB: Final = 2**20
LOW_SPACE_BYTES: Final = 1024 * MIB
FLAWED_SQLITE_VERSIONS: Final = ((3, 7, 0), (3, 51, 2))
"""First and last version with the WAL-reset flaw."""
LIFECYCLE_RULE: Final = (
    "give the bucket the lifecycle rule AbortIncompleteMultipartUpload (DaysAfterInitiation 2, see docs/deploying.md) "
    "if it has none: it cannot be read from here"
)
FREE_SPACE_CURE: Final = "free some space (df -h), or shorten BROKER_RETENTION_HOURS and run: broker cleanup"


async def check_database(context: DoctorContext) -> Sequence[Finding]:
    """Check that the database is sound, fully migrated and able to commit, without changing it."""
    settings, name = context.settings, "database"
    path = missing_database_file(settings)
    if path is not None:
        return [ok(name, f"none yet: the first start creates {path}"), *_check_sqlite_version(settings)]
    async with context.open_database() as opened:
        await opened.check()
        try:
            missing = await migrate.missing_migrations(opened)
        except SchemaTooNew as error:
            return [failed(name, "a newer broker has used it", str(error))]
        if missing:
            await migrate.check_ownership(opened)
            found = f"{settings.database_shown}: {len(missing)} migrations are missing"
            return [warning(name, found, "run: broker db upgrade (every start does it, too)")]
        await migrate.probe_commit(opened)
        sound = ok(name, f"{settings.database_shown}: sound, all migrations there, takes commits")
        return [sound, *_check_sqlite_version(settings), *await _check_sharing(opened, context)]


def _check_sqlite_version(settings: Settings) -> Sequence[Finding]:
    if settings.shared:
        return []
    first, last = FLAWED_SQLITE_VERSIONS
    if not first <= sqlite3.sqlite_version_info <= last:
        return [ok("SQLite", sqlite3.sqlite_version)]
    found = f"{sqlite3.sqlite_version} has a rare flaw when two processes write at the same moment"
    return [warning("SQLite", found, "run one process, or use Postgres, or a Python with SQLite 3.51.3 or newer")]


async def _check_sharing(opened: Database, context: DoctorContext) -> Sequence[Finding]:
    """Compare the clock and the secret with those of the other processes on a shared database."""
    if not context.settings.shared:
        return []
    database_time, now = await opened.read_clock(), context.clock.now()
    name, skew = "clock of the database", abs(database_time - now)
    found = f"{skew:.1f} seconds away from ours"
    if skew > max_clock_skew(context.settings.lease):
        clock = failed(name, f"{found}: a broker does not start", f"{NTP_CURE}, and that of the database, too")
    else:
        clock = warning(name, found, NTP_CURE) if skew > MAX_HARMLESS_SKEW_SECONDS else ok(name, found)
    if await secrets_match(ClusterState(opened), context.secret):
        return [clock]
    cure = "set the same SECRET_KEY for all (the first has it in secret.key in its BROKER_DATA_DIR)"
    return [clock, failed("shared secret", "the others on this database sign with another secret", cure)]


async def check_images(context: DoctorContext) -> Sequence[Finding]:
    """Write a test object to the image store."""
    settings, bucket = context.settings, context.settings.bucket
    if bucket is None and not settings.blob_folder.exists():
        return [ok("images", f"none yet: the first start creates {settings.blob_folder}")]
    async with blobs_for(settings) as store:
        await store.check()
    if bucket is None:
        return [ok("images", f"{settings.blob_folder} accepts writes")]
    return [ok("images", f"s3://{bucket.name}/{bucket.prefix} accepts writes; {LIFECYCLE_RULE}")]


async def check_disks(context: DoctorContext) -> Sequence[Finding]:
    """Check the free space of every disk in use, and that every folder is writable."""
    return await asyncio.to_thread(lambda: list(_check_folders(context.settings)))


def _check_folders(settings: Settings) -> Iterator[Finding]:
    seen: set[int | Path] = set()
    folders = [settings.data_dir, settings.blob_folder]
    if not settings.shared:
        folders.insert(0, sqlite_path(settings.database).parent)
    if settings.log_dir is not None:
        folders.append(settings.log_dir)
    for folder in folders:
        existing = _existing_parent(folder)
        if existing in seen:
            continue
        device, finding = existing.stat().st_dev, _check_disk(folder, existing)
        if device not in seen or finding.status == "failed":
            yield finding
        seen |= {device, existing}


def _existing_parent(folder: Path) -> Path:
    """Return the folder, or the parent in which it would be created."""
    folder = folder.absolute()
    return next(place for place in (folder, *folder.parents) if place.exists())


def _check_disk(folder: Path, existing: Path) -> Finding:
    name = "disk"
    try:
        _write_and_sync(existing)
    except OSError as error:
        if error.errno in FULL:
            return failed(name, f"{existing} is full", FREE_SPACE_CURE)
        return failed(name, f"{existing} cannot be written to ({error.strerror})", f"let this user write to {existing}")
    free = shutil.disk_usage(existing).free
    found = f"{folder}: {_format_size(free)} free"
    if free < FREE_FLOOR:
        return failed(name, f"{found}; below {FREE_FLOOR // MIB} MiB images are refused", FREE_SPACE_CURE)
    return warning(name, found, FREE_SPACE_CURE) if free < LOW_SPACE_BYTES else ok(name, f"{found}, takes writes")


def _format_size(size: int) -> str:
    return f"{size / 2**30:.1f} GiB" if size >= LOW_SPACE_BYTES else f"{size / MIB:.1f} MiB"


def _write_and_sync(folder: Path) -> None:
    """Write a file as a database does: to the disk itself, not only into memory."""
    with tempfile.TemporaryFile(dir=folder, buffering=0) as file:
        file.write(b"\0" * 65536)
        os.fsync(file.fileno())


async def check_secret(context: DoctorContext) -> Sequence[Finding]:
    """Check the secret, which signs callback URLs: with it results can be forged."""
    name = "secret"
    if context.settings.secret_key is not None:
        return [ok(name, "SECRET_KEY is set")]
    path = secret_file(context.settings)
    try:
        mode, content = path.stat().st_mode, path.read_bytes().strip()
    except FileNotFoundError:
        return [skipped(name, f"none yet: the first start creates {path}")]
    except OSError as error:
        return [failed(name, f"{path} cannot be read ({error.strerror})", "run this as the user who runs the broker")]
    if not re.fullmatch(rb"[0-9a-f]{64}", content):
        cure = f"restore {path} from a backup, or delete it: a new one is generated, and tasks in progress are polled"
        return [failed(name, f"{path} is damaged", cure)]
    if mode & 0o077:
        return [failed(name, f"{path} can be read by others (mode {mode & 0o777:o})", f"chmod 600 {path}")]
    return [ok(name, f"{path}, readable by its owner only")]
