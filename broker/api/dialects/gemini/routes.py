"""The routes that take an order and hold their answer until its images are there."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from starlette.requests import Request
from starlette.responses import Response

from broker.api.dialects.gemini.answers import TaskImages, answer_chunks, answer_document, late_answer
from broker.api.dialects.gemini.orders import SPELLING, BuiltOrder, build_order
from broker.api.dialects.gemini.requests import GenerateContentRequest
from broker.api.dialects.gemini.schemas import REQUEST_SCHEMA, GeminiAccepted, GeminiAnswer
from broker.api.dialects.gemini.spelling import AnswerStyle, Spelling, choose_style, is_sdk
from broker.api.dialects.gemini.streams import ARRAY, EVENTS
from broker.api.http.endpoint import Endpoint, Parameter, SuccessResponse, json_success
from broker.api.http.request_body import read_json_model
from broker.api.http.responses import POLL_SECONDS, json_response
from broker.api.shared.held_answers import ORDER_ERRORS, HeldAnswers, PlacedOrder, wants_async
from broker.api.shared.inline_images import image_json
from broker.api.shared.task_errors import completed_tasks
from broker.catalog import Catalog
from broker.i18n import Messages
from broker.services import Services
from broker.tasks.queries import TaskQueries
from storage.blobs.store import BlobStore
from storage.tasks import Task

MAX_BODY_BYTES: Final = 96 * 2**20
"""A conversation holds its images again and again, and clients of a relay send both spellings back."""
VERSIONS: Final = (("v1beta", "Beta"), ("v1", ""))
"""Path prefixes of the API, and how they end its operation ids."""
MODEL_PARAMETER: Final = Parameter("model", "path", "a name or alias of the model")


@dataclass(frozen=True, kw_only=True)
class GeminiOrderRoutes:
    held: HeldAnswers
    queries: TaskQueries
    blobs: BlobStore
    catalog: Catalog
    apis: frozenset[str]
    """Names of the catalogs of the providers in use."""
    messages: Messages
    spelling: Spelling

    @classmethod
    def from_services(cls, services: Services, held: HeldAnswers) -> GeminiOrderRoutes:
        return cls(
            held=held,
            queries=services.queries,
            blobs=services.blobs,
            catalog=services.catalog,
            apis=frozenset(provider.api_name for provider in services.providers.values()),
            messages=services.presenter.messages,
            spelling=services.settings.gemini_spelling,
        )

    def endpoints(self) -> list[Endpoint]:
        """Return the endpoints of both versions of the API."""
        answers = {200: json_success("the images", GeminiAnswer)}
        chunks = {200: SuccessResponse(text="the images, in chunks", content=_STREAMS)}
        return [
            Endpoint(
                "POST",
                f"/{version}/models/{{model:path}}:{method}",
                handler,
                operation_id=f"gemini{method[0].upper()}{method[1:]}{suffix}",
                access="caller",
                tag="Gemini",
                parameters=(MODEL_PARAMETER, *parameters),
                request={"application/json": REQUEST_SCHEMA},
                responses={**responses, 202: json_success("the order is durable", GeminiAccepted)},
                errors=(*ORDER_ERRORS, "not_found"),
                is_held=True,
            )
            for version, suffix in VERSIONS
            for method, handler, responses, parameters in (
                ("generateContent", self.generate_content, answers, ()),
                ("streamGenerateContent", self.stream_generate_content, chunks, (_ALT,)),
            )
        ]

    async def generate_content(self, request: Request) -> Response:
        """Generate images as the Gemini API does.

        The order is durable; the answer waits for its images. The task id is in `responseId` and `x-request-id`.
        """
        placed, style = await self._place(request)
        if wants_async(request):
            return accepted(placed)

        async def render(tasks: Sequence[Task]) -> Response:
            return image_json(answer_document(await self._find_images(tasks), self.catalog, style), self.blobs)

        model = request.path_params["model"].removeprefix("models/")
        return await self.held.answer(
            request,
            placed,
            render,
            render_late=lambda error: late_answer(error, task_id=placed.tasks[0], model=model),
        )

    async def stream_generate_content(self, request: Request) -> Response:
        """Generate images, and send the answer in chunks.

        With `alt=sse` as server-sent events, otherwise as a JSON array. A failure within a minute is an error.
        """
        placed, style = await self._place(request)
        if wants_async(request):
            return accepted(placed)
        layout = EVENTS if request.query_params.get("alt") == "sse" else ARRAY

        async def render(tasks: Sequence[Task]) -> Response:
            return layout.respond(answer_chunks(await self._find_images(tasks), self.catalog, style), self.blobs)

        model = request.path_params["model"].removeprefix("models/")
        return await self.held.answer(
            request,
            placed,
            render,
            render_late=lambda error: layout.write_one(late_answer(error, task_id=placed.tasks[0], model=model)),
            blank=layout.blank,
            media_type=layout.media_type,
        )

    async def _place(self, request: Request) -> tuple[PlacedOrder, AnswerStyle]:
        """Make the order of a request durable; its images are not in memory after that."""
        parsed = await read_json_model(request, MAX_BODY_BYTES, GenerateContentRequest)
        built = self.build(request, parsed, request.path_params["model"])
        placed = await self.held.place(
            request, built.order, is_held=not wants_async(request), ignored=built.ignored, spelling=SPELLING
        )
        return placed, choose_style(request, self.spelling, asks_for_text=parsed.asks_for_text)

    def build(self, request: Request, parsed: GenerateContentRequest, model: str) -> BuiltOrder:
        """Return the order of a request. Raises `ApiError` for what is not supported."""
        return build_order(
            parsed,
            model,
            catalog=self.catalog,
            apis=self.apis,
            is_sdk=is_sdk(request),
        )

    async def _find_images(self, tasks: Sequence[Task]) -> list[TaskImages]:
        return [
            TaskImages(task=task, images=await self.queries.get_results(task))
            for task in completed_tasks(tasks, self.messages)
        ]


def accepted(placed: PlacedOrder) -> Response:
    """Return the answer to `Prefer: respond-async`."""
    task = placed.tasks[0]
    body = GeminiAccepted(response_id=task, task_ids=[*placed.tasks], status="processing", poll_url=f"/api/task/{task}")
    headers = {"location": body.poll_url, "retry-after": POLL_SECONDS, "preference-applied": "respond-async"}
    return json_response(body.to_document(), 202, headers)


_ALT: Final = Parameter("alt", "query", "`sse` for server-sent events", {"type": "string"})
_STREAMS: Final[dict[str, Any]] = {
    "text/event-stream": {"type": "string"},
    "application/json": {"type": "array", "items": {"$ref": "#/components/schemas/GeminiAnswer"}},
}
