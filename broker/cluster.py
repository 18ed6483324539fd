"""Properties that all processes of one database must share: the secret, the place of the images, the time."""

from __future__ import annotations

import hashlib
import hmac
import os
import secrets
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from broker.clock import Clock
from broker.errors import SettingsError
from broker.logs import log
from broker.settings import Settings
from storage.cluster_state import ClusterState
from storage.sql.database import Database

MAX_HARMLESS_SKEW_SECONDS: Final = 2.0
"""Difference between two clocks that needs no warning."""


async def check_cluster(facts: ClusterState, settings: Settings, secret: bytes) -> None:
    """Raise `SettingsError` with the cure if this process would harm the others of its database."""
    await _check_property(facts, _secret_property(secret), is_configured=settings.secret_key is not None)
    await _check_property(facts, _store_property(settings), is_configured=settings.bucket is not None)


async def _check_property(facts: ClusterState, mine: _SharedProperty, *, is_configured: bool) -> None:
    """Compare with the other processes; a configured value replaces theirs, a generated one is an error."""
    if hmac.compare_digest(mine.value, await facts.set_if_absent(mine.name, mine.value)):
        return
    if not is_configured:
        raise SettingsError(mine.error)
    await facts.replace_value(mine.name, mine.value)
    log.warning(mine.warning, action=f"{mine.name}_changed")


def max_clock_skew(lease_seconds: float) -> float:
    """Return the difference of clocks in seconds above which a process must not start.

    Each process judges leases and windows by its own clock; one that is far off takes over the steps of others.
    """
    return max(MAX_HARMLESS_SKEW_SECONDS, lease_seconds / 4)


async def check_clock_skew(database: Database, clock: Clock, lease_seconds: float) -> None:
    """Raise `SettingsError` if the clocks of this machine and of the database differ too much."""
    started = clock.monotonic()
    database_time = await database.read_clock()
    skew = abs(database_time - clock.now()) - (clock.monotonic() - started)
    if skew > max_clock_skew(lease_seconds):
        raise SettingsError(
            f"the clock of this machine and that of the database differ by {skew:.0f} seconds: set both by NTP"
        )
    if skew > MAX_HARMLESS_SKEW_SECONDS:
        log.warning(
            "the clocks of this machine and of the database differ", action="clock_skew", seconds=round(skew, 1)
        )


async def secrets_match(facts: ClusterState, secret: bytes) -> bool:
    """Return whether the other processes use the same secret, so that callbacks verify everywhere. Changes nothing."""
    mine = _secret_property(secret)
    known = await facts.get_value(mine.name)
    return known is None or hmac.compare_digest(mine.value, known)


def create_secret_file(path: Path) -> None:
    """Create a file with a random word, readable by its owner only; of concurrent creators one wins."""
    if path.exists():
        return
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
    with os.fdopen(descriptor, "w") as file:
        file.write(secrets.token_hex(32))
        file.flush()
        os.fsync(file.fileno())
    try:
        os.link(draft, path)  # fails if another process was faster: then its secret counts
    except FileExistsError:
        pass
    finally:
        draft.unlink()


@dataclass(frozen=True, kw_only=True)
class _SharedProperty:
    """A value that all processes of one database must have in common."""

    name: str
    value: str
    error: str
    """Message where this process generated a value of its own."""
    warning: str
    """Message where a configured value replaces that of the others."""


def _secret_property(secret: bytes) -> _SharedProperty:
    """Return a digest of the secret: with different secrets each process rejects callbacks that another requested."""
    return _SharedProperty(
        name="secret",
        value=hmac.new(secret, b"which secret is it", hashlib.sha256).hexdigest()[:32],
        error="SECRET_KEY is not set, so this machine generated its own; but the other processes on this database sign "
        "with another one: set the same SECRET_KEY for all (the first has it in secret.key in its BROKER_DATA_DIR)",
        warning="SECRET_KEY differs from that of the process that started before: set the same for all. If you have "
        "changed it: callbacks of orders in progress are not accepted now, the provider is polled instead",
    )


def _store_property(settings: Settings) -> _SharedProperty:
    """Return a digest of the image store: with different stores each process has images that the others lack."""
    bucket = settings.bucket
    if bucket is not None:
        value = f"{bucket.endpoint or bucket.region}/{bucket.name}/{bucket.prefix.strip('/')}"
    else:
        settings.blob_folder.mkdir(parents=True, exist_ok=True)
        create_secret_file(settings.blob_folder / ".store")
        value = (settings.blob_folder / ".store").read_text().strip()
    return _SharedProperty(
        name="store",
        value=hashlib.sha256(value.encode()).hexdigest()[:32],
        error="the images of this machine are in a folder of its own, those of the others on this database are "
        "elsewhere: give all of them the same bucket (BROKER_BLOB_URL=s3://bucket/prefix), or the same folder",
        warning="BROKER_BLOB_URL differs from that of the process that started before: set the same for all. If you "
        "have changed it: images that are in the old bucket are not found in the new one",
    )
