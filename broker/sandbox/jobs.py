"""Stored state of the sandbox: jobs with their callback attempts, and files. With a folder it survives a kill."""

from __future__ import annotations

import hashlib
import json
import os
import secrets
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import anyio
from anyio import to_thread
from pydantic import TypeAdapter

from broker.sandbox.faults import Fault, Faults, JobFailure
from broker.sandbox.orders import JobOrder


@dataclass(frozen=True, kw_only=True)
class CallbackAttempt:
    """One attempt at a callback."""

    number: int
    """Position of the callback in the plan."""
    kind: str
    attempt: int
    status: int | None
    """None without a response."""
    at: float

    @property
    def delivered(self) -> bool:
        return self.status is not None and 200 <= self.status < 300


@dataclass(frozen=True, kw_only=True)
class JobEnd:
    """End of a job."""

    at: float
    cost: float = 0.0
    """In the provider's unit."""
    failure: JobFailure | None = None
    pixels: tuple[int, int] = (0, 0)
    """Of the image."""
    thumbnails: tuple[str, ...] = ()
    """Names of files: the references in small."""


@dataclass(frozen=True, kw_only=True)
class Job:
    """An accepted submission."""

    id: str
    request: dict[str, Any]
    """As the dialect received it, for its records."""
    order: JobOrder
    faults: Faults
    earlier: int
    """Earlier jobs of the same prompt."""
    created_at: float
    end: JobEnd | None = None
    sent: tuple[CallbackAttempt, ...] = ()
    is_settled: bool = False
    """No callback is due any more."""
    account: str = ""
    """Stands for the key that ordered it."""

    @property
    def image_format(self) -> str:
        if Fault.WRONGTYPE in self.faults:
            return "jpeg"
        return "png" if Fault.BIG in self.faults else self.order.image_format

    @property
    def suffix(self) -> str:
        return "png" if Fault.WRONGTYPE in self.faults else self.image_format.replace("jpeg", "jpg")


@dataclass(frozen=True, kw_only=True)
class JobView:
    """A job as one record or callback shows it, which a fault may make untrue."""

    job: Job
    stage: str
    """waiting, queuing, generating, success or fail; or a word of no meaning."""
    urls: tuple[str, ...] = ()
    """Of the results; empty unless it succeeded."""
    failure: JobFailure | None = None

    @property
    def cost(self) -> float:
        return self.job.end.cost if self.job.end else 0.0

    @property
    def ended_at(self) -> float | None:
        """When it ended, in seconds since the epoch; None if it is shown as running."""
        return self.job.end.at if self.job.end and self.stage in {"success", "fail"} else None


_JOB = TypeAdapter(Job)


def account_of(key: str) -> str:
    """Return what stands for a key in jobs: eight hex digits of its SHA-256."""
    return hashlib.sha256(key.encode()).hexdigest()[:8]


@dataclass(kw_only=True)
class JobStore:
    """Durable store of all jobs: each change appends the whole job to a journal.

    A change that cannot be stored is kept in memory. The next one of the job that can be contains it.
    """

    folder: Path | None
    jobs: dict[str, Job] = field(default_factory=dict)
    _journal_lock: anyio.Lock = field(default_factory=anyio.Lock)

    async def save_job(self, job: Job) -> Job:
        # memory first: concurrent creates must see each other
        self.jobs[job.id] = job
        if self.folder:
            line = json.dumps(asdict(job)).encode() + b"\n"
            async with self._journal_lock:
                await to_thread.run_sync(_append_line, self.folder / "journal.jsonl", line)
        return job

    def load(self) -> None:
        """Read the journal; an incomplete last line is removed."""
        if self.folder is None:
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / "journal.jsonl"
        whole = path.read_bytes() if path.exists() else b""
        kept = whole[: whole.rfind(b"\n") + 1]
        if kept != whole:
            os.truncate(path, len(kept))
        for line in kept.splitlines():
            job = _JOB.validate_python(json.loads(line))  # not validate_json: it rejects lone surrogates
            self.jobs[job.id] = job


@dataclass(kw_only=True)
class Files:
    """Uploads, inline references and thumbnails by name, in a folder or in memory. The same name overwrites."""

    folder: Path | None
    _held: dict[str, bytes] = field(default_factory=dict)

    async def put(self, name: str, data: bytes) -> None:
        if self.folder:
            await to_thread.run_sync(_write_file, self._path_of(self.folder, name), data)
        else:
            self._held[name] = data

    async def get(self, name: str) -> bytes | None:
        if self.folder:
            path = anyio.Path(self._path_of(self.folder, name))
            return await path.read_bytes() if await path.exists() else None
        return self._held.get(name)

    @staticmethod
    def _path_of(folder: Path, name: str) -> Path:
        # names are the client's: no part of one may become part of a path
        return folder / "files" / hashlib.sha256(name.encode(errors="replace")).hexdigest()


def _append_line(path: Path, line: bytes) -> None:
    """Append the whole line, or nothing where it cannot be stored: half a line would make the next one unreadable."""
    with suppress(OSError), path.open("ab", buffering=0) as journal:
        size = journal.tell()
        if journal.write(line) < len(line):
            journal.truncate(size)


def _write_file(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    new = path.with_suffix(f".{secrets.token_hex(8)}")  # the same name may be stored concurrently
    new.write_bytes(data)
    new.replace(path)
