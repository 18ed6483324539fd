"""The sandbox's doors, and how to open them on a port."""

from __future__ import annotations

import asyncio
import base64
import binascii
import hashlib
import json
import mimetypes
import socket
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any
from urllib.parse import quote, urlsplit

import anyio
import uvicorn
from starlette.applications import Starlette
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from uvicorn.protocols.http.h11_impl import H11Protocol

from broker.sandbox import dialect
from broker.sandbox.answers import HangUp, envelope, plain, reply
from broker.sandbox.jobs import Job
from broker.sandbox.menu import Refused, checked
from broker.sandbox.moods import REFUSALS, Mood, Moods, Reading, Scene, among, missing, shaped, shown, told
from broker.sandbox.options import Options
from broker.sandbox.workshop import Busy, Workshop

FRESH_FOR = 20 * 60  # seconds a link from download-url works

Door = Callable[[Request], Awaitable[Response]]


def build_sandbox(options: Options | None = None) -> Starlette:
    """The sandbox as an app; it works while its lifespan is open."""
    doors = Doors(Workshop(options or Options()))

    @asynccontextmanager
    async def lifespan(_app: Starlette) -> AsyncIterator[None]:
        async with doors.workshop.open():
            yield

    app = Starlette(routes=doors.routes(), lifespan=lifespan, exception_handlers={HTTPException: _no_such_door})
    app.state.workshop = doors.workshop
    return app


@asynccontextmanager
async def serve_sandbox(host: str = "127.0.0.1", port: int = 0, options: Options | None = None) -> AsyncIterator[str]:
    """Serves until the block is left; yields the base URL. Port 0 takes a free one."""
    app = build_sandbox(options)
    with _listening(host, port) as listener:
        base_url = _address(listener)
        workshop: Workshop = app.state.workshop
        workshop.base_url = workshop.base_url or base_url
        async with app.router.lifespan_context(app), _running(app, listener):
            yield base_url


def _listening(host: str, port: int) -> socket.socket:
    listener = socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
    # asyncio does this only for sockets it has made itself; without it every answer waits 40 ms for an ACK
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return listener


def _address(listener: socket.socket) -> str:
    host, port = listener.getsockname()[:2]
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


@asynccontextmanager
async def _running(app: Starlette, listener: socket.socket) -> AsyncIterator[None]:
    config = uvicorn.Config(
        app,
        http=_Line,
        ws="none",
        lifespan="off",
        log_config=None,
        log_level="error",
        access_log=False,
        date_header=False,
        timeout_graceful_shutdown=1,
    )
    server = _Guest(config)
    # a task of its own, not of a group: a cancelled uvicorn leaves its connections open, so it is told to exit instead
    serving = asyncio.create_task(server.serve([listener]))
    serving.add_done_callback(lambda _: server.open.set())
    try:
        await server.open.wait()
        yield
    finally:
        server.close.set()
        with anyio.CancelScope(shield=True):
            await serving


class _Guest(uvicorn.Server):
    """A server in somebody else's process: it leaves the signals alone, says when it is open, and closes when told."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.open = asyncio.Event()
        self.close = asyncio.Event()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self.open.set()

    async def main_loop(self) -> None:
        await self.close.wait()

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


class _Line(H11Protocol):
    """A connection that a request can close."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self.app_state = {**self.app_state, "hang_up": transport.close}


