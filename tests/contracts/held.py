"""Providers that answer an order with the image, and the responses of their upstream in each class of outcome."""

from __future__ import annotations

import base64
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from broker.providers.base import ProviderPackage
from tests.contracts.providers import ECHO, KEY, PACKAGES, UNKNOWN_ANYWHERE, Canned, Received

IMAGE_BYTES = b"\x89PNG\r\n\x1a\n" + bytes(range(256))
ENCODED = base64.b64encode(IMAGE_BYTES).decode()


@dataclass(frozen=True, kw_only=True, eq=False)
class HeldCase:
    """One such provider. All responses of a list belong to the same class of outcome."""

    package: ProviderPackage
    name: str
    settings: Callable[[str], Mapping[str, Any]]
    """URL of the upstream → settings with `KEY`."""
    finds_key: Callable[[Received], bool]
    """True if a request carries `KEY` where it belongs."""
    finished: tuple[Canned, ...]
    """With `IMAGE_BYTES` as the only result, in the response."""
    refused: tuple[tuple[Canned, str, bool], ...]
    """With error code and whether another attempt may succeed; none of them billed."""
    without_image: tuple[tuple[Canned, str], ...]
    """Answered, perhaps billed, without an image."""
    unknown: tuple[Canned, ...]


def _candidate(*parts: Any, **fields: Any) -> dict[str, Any]:
    return {"candidates": [{"content": {"role": "model", "parts": list(parts)}, "finishReason": "STOP", **fields}]}


def _inline(data: str = ENCODED) -> dict[str, Any]:
    return {"inlineData": {"mimeType": "image/png", "data": data}}


def _error(code: int, status: str, message: str = ECHO, **fields: Any) -> dict[str, Any]:
    return {"error": {"code": code, "message": message, "status": status, **fields}}


_GEMINI_FINISHED = (
    Canned(body=_candidate(_inline())),
    Canned(body=_candidate({"inline_data": {"mime_type": "image/png", "data": ENCODED}})),
    Canned(body=_candidate({"text": f"Here: ![image](data:image/png;base64,{ENCODED})"})),
)
_GEMINI_REFUSED = (
    (Canned(status=400, body=_error(400, "INVALID_ARGUMENT")), "provider_rejected", False),
    (Canned(status=400, body=_error(400, "FAILED_PRECONDITION")), "provider_auth", False),
    (
        Canned(status=400, body=_error(400, "INVALID_ARGUMENT", details=[{"reason": "API_KEY_INVALID"}])),
        "provider_auth",
        False,
    ),
    (Canned(status=403, body=_error(403, "PERMISSION_DENIED")), "provider_auth", False),
    (Canned(status=404, body=_error(404, "NOT_FOUND")), "provider_rejected", False),
    (Canned(status=429, body=[_error(429, "RESOURCE_EXHAUSTED")]), "provider_rate_limited", True),
    (Canned(status=503, body=_error(503, "UNAVAILABLE")), "provider_unavailable", True),
    (Canned(status=401, body={"error": {"message": ECHO, "type": "x", "code": "bad_key"}}), "provider_auth", False),
    (Canned(status=200, body=_error(402, "X", "insufficient balance")), "provider_credits", False),
    (Canned(status=413, body=b"<html>too large</html>"), "provider_rejected", False),
)
_GEMINI_WITHOUT_IMAGE = (
    (Canned(body=_candidate({"text": "I cannot draw that."})), "no_image"),
    (Canned(body={"candidates": [{"content": {"parts": None}, "finishReason": "IMAGE_SAFETY"}]}), "safety_output"),
    (Canned(body={"candidates": [{"content": {}, "finishReason": "PROHIBITED_CONTENT"}]}), "safety_input"),
    (Canned(body={"candidates": [{"finishReason": "RECITATION"}]}), "safety_output"),
    (Canned(body={"candidates": [{"content": {"parts": []}, "finishReason": "NO_IMAGE"}]}), "no_image"),
    (Canned(body={"candidates": [{"finishReason": "SOMETHING_NEW"}]}), "no_image"),
    (Canned(body={"candidates": []}), "no_image"),
    (Canned(body={"promptFeedback": {"blockReason": "OTHER"}}), "safety_input"),
    (Canned(body={"prompt_feedback": {"block_reason": "PROHIBITED_CONTENT"}}), "safety_input"),
    (Canned(body=_candidate({"thought": True, **_inline()})), "no_image"),
)


def _gemini(auth: str, finds_key: Callable[[Received], bool]) -> HeldCase:
    return HeldCase(
        package=PACKAGES["gemini"],
        name=f"gemini-{auth}",
        settings=lambda url: {"gemini_keys": KEY, "gemini_url": f"{url}/v1beta", "gemini_auth": auth},
        finds_key=finds_key,
        finished=_GEMINI_FINISHED,
        refused=_GEMINI_REFUSED,
        without_image=_GEMINI_WITHOUT_IMAGE,
        unknown=(
            *UNKNOWN_ANYWHERE,
            Canned(status=500, body=_error(500, "INTERNAL")),
            Canned(status=504, body=_error(504, "DEADLINE_EXCEEDED")),
            Canned(body=b'{"candidates":[{"content":{"parts":[{"inlineData":{"data":"' + ENCODED[:99].encode()),
        ),
    )


def _images(*items: Any, **fields: Any) -> dict[str, Any]:
    return {"created": 1, "data": list(items), **fields}


OPENROUTER = HeldCase(
    package=PACKAGES["openrouter"],
    name="openrouter",
    settings=lambda url: {"openrouter_keys": KEY, "openrouter_url": f"{url}/api/v1"},
    finds_key=lambda request: request.headers["authorization"] == f"Bearer {KEY}",
    finished=(
        Canned(body=_images({"b64_json": ENCODED, "media_type": "image/png"}, usage={"cost": 0.13})),
        Canned(body=_images({"b64_json": f"data:image/png;base64,{ENCODED}"})),
    ),
    refused=(
        (Canned(status=401, body=_error(401, "x")), "provider_auth", False),
        (Canned(status=402, body={"error": {"code": 402, "message": ECHO}}), "provider_credits", False),
        (Canned(status=403, body={"error": {"code": 403, "message": "your input was flagged"}}), "safety_input", False),
        (Canned(status=404, body={"error": {"code": 404, "message": ECHO}}), "provider_rejected", False),
        (Canned(status=429, body={"error": {"code": 429, "message": ECHO}}), "provider_rate_limited", True),
        (Canned(status=200, body={"error": {"code": 402, "message": ECHO}}), "provider_credits", False),
    ),
    without_image=(
        (Canned(body={"error": {"code": 429, "message": ECHO}}), "provider_rate_limited"),
        (Canned(body={"error": {"code": 404, "message": ECHO}}), "provider_rejected"),
        (Canned(body=_images()), "no_image"),
        (Canned(body=_images({"b64_json": None})), "no_image"),
        (Canned(body={"error": {"code": 502, "message": ECHO}}), "provider_error"),
    ),
    unknown=(
        *UNKNOWN_ANYWHERE,
        Canned(status=502, body={"error": {"code": 502, "message": ECHO}}),
        Canned(body=b'{"data":[{"b64_json":"' + ENCODED[:99].encode()),
    ),
)

HELD_CASES = (
    _gemini("header", lambda request: request.headers["x-goog-api-key"] == KEY),
    _gemini("query", lambda request: request.query["key"] == KEY),
    _gemini("bearer", lambda request: request.headers["authorization"] == f"Bearer {KEY}"),
    OPENROUTER,
)
