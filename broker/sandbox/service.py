"""What the routes of every dialect do with jobs: submit, read, cancel, wait, and download."""

from __future__ import annotations

import hashlib
import json
import mimetypes
from collections import Counter
from collections.abc import Awaitable, Callable
from contextvars import ContextVar
from dataclasses import asdict, replace
from functools import partial
from typing import Any, Final
from urllib.parse import quote

import anyio
from starlette.requests import Request
from starlette.responses import Response

from broker.sandbox.answers import HangUp
from broker.sandbox.download_faults import DownloadContext, not_found, respond_to_download
from broker.sandbox.engine import JobRunner, Options
from broker.sandbox.faults import Fault, Faults, respond_to_create
from broker.sandbox.jobs import Job, JobView, account_of
from broker.sandbox.orders import JobOrder, RejectedRequest

Handler = Callable[[Request], Awaitable[Response]]
KeyReader = Callable[[Request], str | None]


def authorization_key(scheme: str) -> KeyReader:
    """Return the reader of a key in the header `Authorization: <scheme> <key>`."""

    def read_key(request: Request) -> str | None:
        found, _, key = request.headers.get("authorization", "").partition(" ")
        return key.strip() or None if found == scheme else None

    return read_key


_KEY: Final[ContextVar[str]] = ContextVar("key")
"""Key of the request that is being answered."""