class Doors:
    """One method per endpoint. `code` in the body decides; HTTP says 200 to nearly everything."""

    def __init__(self, workshop: Workshop) -> None:
        self.workshop = workshop
        self._options = workshop.options
        self._met: Counter[tuple[Mood, str]] = Counter()
        self._downloads: Counter[str] = Counter()
        self._reads_since_end: Counter[str] = Counter()
        self._evil = 0

    def routes(self) -> list[Route]:
        return [
            Route("/api/v1/jobs/createTask", self._guarded(self.create), methods=["POST"]),
            Route("/api/v1/jobs/recordInfo", self._guarded(self.record)),
            Route("/api/v1/chat/credit", self._guarded(self.credit)),
            Route("/api/v1/common/download-url", self._guarded(self.download_url), methods=["POST"]),
            Route("/api/file-stream-upload", self._guarded(self.upload_stream), methods=["POST"]),
            Route("/api/file-base64-upload", self._guarded(self.upload_base64), methods=["POST"]),
            Route("/api/file-url-upload", self._guarded(self.upload_url), methods=["POST"]),
            Route("/files/{name:path}", self.file),
            Route("/evil/{name}", self.evil),
            Route("/sandbox/jobs", self.jobs),
            Route("/{door}/{name}", self.download),
        ]

    def _guarded(self, door: Door) -> Door:
        async def guarded(request: Request) -> Response:
            scheme, _, key = request.headers.get("authorization", "").partition(" ")
            if scheme != "Bearer" or not key.strip() or self._options.api_key not in {None, key}:
                return reply(401, "You do not have access permissions")
            self.workshop.base_url = self._options.base_url or _base(request)
            return await _answered(door, request)

        return guarded

    async def create(self, request: Request) -> Response:
        order = await _body(request)
        dish = checked(order)
        moods = self.workshop.moods(dish.prompt)
        if refusal := self._refusal(moods, dish.prompt):
            return refusal
        return await self._told(await self.workshop.accept(order))

    def _refusal(self, moods: Moods, prompt: str) -> Response | None:
        for mood in among(moods, REFUSALS):
            self._met[mood, prompt] += 1
            if refusal := REFUSALS[mood](moods[mood], self._met[mood, prompt] - 1):
                return refusal
        return None

    async def _told(self, job: Job) -> Response:
        """The answer to a create, given when and as the job's moods want it."""
        if Mood.EARLY in job.moods:
            await self.workshop.settled(job)
        await anyio.sleep(job.moods.get(Mood.SLOW_ANSWER, 0))
        if job.moods.keys() & {Mood.SILENT, Mood.SILENT_LOST}:
            return HangUp()
        ids = {"taskId": job.task_id, "recordId": job.task_id}
        return plain(shaped(envelope(200, "success", ids), job.moods))

    async def record(self, request: Request) -> Response:
        task_id = request.query_params.get("taskId", "")
        job = self.workshop.ledger.jobs.get(task_id)
        if not task_id:
            return reply(400, "taskId parameter is required")
        found = told(self._reading(job, _base(request)), job.moods) if job else None
        if job is None or found is None:
            return reply(422, "recordInfo is null")
        return plain(shaped(envelope(200, "success", found), job.moods))

    def _reading(self, job: Job, base: str) -> Reading:
        self.workshop.reads[job.task_id] += 1
        self._reads_since_end[job.task_id] += bool(job.ending)
        stage = self.workshop.stages.get(job.task_id, "waiting")
        return Reading(
            record=dialect.record(job, stage, self.workshop.url(job, base)),
            reads=self.workshop.reads[job.task_id],
            reads_since_end=self._reads_since_end[job.task_id],
            age=self._options.now() - job.created_at,
        )

    async def credit(self, _request: Request) -> Response:
        return plain(envelope(200, "success", self.workshop.credits()))

    async def download(self, request: Request) -> Response:
        door, name = request.path_params["door"], request.path_params["name"]
        job, index = self._named(name)
        ending = job.ending if job else None
        if job is None or ending is None or ending.failure or not self._open(door, request):
            return missing()
        self._downloads[job.task_id] += 1
        self._downloads[name] += 1
        scene = Scene(
            door=door,
            name=name,
            index=index,
            base=_base(request),
            earlier=self._downloads[name] - 1,
            picture=lambda: self.workshop.picture(job, ending, index),
        )
        return await shown(scene, job.moods)

    def _named(self, name: str) -> tuple[Job | None, int]:
        """The job and number in `<task id>_<number>.<suffix>`."""
        task_id, _, number = name.partition(".")[0].partition("_")
        return self.workshop.ledger.jobs.get(task_id), int(number) if number.isdecimal() else 0

    def _open(self, door: str, request: Request) -> bool:
        until = request.query_params.get("until", "")
        fresh = until.isdecimal() and self._options.now() <= int(until)
        return {"p": True, "moved": True, "fresh": fresh}.get(door, False)

    async def download_url(self, request: Request) -> Response:
        url = str((await _body(request)).get("url", ""))
        name = urlsplit(url).path.rpartition("/")[2]
        if self._named(name)[0] is None:
            return reply(422, "the url was not generated here")
        until = int(self._options.now()) + FRESH_FOR
        return plain(envelope(200, "success", f"{_base(request)}/fresh/{name}?until={until}"))

    async def evil(self, _request: Request) -> Response:
        """Where a forged callback points to: whoever comes here has believed it."""
        self._evil += 1
        return Response(b"gotcha", media_type="image/png")

    async def upload_stream(self, request: Request) -> Response:
        async with request.form() as form:
            file = form.get("file")
            if not isinstance(file, UploadFile):
                return _not_uploaded(400, "file is required")
            name = str(form.get("fileName") or file.filename or "")
            return await self._uploaded(request, str(form.get("uploadPath") or ""), name, await file.read())

    async def upload_base64(self, request: Request) -> Response:
        fields = await _body(request)
        encoded = str(fields.get("base64Data") or "").rpartition(",")[2]
        try:
            data = base64.b64decode(encoded, validate=True)
        except binascii.Error:
            return _not_uploaded(400, "base64Data is not base64")
        return await self._uploaded(request, *_place(fields), data)

    async def upload_url(self, request: Request) -> Response:
        fields = await _body(request)
        try:
            data = await self._options.fetch(str(fields.get("fileUrl") or ""))
        except OSError as error:
            return _not_uploaded(500, f"fileUrl could not be fetched: {error}")
        return await self._uploaded(request, *_place(fields), data)

    async def _uploaded(self, request: Request, folder: str, name: str, data: bytes) -> Response:
        if not folder or folder != folder.strip("/") or not data:
            return _not_uploaded(400, "uploadPath without slashes at its ends and some content are required")
        name = name or hashlib.sha256(data).hexdigest()[:16]
        await self.workshop.files.put(f"{folder}/{name}", data)
        facts = {
            "fileName": name,
            "filePath": f"{folder}/{name}",
            "downloadUrl": f"{_base(request)}/files/{quote(f'{folder}/{name}')}",
            "fileSize": len(data),
            "mimeType": _media_type(name),
            "uploadedAt": datetime.fromtimestamp(self._options.now(), UTC).isoformat(),
        }
        return plain({"success": True, **envelope(200, "File uploaded successfully", facts)})

    async def file(self, request: Request) -> Response:
        name = request.path_params["name"]
        data = await self.workshop.files.get(name)
        return Response(data, media_type=_media_type(name)) if data else missing()

    async def jobs(self, _request: Request) -> Response:
        """Every accepted submission, oldest first. reads, downloads: since the last start.

        evilDownloads: of results that a forged callback has named.
        """
        jobs = [self._entry(job) for job in self.workshop.ledger.jobs.values()]
        return plain({"jobs": jobs, "evilDownloads": self._evil})

    def _entry(self, job: Job) -> dict[str, Any]:
        stage = self.workshop.stages.get(job.task_id, "waiting")
        record = dialect.record(job, stage, self.workshop.url(job, self.workshop.base_url))
        return {
            "taskId": job.task_id,
            "prompt": job.dish.prompt,
            "request": job.request,
            "state": record["state"],
            "createdAt": job.created_at,
            "reads": self.workshop.reads[job.task_id],
            "downloads": self._downloads[job.task_id],
            "callbacks": [asdict(sent) for sent in job.sent],
            "settled": job.answered,
        }


async def _answered(door: Door, request: Request) -> Response:
    try:
        return await door(request)
    except Busy:
        return reply(429, "Rate limit exceeded", status=429)
    except Refused as refused:
        return reply(refused.code, refused.msg)


async def _body(request: Request) -> dict[str, Any]:
    try:
        body = json.loads(await request.body())
    except (ValueError, RecursionError):
        raise Refused(400, "the body is not JSON") from None
    if not isinstance(body, dict):
        raise Refused(400, "the body is not a JSON object")
    return body


def _base(request: Request) -> str:
    return str(request.base_url).rstrip("/")


def _place(fields: dict[str, Any]) -> tuple[str, str]:
    return str(fields.get("uploadPath") or ""), str(fields.get("fileName") or "")


def _media_type(name: str) -> str:
    return mimetypes.guess_type(name)[0] or "application/octet-stream"


def _not_uploaded(code: int, msg: str) -> Response:
    return plain({"success": False, **envelope(code, msg)})


async def _no_such_door(_request: Request, error: Exception) -> Response:
    status = error.status_code if isinstance(error, HTTPException) else 500
    return reply(status, "Not Found" if status == 404 else "Method Not Allowed", status=status)
