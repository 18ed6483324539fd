"""Endpoints of the Gemini API: generateContent, which holds the request until the image is there, and batches."""

from __future__ import annotations

import base64
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Final

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from broker.sandbox.answers import HangUp, json_response
from broker.sandbox.dialects.gemini.faults import FAILED_ANSWERS, WITHOUT_IMAGE, GeminiFault, Record
from broker.sandbox.dialects.gemini.models import MODELS, shown_contents, signature_of, validate_request
from broker.sandbox.dialects.gemini.webhooks import key_set
from broker.sandbox.faults import FailureKind, Fault
from broker.sandbox.jobs import Job, JobView
from broker.sandbox.orders import RejectedRequest, require
from broker.sandbox.service import JobService, read_json

RETRY_INFO: Final[list[Record]] = [{"@type": "type.googleapis.com/google.rpc.RetryInfo", "retryDelay": "1s"}]
TOKENS: Final = {"1K": 1120, "2K": 1120, "4K": 2000}
_STATUSES: Final = {
    400: "INVALID_ARGUMENT",
    403: "PERMISSION_DENIED",
    404: "NOT_FOUND",
    429: "RESOURCE_EXHAUSTED",
    500: "INTERNAL",
    503: "UNAVAILABLE",
    504: "DEADLINE_EXCEEDED",
}
_BATCH_STATES: Final = {"success": "SUCCEEDED", "fail": "FAILED", "waiting": "PENDING", "queuing": "PENDING"}


def respond_to_rejected(error: RejectedRequest) -> Response:
    """Return an error of the Gemini API; it has no 401, 402 and 422 of its own."""
    details: list[Record] = []
    status = error.status or error.code
    name = _STATUSES.get(status, "UNKNOWN")
    if error.code == 401:
        status, name, details = 400, "INVALID_ARGUMENT", [{"reason": "API_KEY_INVALID"}]
    elif error.code == 402:
        status, name = 400, "FAILED_PRECONDITION"
    elif error.code == 422:
        status, name = 400, "INVALID_ARGUMENT"
    elif error.code == 429:
        details = RETRY_INFO
    body = _error(status, name, error.msg, details)
    return json_response(body, status=status, headers=error.headers)


def read_key(request: Request) -> str | None:
    """Return the key of a request: Google takes the header and the query, relays a bearer token as well."""
    scheme, _, token = request.headers.get("authorization", "").partition(" ")
    bearer = token if scheme == "Bearer" else None
    return request.headers.get("x-goog-api-key") or request.query_params.get("key") or bearer


