"""The other side of the example: a small HTTP server that completes each job and calls back at once."""

from __future__ import annotations

import asyncio
import io
import json
import socket
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing
from dataclasses import dataclass, field
from typing import Any

import httpx
import uvicorn
from PIL import Image
from starlette.applications import Starlette
from starlette.background import BackgroundTask
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from webhooks.signatures.standard import StandardSignature


@dataclass(kw_only=True)
class ExampleUpstream:
    """Its jobs, in the order of submission."""

    key: str
    signature: StandardSignature
    url: str
    client: httpx.AsyncClient
    jobs: list[dict[str, Any]] = field(default_factory=list)
    callback_statuses: list[int] = field(default_factory=list)

    async def submit(self, request: Request) -> Response:
        if request.headers.get("authorization") != f"Key {self.key}":
            return JSONResponse({"error": {"message": "unknown key"}}, status_code=401)
        body = await request.json()
        self.jobs.append(body)
        job_id = str(len(self.jobs))
        response = JSONResponse({"id": job_id, "status": "queued"}, status_code=202)
        if url := body.get("webhook"):
            response.background = BackgroundTask(self._call_back, job_id, url)
        return response

    async def show(self, request: Request) -> Response:
        return JSONResponse(self._done(request.path_params["job"]))

    async def download(self, _: Request) -> Response:
        file = io.BytesIO()
        Image.new("RGB", (16, 9), "red").save(file, "PNG")
        return Response(file.getvalue(), media_type="image/png")

    async def _call_back(self, job_id: str, url: str) -> None:
        body = json.dumps(self._done(job_id)).encode()
        headers = self.signature.sign(f"msg_{job_id}", time.time(), body)
        answer = await self.client.post(url, content=body, headers={"content-type": "application/json", **headers})
        self.callback_statuses.append(answer.status_code)

    def _done(self, job_id: str) -> dict[str, Any]:
        return {"id": job_id, "status": "succeeded", "url": f"{self.url}/files/{job_id}.png"}


@asynccontextmanager
async def serve_upstream(key: str, signature: StandardSignature) -> AsyncIterator[ExampleUpstream]:
    """Serve on a free port while the block runs."""
    with closing(socket.create_server(("127.0.0.1", 0))) as sock:
        url = f"http://127.0.0.1:{sock.getsockname()[1]}"
        async with httpx.AsyncClient(verify=False, trust_env=False) as client:
            upstream = ExampleUpstream(key=key, signature=signature, url=url, client=client)
            app = Starlette(
                routes=[
                    Route("/v1/images", upstream.submit, methods=["POST"]),
                    Route("/v1/images/{job}", upstream.show),
                    Route("/files/{name}", upstream.download),
                ]
            )
            server = uvicorn.Server(uvicorn.Config(app, lifespan="off", ws="none", log_config=None))
            serving = asyncio.create_task(server.serve([sock]))
            try:
                yield upstream
            finally:
                server.should_exit = True
                await serving
