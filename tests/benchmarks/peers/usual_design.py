"""The usual design: tasks in a dict, the image downloaded inside the webhook; nothing is durable or checked."""

from __future__ import annotations

import json
import os
import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

PROVIDER = os.environ.get("PROVIDER", "")
ADDRESS = os.environ.get("ADDRESS", "")
FOLDER = Path(os.environ.get("FOLDER", "."))
tasks: dict[str, dict[str, Any]] = {}


@asynccontextmanager
async def lifespan(app: Starlette) -> AsyncIterator[None]:
    async with httpx.AsyncClient(timeout=60) as client:
        app.state.client = client
        yield


async def create(request: Request) -> Response:
    order, task_id = await request.json(), secrets.token_hex(16)
    tasks[task_id] = {"id": task_id, "status": "processing", "image": None}
    body = {
        "model": "google/nano-banana",
        "input": {"prompt": order["prompt"]},
        "callBackUrl": f"{ADDRESS}/webhook?task={task_id}",
    }
    answer = await request.app.state.client.post(f"{PROVIDER}/api/v1/jobs/createTask", json=body)
    tasks[task_id]["job"] = answer.json()["data"]["taskId"]
    return JSONResponse({"taskId": task_id}, 202)


async def poll(request: Request) -> Response:
    task = tasks.get(request.path_params["id"])
    return JSONResponse({"data": task}) if task else JSONResponse({"error": "not found"}, 404)


async def webhook(request: Request) -> Response:
    data = (await request.json())["data"]
    task = tasks[request.query_params["task"]]
    for url in json.loads(data["resultJson"])["resultUrls"]:
        image = await request.app.state.client.get(url)
        (FOLDER / f"{task['id']}.png").write_bytes(image.content)
        task["image"] = f"{ADDRESS}/images/{task['id']}.png"
    task["status"] = "completed"
    return JSONResponse({"status": "ok"})


app = Starlette(
    lifespan=lifespan,
    routes=[
        Route("/", lambda _: Response()),
        Route("/api/generate/image", create, methods=["POST"]),
        Route("/api/task/{id}", poll),
        Route("/webhook", webhook, methods=["POST"]),
    ],
)
