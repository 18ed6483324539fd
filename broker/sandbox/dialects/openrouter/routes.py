"""The Images API of OpenRouter (openrouter.ai: Images), which holds the request until the image is there."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping, Sequence
from typing import Any, Final

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from broker.sandbox.answers import HangUp, json_response
from broker.sandbox.faults import HELD_FAULTS, Fault, FaultName
from broker.sandbox.orders import JobOrder, RejectedRequest, is_http_url, require, require_choice
from broker.sandbox.pixels import ALL_RATIOS, RATIOS, sizes_of
from broker.sandbox.service import Handler, JobService, authorization_key, read_json


class OpenRouterFault(FaultName):
    """Faults of answers."""

    HANG_UP = "hang_up", "does the work and closes the connection without an answer"
    CUT = "cut", "does the work and closes the connection halfway through the answer"
    ERROR_IN_200 = "error_in_200", "does the work and answers HTTP 200 with an error object whose code is VALUE", 502
    NO_COST = "no_cost", "an answer without `usage`"


FAULTS: Final[tuple[FaultName, ...]] = (
    *HELD_FAULTS,
    Fault.BIG,
    Fault.WRONGTYPE,
    *OpenRouterFault,
)

_PRICES: Final[Mapping[str, Mapping[str, float]]] = {
    "google/gemini-2.5-flash-image": {"1K": 0.039},
    "google/gemini-3-pro-image": {"1K": 0.134, "2K": 0.134, "4K": 0.24},
    "google/gemini-3.1-flash-image": {"1K": 0.067, "2K": 0.101, "4K": 0.151},
    "google/gemini-3.1-flash-lite-image": {"1K": 0.0336},
    "google/gemini-nano-banana-2.1": {"1K": 0.0336, "2K": 0.0504, "4K": 0.1134},
}
_FIRST: Final = "google/gemini-2.5-flash-image"


def respond_to_rejected(error: RejectedRequest) -> Response:
    """Return an error object with the HTTP status of its code."""
    code = {422: 400}.get(error.code, error.code)
    body = {"error": {"code": code, "message": error.msg}}
    return json_response(body, status=error.status or code, headers=error.headers)


class OpenRouterRoutes:
    """One method per endpoint."""

    def __init__(self, service: JobService) -> None:
        self._service = service

    def build(self) -> Sequence[Route]:
        return [
            Route("/api/v1/images", self._guard(self.create_image), methods=["POST"]),
            Route("/api/v1/key", self._guard(self.get_key)),
        ]

    def _guard(self, handler: Handler) -> Handler:
        return self._service.guard(handler, authorization_key("Bearer"))

    async def get_key(self, _request: Request) -> Response:
        return json_response({"data": {"label": "sandbox", "limit_remaining": self._service.balance()}})

    async def create_image(self, request: Request) -> Response:
        body = await read_json(request)
        order = _validate_request(body)
        shown = {name: value for name, value in body.items() if name != "input_references"}
        job = await self._service.submit(order, shown)
        if isinstance(job, Response):
            return job
        view, faults = await self._service.wait(job), job.faults
        if OpenRouterFault.HANG_UP in faults:
            return HangUp()
        if OpenRouterFault.ERROR_IN_200 in faults:
            code = int(faults[OpenRouterFault.ERROR_IN_200])
            return json_response({"error": {"code": code, "message": "Provider returned error"}})
        if view.failure:
            raise RejectedRequest(403 if Fault.FLAGGED in faults else 502, view.failure.text)
        image = {"b64_json": base64.b64encode(await self._service.paint(job)).decode(), "media_type": "image/png"}
        answer: dict[str, Any] = {
            "created": int(self._service.options.now()),
            "data": [] if Fault.NORESULT in faults else [image],
            "usage": {"cost": view.cost},
        }
        if OpenRouterFault.NO_COST in faults:
            del answer["usage"]
        if OpenRouterFault.CUT in faults:
            return HangUp(json.dumps(answer), media_type="application/json")
        return json_response(answer)


def _validate_request(body: Mapping[str, Any]) -> JobOrder:
    model = str(body.get("model"))
    if model not in _PRICES:
        raise RejectedRequest(404, f"No endpoints found for {model}")
    prompt = body.get("prompt")
    require(isinstance(prompt, str) and bool(prompt), "prompt is required", 400)
    require(body.get("n", 1) == 1, "n is out of range", 400)
    size = require_choice("resolution", body.get("resolution", "1K"), tuple(_PRICES[model]))
    known = RATIOS if model in {_FIRST, "google/gemini-3-pro-image"} else ALL_RATIOS
    ratio = body.get("aspect_ratio")
    ratios = known if ratio is None else (require_choice("aspect_ratio", ratio, known),)
    references = body.get("input_references", [])
    require(isinstance(references, list) and len(references) <= 14, "too many input_references", 400)
    return JobOrder(
        prompt=str(prompt),
        sizes=sizes_of(ratios, size, first_generation=model == _FIRST),
        image_format="png",
        price=_PRICES[model][size],
        references=tuple(_reference_url(item) for item in references),
    )


def _reference_url(item: Any) -> str:
    url = (item.get("image_url") or {}).get("url") if isinstance(item, dict) else None
    is_image = isinstance(url, str) and (url.startswith("data:image/") or is_http_url(url))
    require(is_image and item.get("type") == "image_url", "input_references must be image_url objects", 400)
    return str(url)
