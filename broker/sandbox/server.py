"""HTTP routes of the sandbox, and the server on a port."""

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
from broker.sandbox.answers import HangUp, envelope, envelope_response, json_response
from broker.sandbox.download_faults import DownloadContext, not_found, respond_to_download
from broker.sandbox.engine import DownloadFailed, JobRunner, WindowFull
from broker.sandbox.faults import (
    CREATE_FAULTS,
    Fault,
    Faults,
    StatusRead,
    apply_envelope_faults,
    apply_status_faults,
    select_faults,
)
from broker.sandbox.jobs import Job
from broker.sandbox.models import RejectedRequest, validate_request
from broker.sandbox.options import Options

FRESH_FOR = 20 * 60  # seconds a link from download-url works

Handler = Callable[[Request], Awaitable[Response]]


def build_sandbox(options: Options | None = None) -> Starlette:
    """Return the sandbox as an ASGI application; jobs run while its lifespan is open."""
    routes = SandboxRoutes(JobRunner(options or Options()))

    @asynccontextmanager
    async def lifespan(_app: Starlette) -> AsyncIterator[None]:
        async with routes.runner.open():
            yield

    app = Starlette(routes=routes.build_routes(), lifespan=lifespan, exception_handlers={HTTPException: _unknown_route})
    app.state.runner = routes.runner
    return app


@asynccontextmanager
async def serve_sandbox(host: str = "127.0.0.1", port: int = 0, options: Options | None = None) -> AsyncIterator[str]:
    """Serve for the duration of the context and yield the base URL. Port 0 takes any free one."""
    app = build_sandbox(options)
    with _bind_socket(host, port) as listener:
        base_url = _socket_url(listener)
        runner: JobRunner = app.state.runner
        runner.base_url = runner.base_url or base_url
        async with app.router.lifespan_context(app), _run_server(app, listener):
            yield base_url


def _bind_socket(host: str, port: int) -> socket.socket:
    listener = socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
    # asyncio does this only for its own sockets; without it every response waits 40 ms for an ACK
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return listener


def _socket_url(listener: socket.socket) -> str:
    host, port = listener.getsockname()[:2]
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


@asynccontextmanager
async def _run_server(app: Starlette, listener: socket.socket) -> AsyncIterator[None]:
    config = uvicorn.Config(
        app,
        http=_ClosableProtocol,
        ws="none",
        lifespan="off",
        log_config=None,
        log_level="error",
        access_log=False,
        date_header=False,
        timeout_graceful_shutdown=1,
    )
    server = _SandboxServer(config)
    # not in a task group: a cancelled uvicorn leaves its connections open, so it gets the close event instead
    serving = asyncio.create_task(server.serve([listener]))
    serving.add_done_callback(lambda _: server.open.set())
    try:
        await server.open.wait()
        yield
    finally:
        server.close.set()
        with anyio.CancelScope(shield=True):
            await serving


class _SandboxServer(uvicorn.Server):
    """Server without signal handlers, with events for its start and its end."""

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


