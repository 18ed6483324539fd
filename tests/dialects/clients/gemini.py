"""The Gemini API, with google-genai."""

from __future__ import annotations

from google import genai
from google.genai import types

MODEL = "gemini-2.5-flash-image"


def text_to_image(base_url: str, key: str, prompt: str) -> bytes:
    return _generate(base_url, key, types.Part(text=prompt))


def image_to_image(base_url: str, key: str, prompt: str, image: bytes) -> bytes:
    return _generate(base_url, key, types.Part(text=prompt), types.Part.from_bytes(data=image, mime_type="image/png"))


def _generate(base_url: str, key: str, *parts: types.Part) -> bytes:
    contents = types.Content(role="user", parts=list(parts))
    config = types.GenerateContentConfig(response_modalities=["IMAGE"])
    with genai.Client(api_key=key, http_options=types.HttpOptions(base_url=base_url)) as client:
        answer = client.models.generate_content(model=MODEL, contents=contents, config=config)
    for part in answer.parts or ():
        if part.inline_data and part.inline_data.data:
            return part.inline_data.data
    raise AssertionError("the answer has no image")
