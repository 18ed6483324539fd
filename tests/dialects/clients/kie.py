"""A client of kie.ai: uploads references, orders, polls, downloads."""

from __future__ import annotations

import json
import time
from typing import Any

import httpx

POLL_SECONDS = 0.05


def text_to_image(base_url: str, key: str, prompt: str) -> bytes:
    with _client(base_url, key) as client:
        return _generate(client, "google/nano-banana", prompt=prompt, image_size="1:1")


def image_to_image(base_url: str, key: str, prompt: str, image: bytes) -> bytes:
    with _client(base_url, key) as client:
        files, form = {"file": ("a.png", image, "image/png")}, {"uploadPath": "references", "fileName": "a.png"}
        url = _data(client.post("/api/file-stream-upload", files=files, data=form))["downloadUrl"]
        return _generate(client, "google/nano-banana-edit", prompt=prompt, image_urls=[url])


def _client(base_url: str, key: str) -> httpx.Client:
    return httpx.Client(base_url=base_url, headers={"Authorization": f"Bearer {key}"}, timeout=30)


def _generate(client: httpx.Client, model: str, **fields: Any) -> bytes:
    task = _data(client.post("/api/v1/jobs/createTask", json={"model": model, "input": fields}))["taskId"]
    for _ in range(int(60 / POLL_SECONDS)):
        record = _data(client.get("/api/v1/jobs/recordInfo", params={"taskId": task}))
        if record["state"] == "success":
            (url,) = json.loads(record["resultJson"])["resultUrls"]
            return httpx.get(url).raise_for_status().content  # without the key
        if record["state"] == "fail":
            raise RuntimeError(f"{record['failCode']}: {record['failMsg']}")
        time.sleep(POLL_SECONDS)
    raise TimeoutError


def _data(answer: httpx.Response) -> Any:
    """kie.ai's code decides, whatever the status is."""
    document = answer.json()
    if document["code"] != 200:
        raise RuntimeError(f"{document['code']}: {document['msg']}")
    return document["data"]
