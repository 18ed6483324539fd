"""fal's client for Python, which speaks TLS only: it reaches the broker through a proxy."""

from __future__ import annotations

from typing import Any

import httpx

from tests.support.tls_front import fal_sdk, tls_front


def text_to_image(base_url: str, key: str, prompt: str) -> bytes:
    return _subscribe(base_url, key, "fal-ai/nano-banana", prompt=prompt)


def image_to_image(base_url: str, key: str, prompt: str, image: bytes) -> bytes:
    return _subscribe(base_url, key, "fal-ai/nano-banana/edit", prompt=prompt, image=image)


def _subscribe(base_url: str, key: str, app: str, *, prompt: str, image: bytes | None = None) -> bytes:
    with tls_front(base_url) as front, fal_sdk(front, key) as fal_client:
        arguments: dict[str, Any] = {"prompt": prompt}
        if image is not None:
            arguments["image_urls"] = [fal_client.encode(image, "image/png")]
        result = fal_client.subscribe(app, arguments=arguments)
        (made,) = result["images"]
        with httpx.Client() as client:
            return client.get(made["url"]).raise_for_status().content
