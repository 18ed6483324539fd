"""A client of the Nano Banana chat service."""

from __future__ import annotations

import base64
from typing import Any

import httpx


def text_to_image(base_url: str, key: str, prompt: str) -> bytes:
    return _post(base_url, key, "/v1/generate", json={"prompt": prompt, "temperature": 0.7, "candidate_count": 1})


def image_to_image(base_url: str, key: str, prompt: str, image: bytes) -> bytes:
    files = [("files", ("image.png", image, "image/png"))]
    return _post(base_url, key, "/v1/edit", data={"prompt": prompt, "temperature": "0.7"}, files=files)


def _post(base_url: str, key: str, path: str, **body: Any) -> bytes:
    headers = {"Authorization": f"Bearer {key}"}
    answer = httpx.post(f"{base_url}{path}", headers=headers, timeout=60, **body).raise_for_status()
    (image,) = answer.json()["images"]
    return base64.b64decode(image, validate=True)
