"""Routes of Replicate's API: predictions, versions of models, the secret of webhooks."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Final

from starlette.requests import Request
from starlette.responses import Response

from broker.api.dialects.replicate.models import ChosenModel, ReplicateModels
from broker.api.dialects.replicate.predictions import PredictionAnswers
from broker.api.dialects.replicate.schemas import (
    ReplicateListQuery,
    ReplicateOrder,
    ReplicatePage,
    ReplicateVersion,
    ReplicateVersionPage,
    ReplicateWebhookSecret,
    make_source,
)
from broker.api.http.endpoint import Endpoint, Parameter, SuccessResponse, json_success, principal_of
from broker.api.http.pagination import split_page
from broker.api.http.request_body import read_json_model
from broker.api.http.responses import json_response
from broker.api.shared.held_answers import ORDER_ERRORS, HeldAnswers, PlacedOrder
from broker.clock import Clock
from broker.errors import ApiError
from broker.notifications.formats.replicate import (
    DEFAULT_EVENTS,
    PredictionOrigin,
    ReplicatePrediction,
)
from broker.notifications.signing import WebhookKeys
from broker.orders import ImageParams, OrderRequest
from broker.tasks.cancellation import TaskCanceler
from broker.tasks.queries import TaskQueries

MAX_BODY_BYTES: Final = 48 * 2**20
PAGE_LENGTH: Final = 100
MAX_WAIT_SECONDS: Final = 60.0
"""Of `Prefer: wait`; also without a number."""
MATCH_INPUT: Final = "match_input_image"
DEFAULT_RESOLUTIONS: Final = {"nano-banana-pro": "2K"}
"""Where Replicate's default is another than the model's first."""

_WAIT: Final = re.compile(r"\s*wait\s*(?:=\s*\"?([0-9]{1,9})\"?)?\s*", re.IGNORECASE)
_GONE: Final = ("task_not_found", "task_expired")
_PREDICTION_ID: Final = Parameter("id", "path", "the id of a prediction, which is that of its first task")
_MODEL: Final = (Parameter("owner", "path", "like google"), Parameter("name", "path", "a name or alias of the model"))
_PREFER: Final = Parameter("Prefer", "header", "wait or wait=n: answer when it has ended, or after 1 to 60 seconds")
_VERSION_ID: Final = Parameter("id", "path", "the id of a version")


@dataclass(frozen=True, kw_only=True)
class PredictionRoutes:
    clock: Clock
    held: HeldAnswers
    queries: TaskQueries
    canceler: TaskCanceler
    models: ReplicateModels
    answers: PredictionAnswers
    signing_keys: WebhookKeys

    def endpoints(self) -> list[Endpoint]:
        """Return the endpoint list of the dialect."""
        return [*self._order_endpoints(), *self._prediction_endpoints(), *self._model_endpoints()]

    def _order_endpoints(self) -> list[Endpoint]:
        order = partial(
            _endpoint,
            "POST",
            request={"application/json": ReplicateOrder},
            responses={
                201: json_success("the prediction; it has ended, or no wait was asked for", ReplicatePrediction),
                202: json_success("the prediction, which has not ended in time", ReplicatePrediction),
            },
            errors=ORDER_ERRORS,
        )
        return [
            order("/v1/predictions", self.create_prediction, parameters=(_PREFER,)),
            order("/v1/models/{owner}/{name}/predictions", self.create_model_prediction, parameters=(*_MODEL, _PREFER)),
            order(
                "/v1/deployments/{owner}/{name}/predictions",
                self.create_deployment_prediction,
                parameters=(*_MODEL, _PREFER),
            ),
        ]

    def _prediction_endpoints(self) -> list[Endpoint]:
        shown = partial(_endpoint, parameters=(_PREDICTION_ID,), responses=_ok(ReplicatePrediction), errors=_GONE)
        return [
            _endpoint("GET", "/v1/predictions", self.list_predictions, query=ReplicateListQuery,
                      responses=_ok(ReplicatePage)),
            shown("GET", "/v1/predictions/{id}", self.get_prediction, is_quiet=True),
            shown("POST", "/v1/predictions/{id}/cancel", self.cancel_prediction),
        ]  # fmt: skip

    def _model_endpoints(self) -> list[Endpoint]:
        versions = "/v1/models/{owner}/{name}/versions"
        shown = partial(_endpoint, "GET", errors=("not_found",))
        return [
            shown(versions, self.list_model_versions, parameters=_MODEL, responses=_ok(ReplicateVersionPage)),
            shown(
                f"{versions}/{{id}}",
                self.get_model_version,
                parameters=(*_MODEL, _VERSION_ID),
                responses=_ok(ReplicateVersion),
            ),
            _endpoint(
                "GET", "/v1/webhooks/default/secret", self.get_webhook_secret, responses=_ok(ReplicateWebhookSecret)
            ),
        ]

    # -- orders

    async def create_prediction(self, request: Request) -> Response:
        """Order a prediction by version or model."""
        return await self._order(request, self._choose_by_body)

    async def create_model_prediction(self, request: Request) -> Response:
        """Order a prediction of a model."""
        owner, name = request.path_params["owner"], request.path_params["name"]
        return await self._order(request, lambda _: self.models.choose_model(owner, name))

    async def create_deployment_prediction(self, request: Request) -> Response:
        """Order a prediction of a deployment, which has the name of a model."""
        return await self.create_model_prediction(request)

    def _choose_by_body(self, order: ReplicateOrder) -> ChosenModel:
        if text := order.model or order.version:
            return self.models.choose_version(text)
        raise ApiError(
            "invalid_request", "version is required: name a model, like google/nano-banana.", field="version"
        )

    async def _order(self, request: Request, choose: Callable[[ReplicateOrder], ChosenModel]) -> Response:
        seconds = wait_seconds(request.headers.getlist("prefer"))
        placed, read_at = await self._place(request, choose, is_held=seconds is not None)
        if seconds is None:
            return await self.answers.respond(request, placed.tasks[0], 201, is_new=True)
        left = seconds - (self.clock.monotonic() - read_at)
        left = max(0.0, min(left, self.held.hold_seconds))
        has_ended = await self.held.wait(request, placed, left, is_pollable=True)
        headers = {"preference-applied": f"wait={seconds:.0f}"}
        status = 201 if has_ended else 202
        return await self.answers.respond(request, placed.tasks[0], status, is_new=True, headers=headers)

    async def _place(
        self, request: Request, choose: Callable[[ReplicateOrder], ChosenModel], *, is_held: bool
    ) -> tuple[PlacedOrder, float]:
        """Place the order of a request; also return when it was read, from which on the client counts its wait."""
        parsed = await read_json_model(request, MAX_BODY_BYTES, ReplicateOrder)
        read_at = self.clock.monotonic()
        order = _to_order(parsed, choose(parsed), self.answers.base_for(request))
        ignored = [*parsed.input.ignored_names(), *(parsed.model_extra or ()), *(["stream"] if parsed.stream else [])]
        return await self.held.place(request, order, is_held=is_held, ignored=ignored), read_at

    # -- predictions

    async def get_prediction(self, request: Request) -> Response:
        """Get a prediction."""
        return await self.answers.respond(request, request.path_params["id"])

    async def cancel_prediction(self, request: Request) -> Response:
        """Cancel a prediction.

        One that has ended, or whose image is being downloaded, stays as it is.
        """
        task_id, scope = request.path_params["id"], principal_of(request).scope
        for task in await self.answers.list_tasks(await self.queries.get(task_id, scope)):
            try:
                await self.canceler.cancel_task(task.id, scope)
            except ApiError as error:
                if error.code != "conflict":
                    raise
        return await self.answers.respond(request, task_id)

    async def list_predictions(self, request: Request) -> Response:
        """List predictions, newest first.

        The orders of all dialects are among them.
        """
        query = ReplicateListQuery.read(request)
        tasks = await self.queries.list_newest(
            principal_of(request).scope, status=None, limit=PAGE_LENGTH + 1, before=query.cursor
        )
        page, cursor = split_page(tasks, PAGE_LENGTH, lambda task: (task.created_at, task.id))
        results = await self.answers.list_page(request, page)
        address = f"{self.answers.base_for(request)}/v1/predictions?cursor={cursor}" if cursor else None
        return json_response(ReplicatePage(next=address, previous=None, results=results).to_document())

    # -- models

    async def list_model_versions(self, request: Request) -> Response:
        """List the versions of a model, of which there is one."""
        model = self.models.get_model(request.path_params["owner"], request.path_params["name"])
        page = ReplicateVersionPage(next=None, previous=None, results=[self.models.make_version(model)])
        return json_response(page.to_document())

    async def get_model_version(self, request: Request) -> Response:
        """Get a version of a model."""
        model = self.models.get_model(request.path_params["owner"], request.path_params["name"])
        version = self.models.make_version(model)
        if request.path_params["id"] != version.id:
            raise ApiError("not_found", "The model has no version of this id.", field="id")
        return json_response(version.to_document())

    async def get_webhook_secret(self, request: Request) -> Response:
        """Get the secret that signs your webhooks."""
        key = self.signing_keys.secret_of(principal_of(request).owner)
        return json_response(ReplicateWebhookSecret(key=key).to_document())


_endpoint = partial(Endpoint, access="caller", tag="Replicate")


def _ok(model: type) -> dict[int, SuccessResponse]:
    return {200: json_success("as Replicate has it", model)}


def wait_seconds(prefer: Sequence[str]) -> float | None:
    """Return how long `Prefer` lets the answer wait, at most a minute; None if it does not ask for that."""
    for preference in ",".join(prefer).split(","):
        if match := _WAIT.fullmatch(preference.partition(";")[0]):
            return min(max(float(match[1]), 1.0), MAX_WAIT_SECONDS) if match[1] else MAX_WAIT_SECONDS
    return None


def _to_order(order: ReplicateOrder, model: ChosenModel, base_url: str) -> OrderRequest:
    """Return the order request; the catalog checks its values."""
    given, webhook = order.input, order.webhook or order.webhook_completed or None
    if webhook and given.count > 1:
        raise ApiError(
            "unsupported_parameter",
            "A webhook announces one image: order each in a prediction of its own, or poll this one.",
            field="input.num_outputs",
        )
    sources = tuple(make_source(text) for text in given.image_texts())
    default_events = DEFAULT_EVENTS if order.webhook else ("completed",)
    origin = PredictionOrigin(
        model=model.shown_name,
        version=model.version,
        input=given.to_echo(),
        images=given.count,
        events=tuple(default_events if order.webhook_events_filter is None else order.webhook_events_filter),
        base_url=base_url,
    )
    return OrderRequest(
        params=ImageParams(
            prompt=given.prompt,
            model=model.name,
            aspect_ratio=_ratio(given.aspect_ratio, has_images=bool(sources)),
            resolution=given.resolution or DEFAULT_RESOLUTIONS.get(model.name),
            output_format=given.output_format,
            seed=given.seed,
        ),
        count=given.count,
        sources=sources,
        origin=origin.to_column(has_webhook=webhook is not None),
        callback_url=webhook,
    )


def _ratio(ratio: str | None, *, has_images: bool) -> str | None:
    """Return our name of a ratio; without an image there is none to match."""
    if ratio == MATCH_INPUT:
        return "auto" if has_images else None
    return ratio
