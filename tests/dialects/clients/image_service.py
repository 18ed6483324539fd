"""A client of the image service."""

from __future__ import annotations

import base64
import time
from typing import Any

import httpx

POLL_SECONDS = 0.05


def text_to_image(base_url: str, key: str, prompt: str) -> bytes:
    return _generate(
        base_url, key, prompt=prompt, resolution="1K", aspect_ratio="16:9", generation_mode="text-to-image"
    )


def image_to_image(base_url: str, key: str, prompt: str, image: bytes) -> bytes:
    encoded = f"data:image/png;base64,{base64.b64encode(image).decode()}"
    return _generate(base_url, key, prompt=prompt, generation_mode="image-to-image", reference_images=[encoded])


def _generate(base_url: str, key: str, **body: Any) -> bytes:
    headers = {"Authorization": f"Bearer {key}"}
    with httpx.Client(base_url=f"{base_url}/api/v1/images", headers=headers, timeout=30) as client:
        image_id = client.post("/generate", json=body).raise_for_status().json()["image_id"]
        for _ in range(int(60 / POLL_SECONDS)):
            image = client.get(f"/status/{image_id}").raise_for_status().json()
            if image["status"] == "completed":
                return httpx.get(image["result_url"]).raise_for_status().content
            if image["status"] == "failed":
                raise RuntimeError(image["error_message"])
            time.sleep(POLL_SECONDS)
    raise TimeoutError
