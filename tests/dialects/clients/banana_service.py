"""A client of BananaService."""

from __future__ import annotations

import base64
from typing import Any

import httpx


def text_to_image(base_url: str, key: str, prompt: str) -> bytes:
    return _generate(base_url, key, prompt=prompt, model="gemini-2.5-flash-image")


def image_to_image(base_url: str, key: str, prompt: str, image: bytes) -> bytes:
    return _generate(base_url, key, prompt=prompt, image_base64=base64.b64encode(image).decode())


def _generate(base_url: str, key: str, **body: Any) -> bytes:
    headers = {"Authorization": f"Bearer {key}"}
    answer = httpx.post(f"{base_url}/generate", json=body, headers=headers, timeout=60).raise_for_status()
    (image,) = answer.json()["images"]
    return base64.b64decode(image, validate=True)
