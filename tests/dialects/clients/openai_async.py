"""A client of the asynchronous form of the OpenAI API, as sub2api documents it: submit, poll, download."""

from __future__ import annotations

import time
from typing import Any

import httpx


def text_to_image(base_url: str, key: str, prompt: str) -> bytes:
    body = {"model": "gpt-image-2", "prompt": prompt, "size": "1536x1024"}
    return _complete(base_url, key, "generations", json=body)


def image_to_image(base_url: str, key: str, prompt: str, image: bytes) -> bytes:
    fields = {"model": "gpt-image-2", "prompt": prompt}
    return _complete(base_url, key, "edits", data=fields, files={"image[]": ("picture.png", image, "image/png")})


def _complete(base_url: str, key: str, route: str, **body: Any) -> bytes:
    headers = {"Authorization": f"Bearer {key}"}
    with httpx.Client(base_url=base_url, headers=headers, timeout=30) as client:
        submitted = client.post(f"/v1/images/{route}/async", **body)
        assert submitted.status_code == 202, submitted.text
        while True:
            task = client.get(submitted.json()["poll_url"]).raise_for_status().json()
            if task["status"] == "completed":
                return client.get(task["image_url"]).raise_for_status().content
            assert task["status"] == "processing", task
            time.sleep(0.05)
