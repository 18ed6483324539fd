"""Replicate's own client."""

from __future__ import annotations

import io
from typing import Any

import httpx
from replicate.client import Client
from replicate.helpers import FileOutput


def text_to_image(base_url: str, key: str, prompt: str) -> bytes:
    return _run(base_url, key, prompt=prompt, aspect_ratio="16:9", output_format="png")


def image_to_image(base_url: str, key: str, prompt: str, image: bytes) -> bytes:
    return _run(base_url, key, prompt=prompt, image_input=[io.BytesIO(image)])


def _run(base_url: str, key: str, **given: Any) -> bytes:
    with httpx.HTTPTransport() as transport:
        client = Client(api_token=key, base_url=base_url, transport=transport)
        client.poll_interval = 0.05
        output = client.run("google/nano-banana", input=given, file_encoding_strategy="base64")
        assert isinstance(output, FileOutput), output
        return output.read()