class GeminiRoutes:
    """One method per endpoint."""

    def __init__(self, service: JobService) -> None:
        self._service = service
        self._sizes: dict[str, str] = {}
        """Of each job."""
        self._refused: Counter[str] = Counter()
        """Orders by prompt that the faults of this dialect refused."""

    def build(self) -> Sequence[Route]:
        return [
            Route("/v1beta/models", self._guard(self.list_models)),
            Route("/v1beta/models/{model}:generateContent", self._guard(self.generate), methods=["POST"]),
            Route("/v1beta/models/{model}:batchGenerateContent", self._guard(self.create_batch), methods=["POST"]),
            Route("/v1beta/batches/{id}", self._guard(self.get_batch)),
            Route("/v1beta/batches/{id}:cancel", self._guard(self.cancel_batch), methods=["POST"]),
            Route("/.well-known/jwks.json", self.get_keys),
        ]

    def _guard(self, handler: Any) -> Any:
        return self._service.guard(handler, read_key)

    async def list_models(self, _request: Request) -> Response:
        return json_response({"models": [{"name": f"models/{model}"} for model in MODELS]})

    async def generate(self, request: Request) -> Response:
        body = await read_json(request)
        job = await self._submit(request.path_params["model"], body)
        if isinstance(job, Response):
            return job
        view = await self._service.wait(job)
        if GeminiFault.HANG_UP in job.faults:
            return HangUp()
        answer = await self._build_answer(view)
        if GeminiFault.CUT in job.faults:
            return HangUp(json.dumps(answer), media_type="application/json")
        return json_response(answer)

    async def create_batch(self, request: Request) -> Response:
        body = await read_json(request)
        batch = body.get("batch") or {}
        items = (batch.get("inputConfig") or {}).get("requests", {}).get("requests") or []
        require(len(items) == 1, "this sandbox takes batches of one request", 400)
        uris = (batch.get("webhookConfig") or {}).get("uris") or [None]
        model = request.path_params["model"]
        job = await self._submit(model, items[0].get("request") or {}, discount=0.5, callback_url=uris[0])
        if isinstance(job, Response):
            return job
        return json_response(_batch_record(self._service.view(job), model))

    async def get_batch(self, request: Request) -> Response:
        view = self._service.read(request.path_params["id"])
        if view is None:
            raise RejectedRequest(404, "Requested entity was not found.")
        record = _batch_record(view, str(view.job.request["model"]))
        if record["metadata"]["state"] in {"BATCH_STATE_SUCCEEDED", "BATCH_STATE_FAILED"}:
            record |= {"response": {"inlinedResponses": {"inlinedResponses": [await self._build_item(view)]}}}
        return json_response(record)

    async def cancel_batch(self, request: Request) -> Response:
        if self._service.cancel(request.path_params["id"]) is None:
            raise RejectedRequest(404, "Requested entity was not found.")
        return json_response({})

    async def get_keys(self, _request: Request) -> Response:
        return json_response(key_set())

    async def _submit(
        self, model: str, body: Record, *, discount: float = 1.0, callback_url: str | None = None
    ) -> Job | Response:
        wanted = validate_request(model, body)
        files = [await self._service.store_file(data) for data in wanted.references]
        order = replace(
            wanted.order,
            references=tuple(files),
            callback_url=callback_url,
            price=wanted.order.price * discount,
        )
        faults = self._service.faults_of(order.prompt)
        if GeminiFault.OPENAI_ERROR in faults:
            error = {"message": "bad request", "type": "invalid_request_error", "param": None, "code": "bad_request"}
            return json_response({"error": error}, status=int(faults[GeminiFault.OPENAI_ERROR]))
        earlier = self._refused[order.prompt]
        for fault, status in ((GeminiFault.OVERLOADED, 503), (GeminiFault.LIST_ERROR, 429)):
            if earlier < faults.get(fault, 0):
                self._refused[order.prompt] += 1
                error = _error(
                    status, _STATUSES[status], "The model is overloaded. Please try again later.", RETRY_INFO
                )
                return json_response([error] if fault is GeminiFault.LIST_ERROR else error, status=status)
        record = {"model": model, "config": body.get("generationConfig"), "tools": body.get("tools")}
        job = await self._service.submit(order, {**record, "contents": shown_contents(body.get("contents"))})
        if isinstance(job, Job):
            self._sizes[job.id] = wanted.size
        return job

    async def _build_item(self, view: JobView) -> Record:
        """Return the response of a batch."""
        try:
            return {"metadata": {"key": "image"}, "response": await self._build_answer(view)}
        except RejectedRequest as error:
            return {"metadata": {"key": "image"}, "error": {"code": 13, "message": error.msg}}

    async def _build_answer(self, view: JobView) -> Record:
        """Return the answer of a job that has ended. Raises `RejectedRequest` for one that is an error."""
        job = view.job
        usage: Record = {"promptTokenCount": 10, "candidatesTokenCount": 0, "totalTokenCount": 10}
        common = {"responseId": job.id, "modelVersion": job.request["model"], "usageMetadata": usage}
        if view.failure:
            answer = FAILED_ANSWERS.get(view.failure.kind)
            if answer is None:
                raise RejectedRequest(400 if view.failure.kind is FailureKind.REFERENCE else 500, view.failure.text)
            return {**answer, **common}
        if Fault.NORESULT in job.faults:
            return {**WITHOUT_IMAGE[int(job.faults[Fault.NORESULT]) % len(WITHOUT_IMAGE)], **common}
        tokens = TOKENS[self._sizes.get(job.id, "1K")]
        image = {"modality": "IMAGE", "tokenCount": tokens}
        usage |= {
            "candidatesTokenCount": tokens + 12,
            "candidatesTokensDetails": [image, {"modality": "TEXT", "tokenCount": 12}],
            "thoughtsTokenCount": 100,
            "totalTokenCount": tokens + 122,
        }
        content = {"role": "model", "parts": await self._build_parts(job, view)}
        return {"candidates": [{"content": content, "finishReason": "STOP", "index": 0}], **common}

    async def _build_parts(self, job: Job, view: JobView) -> list[Record]:
        image = await self._service.paint(job)
        data = base64.b64encode(image).decode()
        if GeminiFault.LINK in job.faults:
            return [{"text": f"Here it is: ![image]({view.urls[0]})"}]
        if GeminiFault.MARKDOWN in job.faults:
            return [{"text": f"Here it is: ![image](data:image/png;base64,{data})"}]
        names = ("inline_data", "mime_type") if GeminiFault.SNAKE in job.faults else ("inlineData", "mimeType")
        drafts: list[Record] = []
        if GeminiFault.THOUGHTS in job.faults:
            draft = base64.b64encode(await self._service.paint(job, 1)).decode()
            drafts = [{"thought": True, "text": "A first draft."}]
            drafts += [{"thought": True, names[0]: {names[1]: "image/png", "data": draft}}] * 2
        return [
            *drafts,
            {"text": "Here is your image."},
            {names[0]: {names[1]: "image/png", "data": data}, "thoughtSignature": signature_of(image)},
        ]


def _batch_record(view: JobView, model: str) -> Record:
    state = _BATCH_STATES.get(view.stage, "RUNNING")
    if view.failure and view.failure.kind is FailureKind.CANCELED:
        state = "CANCELLED"
    if GeminiFault.EXPIRED in view.job.faults and state == "SUCCEEDED":
        state = "EXPIRED"
    record: Record = {
        "name": f"batches/{view.job.id}",
        "metadata": {
            "@type": "type.googleapis.com/google.ai.generativelanguage.v1main.GenerateContentBatch",
            "model": f"models/{model}",
            "state": f"BATCH_STATE_{state}",
        },
    }
    return record | ({} if state in {"PENDING", "RUNNING"} else {"done": True})


def _error(code: int, status: str, message: str, details: list[Record]) -> Record:
    return {"error": {"code": code, "message": message, "status": status, **({"details": details} if details else {})}}
