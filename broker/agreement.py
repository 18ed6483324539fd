"""What all processes of one database must have alike: the secret, the place of the images, the time."""

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
from storage.cluster_state import Facts
from storage.sql.database import Database

MOST_SKEW: Final = 2.0
"""Seconds between two clocks that do no harm."""


async def reach(facts: Facts, settings: Settings, secret: bytes) -> None:
    """Raises `SettingsError` with the cure where this process would do harm to the others."""
    await _agree(facts, _of_secret(secret), chosen=settings.secret_key is not None)
    await _agree(facts, _of_store(settings), chosen=settings.bucket is not None)


async def _agree(facts: Facts, mark: _Mark, *, chosen: bool) -> None:
    """What a machine made up for itself gives way; what somebody chose replaces what was before."""
    if hmac.compare_digest(mark.value, await facts.agree(mark.name, mark.value)):
        return
    if not chosen:
        raise SettingsError(mark.refusal)
    await facts.replace(mark.name, mark.value)
    log.warning(mark.warning, action=f"{mark.name}_changed")


async def keep_time(database: Database, clock: Clock, lease: float) -> None:
    """Leases and windows are judged by the clock of whoever looks; one that is far off takes the others' steps over."""
    begun = clock.monotonic()
    theirs = await database.now()
    skew = abs(theirs - clock.now()) - (clock.monotonic() - begun)
    if skew > max(MOST_SKEW, lease / 4):
        raise SettingsError(
            f"the clock of this machine and that of the database differ by {skew:.0f} seconds: set both by NTP"
        )
    if skew > MOST_SKEW:
        log.warning(
            "the clocks of this machine and of the database differ", action="clock_skew", seconds=round(skew, 1)
        )


async def signs_alike(facts: Facts, secret: bytes) -> bool:
    """Whether the others believe the callbacks that we ask for, and we theirs. Changes nothing."""
    mark = _of_secret(secret)
    known = await facts.known(mark.name)
    return known is None or hmac.compare_digest(mark.value, known)


def make_once(path: Path) -> None:
    """A file with a random word, for its owner's eyes only; of several who make it one wins."""
    if path.exists():
        return
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
    with os.fdopen(descriptor, "w") as file:
        file.write(secrets.token_hex(32))
        file.flush()
        os.fsync(file.fileno())
    try:
        os.link(draft, path)  # fails if somebody was quicker: then theirs is the secret
    except FileExistsError:
        pass
    finally:
        draft.unlink()


@dataclass(frozen=True, kw_only=True)
class _Mark:
    """What all processes of one database must have alike. refusal, warning: what to say when it is not."""

    name: str
    value: str
    refusal: str
    warning: str


def _of_secret(secret: bytes) -> _Mark:
    """Or each refuses the callbacks that another one asked for."""
    return _Mark(
        name="secret",
        value=hmac.new(secret, b"which secret is it", hashlib.sha256).hexdigest()[:32],
        refusal="SECRET_KEY is not set, so this machine made one of its own; but the others on this database sign "
        "with another one: set the same SECRET_KEY for all (the first has it in secret.key in its BROKER_DATA_DIR)",
        warning="SECRET_KEY is not the one of the process that started before: set the same for all. If you have "
        "changed it: callbacks of orders under way are not believed now, the provider is asked instead",
    )


def _of_store(settings: Settings) -> _Mark:
    """Or each has images that the others cannot find."""
    bucket = settings.bucket
    if bucket is not None:
        value = f"{bucket.endpoint or bucket.region}/{bucket.name}/{bucket.prefix.strip('/')}"
    else:
        settings.blobs.mkdir(parents=True, exist_ok=True)
        make_once(settings.blobs / ".store")
        value = (settings.blobs / ".store").read_text().strip()
    return _Mark(
        name="store",
        value=hashlib.sha256(value.encode()).hexdigest()[:32],
        refusal="the images of this machine are in a folder of its own, those of the others on this database are "
        "elsewhere: give all of them the same bucket (BROKER_BLOB_URL=s3://bucket/prefix), or the same folder",
        warning="BROKER_BLOB_URL is not that of the process that started before: set the same for all. If you have "
        "changed it: images that are in the old bucket are not found in the new one",
    )
