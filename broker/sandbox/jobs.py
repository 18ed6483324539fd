"""Stored state of the sandbox: jobs, callback attempts and files. With a folder it survives a kill."""

from __future__ import annotations

import hashlib
import json
import os
import secrets
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import anyio
from anyio import to_thread

from broker.sandbox.faults import Fault, Faults, JobFailure
from broker.sandbox.models import ValidatedRequest, validate_request


@dataclass(frozen=True, kw_only=True)
class CallbackAttempt:
    """One attempt at a callback. number: position in the plan. status: of the response; None without one."""

    number: int
    kind: str
    attempt: int
    status: int | None
    at: float

    @property
    def delivered(self) -> bool:
        return self.status is not None and 200 <= self.status < 300


@dataclass(frozen=True, kw_only=True)
class JobEnd:
    """End of a job. pixels: of the image. thumbnails: names of files."""

    at: float
    credits: float = 0.0
    failure: JobFailure | None = None
    pixels: tuple[int, int] = (0, 0)
    thumbnails: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Job:
    """An accepted submission. earlier: earlier jobs of the same prompt. answered: no callback is due any more."""

    task_id: str
    request: dict[str, Any]
    faults: Faults
    earlier: int
    created_at: float
    end: JobEnd | None = None
    sent: tuple[CallbackAttempt, ...] = ()
    answered: bool = False

    @cached_property
    def order(self) -> ValidatedRequest:
        return validate_request(self.request)

    @property
    def callback_url(self) -> str | None:
        url = self.request.get("callBackUrl")
        return url if isinstance(url, str) else None

    @property
    def image_format(self) -> str:
        return (
            "jpeg" if Fault.WRONGTYPE in self.faults else "png" if Fault.BIG in self.faults else self.order.image_format
        )

    @property
    def suffix(self) -> str:
        return "png" if Fault.WRONGTYPE in self.faults or self.image_format == "png" else "jpg"


@dataclass(kw_only=True)
class JobStore:
    """Durable store of all jobs. Each change is a line of the journal, synced before it takes effect."""

    folder: Path | None
    jobs: dict[str, Job] = field(default_factory=dict)
    _journal_lock: anyio.Lock = field(default_factory=anyio.Lock)

    async def accept(self, job: Job) -> None:
        # memory first: concurrent creates must see each other
        self.jobs[job.task_id] = job
        await self._append_line({"accepted": asdict(job)})

    async def end_job(self, task_id: str, end: JobEnd) -> None:
        self.jobs[task_id] = replace(self.jobs[task_id], end=end)
        await self._append_line({"ended": {"task_id": task_id, **asdict(end)}})

    async def add_attempt(self, task_id: str, sent: CallbackAttempt) -> None:
        job = self.jobs[task_id]
        self.jobs[task_id] = replace(job, sent=(*job.sent, sent))
        await self._append_line({"sent": {"task_id": task_id, **asdict(sent)}})

    async def mark_answered(self, task_id: str) -> None:
        self.jobs[task_id] = replace(self.jobs[task_id], answered=True)
        await self._append_line({"answered": {"task_id": task_id}})

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
            self._replay_line(json.loads(line))

    def _replay_line(self, line: dict[str, Any]) -> None:
        ((event, fact),) = line.items()
        task_id = fact.pop("task_id")
        job = _parse_job(task_id, fact) if event == "accepted" else self.jobs[task_id]
        match event:
            case "ended":
                job = replace(job, end=_parse_end(fact))
            case "sent":
                job = replace(job, sent=(*job.sent, CallbackAttempt(**fact)))
            case "answered":
                job = replace(job, answered=True)
        self.jobs[task_id] = job

    async def _append_line(self, line: dict[str, Any]) -> None:
        if self.folder:
            async with self._journal_lock:
                await to_thread.run_sync(_append_to_file, self.folder / "journal.jsonl", json.dumps(line))


def _append_to_file(path: Path, line: str) -> None:
    with path.open("a") as journal:
        journal.write(line + "\n")
        journal.flush()
        os.fsync(journal.fileno())


def _parse_job(task_id: str, fact: dict[str, Any]) -> Job:
    faults = {Fault(name): value for name, value in fact.pop("faults").items()}
    known = {"request", "earlier", "created_at"}
    return Job(task_id=task_id, faults=faults, **{name: fact[name] for name in known})


def _parse_end(fact: dict[str, Any]) -> JobEnd:
    return JobEnd(
        at=fact["at"],
        credits=fact["credits"],
        failure=JobFailure(**fact["failure"]) if fact["failure"] else None,
        pixels=tuple(fact["pixels"]),
        thumbnails=tuple(fact["thumbnails"]),
    )


@dataclass(kw_only=True)
class Files:
    """Uploads and thumbnails by name, in a folder or in memory. The same name overwrites."""

    folder: Path | None
    _held: dict[str, bytes] = field(default_factory=dict)

    async def put(self, name: str, data: bytes) -> None:
        if self.folder:
            await to_thread.run_sync(_write_file, self._path_of(self.folder, name), data)
        else:
            self._held[name] = data

    async def get(self, name: str) -> bytes | None:
        if self.folder:
            return await to_thread.run_sync(_read_file, self._path_of(self.folder, name))
        return self._held.get(name)

    @staticmethod
    def _path_of(folder: Path, name: str) -> Path:
        # names are the client's: no part of one may become part of a path
        return folder / "files" / hashlib.sha256(name.encode(errors="replace")).hexdigest()


def _write_file(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    new = path.with_suffix(f".{secrets.token_hex(8)}")  # the same name may be stored concurrently
    new.write_bytes(data)
    new.replace(path)


def _read_file(path: Path) -> bytes | None:
    return path.read_bytes() if path.exists() else None


def unfinished(store: JobStore) -> Iterator[Job]:
    """Return jobs whose image or callbacks are due."""
    return (job for job in store.jobs.values() if not job.answered)
