"""Requests and answers in the OpenAPI document. Answers are streamed, so they are written without these models."""

from __future__ import annotations

from typing import Annotated, Any, Final

from pydantic import Field

from broker.api.shared.models import SnakeResponseModel
from broker.presenter import Absent, ResponseModel

REQUEST_SCHEMA: Final[dict[str, Any]] = {
    "type": "object",
    "required": ["contents"],
    "properties": {
        "contents": {"description": "turns of text, inlineData and fileData parts; the last one is the user's"},
        "generationConfig": {"description": "imageConfig, responseModalities, candidateCount, seed, temperature, …"},
        "systemInstruction": {"description": "a turn of text parts"},
        "tools": {"description": "googleSearch"},
    },
    "example": {"contents": [{"role": "user", "parts": [{"text": "a red fox"}]}]},
}
"""Without types: those of Google's documentation and those of its clients differ, and each is understood."""


class GeminiBlob(ResponseModel):
    mime_type: str
    data: Annotated[str, Field(description="base64")]


class GeminiSnakeBlob(SnakeResponseModel):
    mime_type: str
    data: Annotated[str, Field(description="base64")]


class GeminiPart(ResponseModel):
    """A text, or an image."""

    text: str | Absent = None
    inline_data: GeminiBlob | Absent = None
    snake_inline_data: Annotated[GeminiSnakeBlob | Absent, Field(alias="inline_data")] = None
    thought_signature: str | Absent = None


class GeminiContent(ResponseModel):
    role: str
    parts: list[GeminiPart]


class GeminiCandidate(ResponseModel):
    content: GeminiContent
    finish_reason: str | Absent = None
    finish_message: str | Absent = None
    index: int


class GeminiModalityTokens(ResponseModel):
    modality: str
    token_count: int


class GeminiUsage(ResponseModel):
    prompt_token_count: int
    candidates_token_count: int
    total_token_count: int
    candidates_tokens_details: list[GeminiModalityTokens]


class GeminiAnswer(ResponseModel):
    """The answer of generateContent, and each chunk of a stream."""

    candidates: list[GeminiCandidate]
    usage_metadata: GeminiUsage | Absent = None
    model_version: str
    response_id: Annotated[str, Field(description="the id of the task")]


class GeminiAccepted(ResponseModel):
    """The answer to a request with `Prefer: respond-async`."""

    response_id: Annotated[str, Field(description="the id of the task")]
    task_ids: Annotated[list[str], Field(description="of all candidates")]
    status: str
    poll_url: str
