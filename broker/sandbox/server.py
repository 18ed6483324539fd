"""HTTP routes of the sandbox, and the server on a port."""

from __future__ import annotations

import asyncio
import hashlib
import json
import mimetypes
import socket
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import asdict
from datetime import UTC, datetime
from functools import partial
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
from broker.sandbox.engine import JobRunner, Options
from broker.sandbox.faults import Fault, Faults, apply_envelope_faults, apply_status_faults, respond_to_create
from broker.sandbox.jobs import Job
from broker.sandbox.models import RejectedRequest, validate_request

FRESH_SECONDS = 20 * 60
"""Lifetime of a link from download-url."""

Handler = Callable[[Request], Awaitable[Response]]


@asynccontextmanager
async def serve_sandbox(host: str = "127.0.0.1", port: int = 0, options: Options | None = None) -> AsyncIterator[str]:
    """Serve for the duration of the context and yield the base URL. Port 0 takes any free one."""
    runner = JobRunner(options or Options())
    handlers = {HTTPException: _respond_to_unknown, RejectedRequest: _respond_to_rejected}
    app = Starlette(routes=SandboxRoutes(runner).build_routes(), exception_handlers=handlers)
    with _bind_socket(host, port) as listener:
        runner.base_url = base_url = _socket_url(listener)
        async with runner.open(), _run_server(app, listener):
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
    config.load()
    # phase by phase: serve() would take over the signals of the process, and look ten times a second for its end
    server = uvicorn.Server(config)
    server.lifespan = config.lifespan_class(config)
    await server.startup([listener])
    try:
        yield
    finally:
        with anyio.CancelScope(shield=True):
            # asyncio drops a connection accepted just before its listener closes: first let it have its protocol
            asyncio.get_running_loop().remove_reader(listener)
            for _ in range(2):
                await asyncio.sleep(0)
            await server.shutdown([listener])


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
        self._creates: Counter[str] = Counter()
        """By prompt."""
        self._reads: Counter[str] = Counter()
        self._reads_since_end: Counter[str] = Counter()
        self._downloads: Counter[str] = Counter()
        """By task id, and by file name."""
        self._evil_downloads = 0

    def build_routes(self) -> list[Route]:
        return [
            Route("/api/v1/jobs/createTask", self._require_key(self.create_task), methods=["POST"]),
            Route("/api/v1/jobs/recordInfo", self._require_key(self.get_record)),
            Route("/api/v1/chat/credit", self._require_key(self.get_credits)),
            Route("/api/v1/common/download-url", self._require_key(self.create_download_url), methods=["POST"]),
            Route("/api/file-stream-upload", self._require_key(self.upload_file), methods=["POST"]),
            Route("/files/{name:path}", self.get_file),
            Route("/evil/{name}", self.count_evil_download),
            Route("/sandbox/jobs", self.list_jobs),
            Route("/{route}/{name}", self.download_result),
        ]

    def _require_key(self, handler: Handler) -> Handler:
        async def guarded(request: Request) -> Response:
            scheme, _, key = request.headers.get("authorization", "").partition(" ")
            if scheme != "Bearer" or not key.strip() or self._options.api_key not in {None, key}:
                raise RejectedRequest(401, "You do not have access permissions")
            self.runner.base_url = _base_url(request)
            return await handler(request)

        return guarded

    async def create_task(self, request: Request) -> Response:
        body = await _read_body(request)
        prompt = validate_request(body).prompt
        self._creates[prompt] += 1
        if response := respond_to_create(self.runner.faults_of(prompt), self._creates[prompt] - 1):
            return response
        job = await self.runner.accept(body)
        if Fault.EARLY in job.faults:
            await self.runner.wait_until_settled(job)
        await anyio.sleep(job.faults.get(Fault.SLOW_ANSWER, 0))
        if job.faults.keys() & {Fault.SILENT, Fault.SILENT_LOST}:
            return HangUp()
        return _success(job.faults, {"taskId": job.task_id, "recordId": job.task_id})

    async def get_record(self, request: Request) -> Response:
        task_id = request.query_params.get("taskId", "")
        job = self.runner.store.jobs.get(task_id)
        if not task_id:
            raise RejectedRequest(400, "taskId parameter is required")
        if job is None:
            raise RejectedRequest(422, "recordInfo is null")
        self._reads[task_id] += 1
        self._reads_since_end[task_id] += bool(job.end)
        record = apply_status_faults(
            self._build_record(job, _base_url(request)),
            job.faults,
            reads=self._reads[task_id],
            reads_since_end=self._reads_since_end[task_id],
            age=self._options.now() - job.created_at,
        )
        if record is None:
            raise RejectedRequest(422, "recordInfo is null")
        return _success(job.faults, record)

    def _build_record(self, job: Job, base: str) -> dict[str, Any]:
        stage = self.runner.stages.get(job.task_id, "waiting")
        return dialect.build_record(job, stage, self.runner.result_url(job, base))

    async def get_credits(self, _request: Request) -> Response:
        return _success({}, self.runner.credits())

    async def download_result(self, request: Request) -> Response:
        route, name = request.path_params["route"], request.path_params["name"]
        job, index = self._find_job(name)
        end = job.end if job else None
        if job is None or end is None or end.failure or not self._is_available(route, request):
            return not_found()
        self._downloads.update([job.task_id, name])
        context = DownloadContext(
            route=route,
            name=name,
            index=index,
            base=_base_url(request),
            earlier=self._downloads[name] - 1,
            media_type=f"image/{job.image_format}",
            paint=partial(self.runner.paint, job, end, index),
        )
        return await respond_to_download(context, job.faults)

    def _find_job(self, name: str) -> tuple[Job | None, int]:
        """Return job and number of `<task id>_<number>.<suffix>`."""
        task_id, _, number = name.partition(".")[0].partition("_")
        return self.runner.store.jobs.get(task_id), int(number) if number.isdecimal() else 0

    def _is_available(self, route: str, request: Request) -> bool:
        until = request.query_params.get("until", "")
        is_fresh = until.isdecimal() and self._options.now() <= int(until)
        return route in {"p", "moved"} or (route == "fresh" and is_fresh)

    async def create_download_url(self, request: Request) -> Response:
        url = str((await _read_body(request)).get("url", ""))
        name = urlsplit(url).path.rpartition("/")[2]
        if self._find_job(name)[0] is None:
            raise RejectedRequest(422, "the url was not generated here")
        until = int(self._options.now()) + FRESH_SECONDS
        return _success({}, f"{_base_url(request)}/fresh/{name}?until={until}")

    async def count_evil_download(self, _request: Request) -> Response:
        """Count downloads from the URL of forged callbacks: such a client has trusted one."""
        self._evil_downloads += 1
        return Response(b"gotcha", media_type="image/png")

    async def upload_file(self, request: Request) -> Response:
        async with request.form() as form:
            file = form.get("file")
            if not isinstance(file, UploadFile):
                raise RejectedUpload(400, "file is required")
            data = await file.read()
            name = str(form.get("fileName") or file.filename or hashlib.sha256(data).hexdigest()[:16])
            folder = str(form.get("uploadPath") or "")
        if not folder or folder != folder.strip("/") or not data:
            raise RejectedUpload(400, "uploadPath without slashes at its ends and some content are required")
        path = f"{folder}/{name}"
        await self.runner.files.put(path, data)
        stored = {
            "fileName": name,
            "filePath": path,
            "downloadUrl": f"{_base_url(request)}/files/{quote(path)}",
            "fileSize": len(data),
            "mimeType": _media_type(name),
            "uploadedAt": datetime.fromtimestamp(self._options.now(), UTC).isoformat(),
        }
        return json_response({"success": True, **envelope(200, "File uploaded successfully", stored)})

    async def get_file(self, request: Request) -> Response:
        name = request.path_params["name"]
        data = await self.runner.files.get(name)
        return Response(data, media_type=_media_type(name)) if data else not_found()

    async def list_jobs(self, _request: Request) -> Response:
        """List accepted submissions, oldest first.

        reads, downloads: since the last start. evilDownloads: of results named by forged callbacks.
        """
        jobs = [self._describe_job(job) for job in self.runner.store.jobs.values()]
        return json_response({"jobs": jobs, "evilDownloads": self._evil_downloads})

    def _describe_job(self, job: Job) -> dict[str, Any]:
        return {
            "taskId": job.task_id,
            "prompt": job.order.prompt,
            "request": job.request,
            "state": self._build_record(job, self.runner.base_url)["state"],
            "createdAt": job.created_at,
            "reads": self._reads[job.task_id],
            "downloads": self._downloads[job.task_id],
            "callbacks": [asdict(sent) for sent in job.sent],
            "settled": job.is_settled,
        }


class RejectedUpload(RejectedRequest):
    """A rejected request to the file API, whose envelope has one more field."""


def _success(faults: Faults, data: Any) -> Response:
    return json_response(apply_envelope_faults(envelope(200, "success", data), faults))


async def _respond_to_rejected(_request: Request, error: Any) -> Response:
    extra = {"success": False} if isinstance(error, RejectedUpload) else {}
    return json_response({**extra, **envelope(error.code, error.msg)}, status=error.status)


async def _respond_to_unknown(_request: Request, error: Any) -> Response:
    return envelope_response(error.status_code, error.detail, status=error.status_code)


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


def _media_type(name: str) -> str:
    return mimetypes.guess_type(name)[0] or "application/octet-stream"
