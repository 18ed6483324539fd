"""Properties that all processes of one database must share: the secret, the place of the images, the time."""

from __future__ import annotations

import hashlib
import hmac
import os
import secrets
from collections.abc import Collection
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

_SIGNING_ERROR: Final = (
    "SECRET_KEY is not set, so this machine generated its own; but the other processes on this database sign with "
    "another one: set the same SECRET_KEY for all (the first has it in secret.key in its BROKER_DATA_DIR)"
)
_SIGNING_WARNING: Final = (
    "SECRET_KEY differs from that of the process that started before: set the same for all. If you have changed it: "
    "callbacks of orders in progress are not accepted now, the provider is polled instead "
    "(BROKER_OLD_SECRET_KEYS with the earlier one prevents that)"
)
_STORE_ERROR: Final = (
    "the images of this machine are in a folder of its own, those of the others on this database are elsewhere: give "
    "all of them the same bucket (BROKER_BLOB_URL=s3://bucket/prefix), or the same folder"
)
_STORE_WARNING: Final = (
    "BROKER_BLOB_URL differs from that of the process that started before: set the same for all. If you have changed "
    "it: images that are in the old bucket are not found in the new one"
)


async def check_cluster(state: ClusterState, settings: Settings, secret: bytes) -> None:
    """Raise `SettingsError` with the cure if this process would harm the others of its database."""
    signing_error = None if settings.secret_key is not None else _SIGNING_ERROR
    earlier = frozenset(map(_secret_digest, settings.old_secrets))
    digest = _secret_digest(secret)
    await _check_value(state, "secret", digest, error=signing_error, warning=_SIGNING_WARNING, earlier=earlier)
    store_error = None if settings.bucket is not None else _STORE_ERROR
    await _check_value(state, "store", _store_digest(settings), error=store_error, warning=_STORE_WARNING)


async def _check_value(
    state: ClusterState,
    name: str,
    value: str,
    *,
    error: str | None,
    warning: str,
    earlier: Collection[str] = (),
) -> None:
    """Compare a value with that of the other processes.

    error: message where this process generated a value of its own; None for a configured one, which replaces theirs.
    earlier: values that this one replaces without harm.
    """
    known = await state.set_if_absent(name, value)
    if hmac.compare_digest(value, known):
        return
    if error is not None:
        raise SettingsError(error)
    await state.set_value(name, value)
    if known not in earlier:
        log.warning(warning, action=f"{name}_changed")


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


async def secrets_match(state: ClusterState, secret: bytes) -> bool:
    """Return True if the other processes use the same secret, so that callbacks verify everywhere. Changes nothing."""
    known = await state.get_value("secret")
    return known is None or hmac.compare_digest(_secret_digest(secret), known)


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


def _secret_digest(secret: bytes) -> str:
    """With different secrets each process rejects the callbacks that another one requested."""
    return hmac.new(secret, b"which secret is it", hashlib.sha256).hexdigest()[:32]


def _store_digest(settings: Settings) -> str:
    """With different image stores each process has images that the others lack."""
    bucket = settings.bucket
    if bucket is not None:
        value = f"{bucket.endpoint or bucket.region}/{bucket.name}/{bucket.prefix.strip('/')}"
    else:
        settings.blob_folder.mkdir(parents=True, exist_ok=True)
        create_secret_file(settings.blob_folder / ".store")
        value = (settings.blob_folder / ".store").read_text().strip()
    return hashlib.sha256(value.encode()).hexdigest()[:32]
