"""What the sandbox remembers: jobs, what was sent for them, and files. With a folder it outlives a kill."""

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

from broker.sandbox.menu import Dish, checked
from broker.sandbox.moods import Failure, Mood, Moods


@dataclass(frozen=True, kw_only=True)
class Sent:
    """One attempt at a callback. number: which call of the plan. status: the answer's; None when there was none."""

    number: int
    kind: str
    attempt: int
    status: int | None
    at: float

    @property
    def delivered(self) -> bool:
        return self.status is not None and 200 <= self.status < 300


@dataclass(frozen=True, kw_only=True)
class Ending:
    """How a job ended. pixels: of the picture. thumbnails: names of files."""

    at: float
    credits: float = 0.0
    failure: Failure | None = None
    pixels: tuple[int, int] = (0, 0)
    thumbnails: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Job:
    """An accepted submission. earlier: jobs of the same prompt before it. answered: every callback is done with."""

    task_id: str
    request: dict[str, Any]
    moods: Moods
    earlier: int
    created_at: float
    ending: Ending | None = None
    sent: tuple[Sent, ...] = ()
    answered: bool = False

    @cached_property
    def dish(self) -> Dish:
        return checked(self.request)

    @property
    def callback_url(self) -> str | None:
        url = self.request.get("callBackUrl")
        return url if isinstance(url, str) else None

    @property
    def image_format(self) -> str:
        return "jpeg" if Mood.WRONGTYPE in self.moods else "png" if Mood.BIG in self.moods else self.dish.image_format

    @property
    def suffix(self) -> str:
        return "png" if Mood.WRONGTYPE in self.moods or self.image_format == "png" else "jpg"


@dataclass(kw_only=True)
class Ledger:
    """All jobs. Each change is a line of the journal: written, synced, and only then acted upon."""

    folder: Path | None
    jobs: dict[str, Job] = field(default_factory=dict)
    _pen: anyio.Lock = field(default_factory=anyio.Lock)

    async def accept(self, job: Job) -> None:
        # memory first: two creates at once must see each other
        self.jobs[job.task_id] = job
        await self._note({"accepted": asdict(job)})

    async def end(self, task_id: str, ending: Ending) -> None:
        self.jobs[task_id] = replace(self.jobs[task_id], ending=ending)
        await self._note({"ended": {"task_id": task_id, **asdict(ending)}})

    async def sent(self, task_id: str, sent: Sent) -> None:
        job = self.jobs[task_id]
        self.jobs[task_id] = replace(job, sent=(*job.sent, sent))
        await self._note({"sent": {"task_id": task_id, **asdict(sent)}})

    async def answered(self, task_id: str) -> None:
        self.jobs[task_id] = replace(self.jobs[task_id], answered=True)
        await self._note({"answered": {"task_id": task_id}})

    def load(self) -> None:
        """Reads the journal; a last line torn by a kill is cut off."""
        if self.folder is None:
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / "journal.jsonl"
        whole = path.read_bytes() if path.exists() else b""
        kept = whole[: whole.rfind(b"\n") + 1]
        if kept != whole:
            os.truncate(path, len(kept))
        for line in kept.splitlines():
            self._replay(json.loads(line))

    def _replay(self, line: dict[str, Any]) -> None:
        ((event, fact),) = line.items()
        task_id = fact.pop("task_id")
        job = _job(task_id, fact) if event == "accepted" else self.jobs[task_id]
        match event:
            case "ended":
                job = replace(job, ending=_ending(fact))
            case "sent":
                job = replace(job, sent=(*job.sent, Sent(**fact)))
            case "answered":
                job = replace(job, answered=True)
        self.jobs[task_id] = job

    async def _note(self, line: dict[str, Any]) -> None:
        if self.folder:
            async with self._pen:
                await to_thread.run_sync(_append, self.folder / "journal.jsonl", json.dumps(line))


def _append(path: Path, line: str) -> None:
    with path.open("a") as journal:
        journal.write(line + "\n")
        journal.flush()
        os.fsync(journal.fileno())


def _job(task_id: str, fact: dict[str, Any]) -> Job:
    moods = {Mood(name): value for name, value in fact.pop("moods").items()}
    known = {"request", "earlier", "created_at"}
    return Job(task_id=task_id, moods=moods, **{name: fact[name] for name in known})


def _ending(fact: dict[str, Any]) -> Ending:
    return Ending(
        at=fact["at"],
        credits=fact["credits"],
        failure=Failure(**fact["failure"]) if fact["failure"] else None,
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
            await to_thread.run_sync(_store, self._path(self.folder, name), data)
        else:
            self._held[name] = data

    async def get(self, name: str) -> bytes | None:
        if self.folder:
            return await to_thread.run_sync(_stored, self._path(self.folder, name))
        return self._held.get(name)

    @staticmethod
    def _path(folder: Path, name: str) -> Path:
        # names come from outside: no part of one becomes part of a path
        return folder / "files" / hashlib.sha256(name.encode(errors="replace")).hexdigest()


def _store(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    new = path.with_suffix(f".{secrets.token_hex(8)}")  # the same name may be stored twice at once
    new.write_bytes(data)
    new.replace(path)


def _stored(path: Path) -> bytes | None:
    return path.read_bytes() if path.exists() else None


def unfinished(ledger: Ledger) -> Iterator[Job]:
    """Jobs that still owe something: a picture or a callback."""
    return (job for job in ledger.jobs.values() if not job.answered)