class _ClosableProtocol(H11Protocol):
    """Connection that a handler can close."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self.app_state = {**self.app_state, "hang_up": transport.close}


class SandboxRoutes:
    """One method per endpoint. `code` in the body decides; nearly every HTTP status is 200."""

    def __init__(self, runner: JobRunner) -> None:
        self.runner = runner
        self._options = runner.options
        self._met: Counter[tuple[Fault, str]] = Counter()
        self._downloads: Counter[str] = Counter()
        self._reads_since_end: Counter[str] = Counter()
        self._evil = 0

    def build_routes(self) -> list[Route]:
        return [
            Route("/api/v1/jobs/createTask", self._require_key(self.create), methods=["POST"]),
            Route("/api/v1/jobs/recordInfo", self._require_key(self.record)),
            Route("/api/v1/chat/credit", self._require_key(self.credit)),
            Route("/api/v1/common/download-url", self._require_key(self.download_url), methods=["POST"]),
            Route("/api/file-stream-upload", self._require_key(self.upload_stream), methods=["POST"]),
            Route("/api/file-base64-upload", self._require_key(self.upload_base64), methods=["POST"]),
            Route("/api/file-url-upload", self._require_key(self.upload_url), methods=["POST"]),
            Route("/files/{name:path}", self.file),
            Route("/evil/{name}", self.evil),
            Route("/sandbox/jobs", self.jobs),
            Route("/{route}/{name}", self.download),
        ]

    def _require_key(self, handler: Handler) -> Handler:
        async def guarded(request: Request) -> Response:
            scheme, _, key = request.headers.get("authorization", "").partition(" ")
            if scheme != "Bearer" or not key.strip() or self._options.api_key not in {None, key}:
                return envelope_response(401, "You do not have access permissions")
            self.runner.base_url = self._options.base_url or _base_url(request)
            return await _respond_with_envelope(handler, request)

        return guarded

    async def create(self, request: Request) -> Response:
        body = await _read_body(request)
        order = validate_request(body)
        faults = self.runner.faults_of(order.prompt)
        if response := self._create_fault(faults, order.prompt):
            return response
        return await self._respond_to_create(await self.runner.accept(body))

    def _create_fault(self, faults: Faults, prompt: str) -> Response | None:
        for fault in select_faults(faults, CREATE_FAULTS):
            self._met[fault, prompt] += 1
            if response := CREATE_FAULTS[fault](faults[fault], self._met[fault, prompt] - 1):
                return response
        return None

    async def _respond_to_create(self, job: Job) -> Response:
        """Return the response to a create, delayed or dropped as the faults require."""
        if Fault.EARLY in job.faults:
            await self.runner.wait_until_settled(job)
        await anyio.sleep(job.faults.get(Fault.SLOW_ANSWER, 0))
        if job.faults.keys() & {Fault.SILENT, Fault.SILENT_LOST}:
            return HangUp()
        ids = {"taskId": job.task_id, "recordId": job.task_id}
        return json_response(apply_envelope_faults(envelope(200, "success", ids), job.faults))

    async def record(self, request: Request) -> Response:
        task_id = request.query_params.get("taskId", "")
        job = self.runner.store.jobs.get(task_id)
        if not task_id:
            return envelope_response(400, "taskId parameter is required")
        found = apply_status_faults(self._read_status(job, _base_url(request)), job.faults) if job else None
        if job is None or found is None:
            return envelope_response(422, "recordInfo is null")
        return json_response(apply_envelope_faults(envelope(200, "success", found), job.faults))

    def _read_status(self, job: Job, base: str) -> StatusRead:
        self.runner.reads[job.task_id] += 1
        self._reads_since_end[job.task_id] += bool(job.end)
        stage = self.runner.stages.get(job.task_id, "waiting")
        return StatusRead(
            record=dialect.build_record(job, stage, self.runner.url(job, base)),
            reads=self.runner.reads[job.task_id],
            reads_since_end=self._reads_since_end[job.task_id],
            age=self._options.now() - job.created_at,
        )

    async def credit(self, _request: Request) -> Response:
        return json_response(envelope(200, "success", self.runner.credits()))

    async def download(self, request: Request) -> Response:
        route, name = request.path_params["route"], request.path_params["name"]
        job, index = self._find_job(name)
        end = job.end if job else None
        if job is None or end is None or end.failure or not self._is_available(route, request):
            return not_found()
        self._downloads[job.task_id] += 1
        self._downloads[name] += 1
        context = DownloadContext(
            route=route,
            name=name,
            index=index,
            base=_base_url(request),
            earlier=self._downloads[name] - 1,
            image=lambda: self.runner.paint(job, end, index),
        )
        return await respond_to_download(context, job.faults)

    def _find_job(self, name: str) -> tuple[Job | None, int]:
        """Return job and number of `<task id>_<number>.<suffix>`."""
        task_id, _, number = name.partition(".")[0].partition("_")
        return self.runner.store.jobs.get(task_id), int(number) if number.isdecimal() else 0

    def _is_available(self, route: str, request: Request) -> bool:
        until = request.query_params.get("until", "")
        fresh = until.isdecimal() and self._options.now() <= int(until)
        return {"p": True, "moved": True, "fresh": fresh}.get(route, False)

    async def download_url(self, request: Request) -> Response:
        url = str((await _read_body(request)).get("url", ""))
        name = urlsplit(url).path.rpartition("/")[2]
        if self._find_job(name)[0] is None:
            return envelope_response(422, "the url was not generated here")
        until = int(self._options.now()) + FRESH_FOR
        return json_response(envelope(200, "success", f"{_base_url(request)}/fresh/{name}?until={until}"))

    async def evil(self, _request: Request) -> Response:
        """Count downloads from the URL of forged callbacks: such a client has trusted one."""
        self._evil += 1
        return Response(b"gotcha", media_type="image/png")

    async def upload_stream(self, request: Request) -> Response:
        async with request.form() as form:
            file = form.get("file")
            if not isinstance(file, UploadFile):
                return _upload_error(400, "file is required")
            name = str(form.get("fileName") or file.filename or "")
            return await self._store_upload(request, str(form.get("uploadPath") or ""), name, await file.read())

    async def upload_base64(self, request: Request) -> Response:
        fields = await _read_body(request)
        encoded = str(fields.get("base64Data") or "").rpartition(",")[2]
        try:
            data = base64.b64decode(encoded, validate=True)
        except binascii.Error:
            return _upload_error(400, "base64Data is not base64")
        return await self._store_upload(request, *_upload_target(fields), data)

    async def upload_url(self, request: Request) -> Response:
        fields = await _read_body(request)
        try:
            data = await self.runner.fetch(str(fields.get("fileUrl") or ""))
        except DownloadFailed as error:
            return _upload_error(500, f"fileUrl could not be fetched: {error}")
        return await self._store_upload(request, *_upload_target(fields), data)

    async def _store_upload(self, request: Request, folder: str, name: str, data: bytes) -> Response:
        if not folder or folder != folder.strip("/") or not data:
            return _upload_error(400, "uploadPath without slashes at its ends and some content are required")
        name = name or hashlib.sha256(data).hexdigest()[:16]
        await self.runner.files.put(f"{folder}/{name}", data)
        facts = {
            "fileName": name,
            "filePath": f"{folder}/{name}",
            "downloadUrl": f"{_base_url(request)}/files/{quote(f'{folder}/{name}')}",
            "fileSize": len(data),
            "mimeType": _media_type(name),
            "uploadedAt": datetime.fromtimestamp(self._options.now(), UTC).isoformat(),
        }
        return json_response({"success": True, **envelope(200, "File uploaded successfully", facts)})

    async def file(self, request: Request) -> Response:
        name = request.path_params["name"]
        data = await self.runner.files.get(name)
        return Response(data, media_type=_media_type(name)) if data else not_found()

    async def jobs(self, _request: Request) -> Response:
        """List accepted submissions, oldest first.

        reads, downloads: since the last start. evilDownloads: of results named by forged callbacks.
        """
        jobs = [self._describe_job(job) for job in self.runner.store.jobs.values()]
        return json_response({"jobs": jobs, "evilDownloads": self._evil})

    def _describe_job(self, job: Job) -> dict[str, Any]:
        stage = self.runner.stages.get(job.task_id, "waiting")
        record = dialect.build_record(job, stage, self.runner.url(job, self.runner.base_url))
        return {
            "taskId": job.task_id,
            "prompt": job.order.prompt,
            "request": job.request,
            "state": record["state"],
            "createdAt": job.created_at,
            "reads": self.runner.reads[job.task_id],
            "downloads": self._downloads[job.task_id],
            "callbacks": [asdict(sent) for sent in job.sent],
            "settled": job.answered,
        }


async def _respond_with_envelope(handler: Handler, request: Request) -> Response:
    try:
        return await handler(request)
    except WindowFull:
        return envelope_response(429, "Rate limit exceeded", status=429)
    except RejectedRequest as refused:
        return envelope_response(refused.code, refused.msg)


async def _read_body(request: Request) -> dict[str, Any]:
    try:
        body = json.loads(await request.body())
    except (ValueError, RecursionError):
        raise RejectedRequest(400, "the body is not JSON") from None
    if not isinstance(body, dict):
        raise RejectedRequest(400, "the body is not a JSON object")
    return body


def _base_url(request: Request) -> str:
    return str(request.base_url).rstrip("/")


def _upload_target(fields: dict[str, Any]) -> tuple[str, str]:
    return str(fields.get("uploadPath") or ""), str(fields.get("fileName") or "")


def _media_type(name: str) -> str:
    return mimetypes.guess_type(name)[0] or "application/octet-stream"


def _upload_error(code: int, msg: str) -> Response:
    return json_response({"success": False, **envelope(code, msg)})


async def _unknown_route(_request: Request, error: Exception) -> Response:
    status = error.status_code if isinstance(error, HTTPException) else 500
    return envelope_response(status, "Not Found" if status == 404 else "Method Not Allowed", status=status)