class JobService:
    """The jobs of a sandbox, with the faults that requests have."""

    def __init__(self, runner: JobRunner) -> None:
        self._runner = runner
        self._creates: Counter[str] = Counter()
        """By prompt."""
        self._reads: Counter[str] = Counter()
        self._reads_since_end: Counter[str] = Counter()
        self._downloads: Counter[str] = Counter()
        """By job id, and by file name."""

    @property
    def options(self) -> Options:
        return self._runner.options

    @property
    def base_url(self) -> str:
        """Address of the sandbox, as the last request named it."""
        return self._runner.base_url

    def guard(self, handler: Handler, read_key: KeyReader) -> Handler:
        """Return a handler for requests with the right key only; the others are rejected with 401."""

        async def guarded(request: Request) -> Response:
            key = read_key(request)
            if key is None or self.options.api_key not in {None, key} or key in self.options.refused_keys:
                raise RejectedRequest(401, "You do not have access permissions")
            self._runner.base_url = str(request.base_url).rstrip("/")
            _KEY.set(key)
            return await handler(request)

        return guarded

    def faults_of(self, prompt: str) -> Faults:
        """Return the faults that a prompt requests. Raises `RejectedRequest`."""
        return self._runner.faults_of(prompt)

    async def submit(self, order: JobOrder, request: dict[str, Any]) -> Job | Response:
        """Return a new job, or the response that a fault has instead. Raises `RejectedRequest`.

        request: as received, for `/sandbox/jobs` and the records.
        """
        self._creates[order.prompt] += 1
        faults = self.faults_of(order.prompt)
        if response := respond_to_create(faults, self._creates[order.prompt] - 1):
            return response
        job = await self._runner.accept(order, request, _KEY.get())
        if Fault.EARLY in faults:
            await self._runner.wait_until_settled(job)
        await anyio.sleep(faults.get(Fault.SLOW_ANSWER, 0))
        return HangUp() if faults.keys() & {Fault.SILENT, Fault.SILENT_LOST} else job

    def read(self, job_id: str) -> JobView | None:
        """Return a job as a status read shows it; None if it is unknown."""
        job = self._runner.store.jobs.get(job_id)
        if job is None or (self.options.are_accounts_apart and job.account != account_of(_KEY.get(""))):
            return None
        self._reads[job.id] += 1
        self._reads_since_end[job.id] += bool(job.end)
        reads, reads_since_end, faults = self._reads[job.id], self._reads_since_end[job.id], job.faults
        age = self.options.now() - job.created_at
        if reads <= faults.get(Fault.GRACE, 0) or age < faults.get(Fault.GRACE_SECONDS, 0):
            return None
        view = self._runner.view(job)
        if reads <= faults.get(Fault.UNKNOWN_STATE, 0):
            view = replace(view, stage="contemplating", urls=(), failure=None)
        if 1 < reads_since_end <= 1 + faults.get(Fault.BACKWARDS, 0):
            view = replace(view, stage="generating", urls=(), failure=None)
        return view

    def view(self, job: Job) -> JobView:
        """Return what is true about a job now; not counted as a read."""
        return self._runner.view(self._runner.store.jobs[job.id])

    async def wait(self, job: Job) -> JobView:
        """Wait until a job has ended, and its callbacks if it has any."""
        await self._runner.wait_until_settled(job)
        return self.view(job)

    def cancel(self, job_id: str) -> bool | None:
        """Stop a job; False if it has ended, None if it is unknown."""
        job = self._runner.store.jobs.get(job_id)
        return self._runner.cancel(job) if job else None

    def balance(self) -> float:
        """Return what is left on the account, in the provider's unit."""
        return self._runner.credits()

    # -- images

    async def paint(self, job: Job, index: int = 0) -> bytes:
        """Return an image of a job that has succeeded, for a response that contains it."""
        end = self._runner.store.jobs[job.id].end
        if end is None or end.failure:
            raise ValueError("the job has no image")
        return await self._runner.paint(job, end, index)

    async def respond_to_download(self, route: str, name: str) -> Response:
        """Return the response to the download of a result. route: as in `DownloadContext`."""
        job, index = self.find_result(name)
        end = job.end if job else None
        if job is None or end is None or end.failure:
            return not_found()
        self._downloads.update([job.id, name])
        context = DownloadContext(
            route=route,
            name=name,
            index=index,
            base=self.base_url,
            earlier=self._downloads[name] - 1,
            media_type=f"image/{job.image_format}",
            paint=partial(self._runner.paint, job, end, index),
        )
        return await respond_to_download(context, job.faults)

    def find_result(self, name: str) -> tuple[Job | None, int]:
        """Return job and number of `<job id>_<number>.<suffix>`."""
        job_id, _, number = name.partition(".")[0].partition("_")
        return self._runner.store.jobs.get(job_id), int(number) if number.isdecimal() else 0

    # -- files

    async def store_file(self, data: bytes, name: str | None = None) -> str:
        """Store an upload or an inline reference, and return its URL, which an order may name as a reference."""
        name = name or f"inline/{hashlib.sha256(data).hexdigest()}"
        await self._runner.files.put(name, data)
        return f"{self.base_url}/files/{quote(name)}"

    async def respond_to_file(self, name: str) -> Response:
        """Return a stored file."""
        data = await self._runner.files.get(name)
        return Response(data, media_type=media_type_of(name)) if data else not_found()

    # -- `/sandbox/jobs`

    def list_jobs(self) -> list[dict[str, Any]]:
        """Return every accepted submission, oldest first. reads, downloads: since the last start."""
        return [self._describe_job(job) for job in self._runner.store.jobs.values()]

    def _describe_job(self, job: Job) -> dict[str, Any]:
        return {
            "taskId": job.id,
            "prompt": job.order.prompt,
            "account": job.account,
            "request": job.request,
            "state": self._runner.view(job).stage,
            "createdAt": job.created_at,
            "reads": self._reads[job.id],
            "downloads": self._downloads[job.id],
            "callbacks": [asdict(sent) for sent in job.sent],
            "settled": job.is_settled,
        }


def media_type_of(name: str) -> str:
    """Return the media type that a file name suggests."""
    return mimetypes.guess_type(name)[0] or "application/octet-stream"


async def read_json(request: Request) -> dict[str, Any]:
    """Return the JSON object in a request. Raises `RejectedRequest`."""
    try:
        body = json.loads(await request.body())
    except (ValueError, RecursionError):
        raise RejectedRequest(400, "the body is not JSON") from None
    if not isinstance(body, dict):
        raise RejectedRequest(400, "the body is not a JSON object")
    return body
