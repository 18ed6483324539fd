"""The openai SDK: images."""

from __future__ import annotations

import base64

from openai import OpenAI


def text_to_image(base_url: str, key: str, prompt: str) -> bytes:
    with OpenAI(base_url=f"{base_url}/v1", api_key=key, max_retries=0) as client:
        made = client.images.generate(model="gpt-image-2", prompt=prompt, size="1536x1024")
    assert made.data is not None
    return base64.b64decode(made.data[0].b64_json or "", validate=True)


def image_to_image(base_url: str, key: str, prompt: str, image: bytes) -> bytes:
    with OpenAI(base_url=f"{base_url}/v1", api_key=key, max_retries=0) as client:
        made = client.images.edit(model="gpt-image-2", prompt=prompt, image=("picture.png", image, "image/png"))
    assert made.data is not None
    return base64.b64decode(made.data[0].b64_json or "", validate=True)
