"""The openai SDK: chats with image output."""

from __future__ import annotations

import base64
from typing import Any

from openai import OpenAI


def text_to_image(base_url: str, key: str, prompt: str) -> bytes:
    return _complete(base_url, key, prompt)


def image_to_image(base_url: str, key: str, prompt: str, image: bytes) -> bytes:
    uri = f"data:image/png;base64,{base64.b64encode(image).decode()}"
    return _complete(
        base_url, key, [{"type": "text", "text": prompt}, {"type": "image_url", "image_url": {"url": uri}}]
    )


def _complete(base_url: str, key: str, content: Any) -> bytes:
    with OpenAI(base_url=f"{base_url}/v1", api_key=key, max_retries=0) as client:
        completion = client.chat.completions.create(
            model="google/gemini-2.5-flash-image",
            messages=[{"role": "user", "content": content}],
            extra_body={"modalities": ["image", "text"], "image_config": {"aspect_ratio": "1:1"}},
        )
    message: Any = completion.choices[0].message
    head, _, data = message.images[0]["image_url"]["url"].partition(",")
    assert head in {"data:image/png;base64", "data:image/jpeg;base64"}
    return base64.b64decode(data, validate=True)
