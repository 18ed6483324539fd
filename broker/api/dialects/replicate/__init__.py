"""The dialect of Replicate: predictions, models and webhooks; README.md states where it differs."""

from __future__ import annotations

from starlette.requests import HTTPConnection

from broker.api.dialects.replicate.files import ReplicateFileRoutes, describe_file, describe_files
from broker.api.dialects.replicate.models import ReplicateModels
from broker.api.dialects.replicate.predictions import PredictionAnswers
from broker.api.dialects.replicate.routes import PredictionRoutes
from broker.api.dialects.replicate.schemas import ReplicateProblem, render_error
from broker.api.http.auth import Authenticator, KeyPlaces
from broker.api.http.endpoint import Dialect
from broker.api.shared.dialect import MODEL, MODELS
from broker.api.shared.files import FILE, FILES, SharedFiles
from broker.api.shared.held_answers import HeldAnswers
from broker.notifications.formats.replicate import PredictionPresenter
from broker.services import Services

PLACES = KeyPlaces(schemes=("token",))


def replicate_dialect(services: Services) -> Dialect:
    """Return the dialect, mounted on the parts that it uses."""
    models = ReplicateModels(
        served=services.served_models, catalog=services.catalog, most_references=services.most_references
    )
    routes = PredictionRoutes(
        clock=services.clock,
        held=HeldAnswers.from_services(services),
        queries=services.queries,
        canceler=services.canceler,
        models=models,
        answers=PredictionAnswers(
            queries=services.queries,
            blobs=services.blobs,
            presenter=PredictionPresenter(messages=services.presenter.messages),
            public_base=lambda: services.address.base,
        ),
        signing_keys=services.signing_keys,
    )
    return Dialect(
        name="replicate",
        authenticate=Authenticator.from_services(services, PLACES).authenticate,
        render_error=render_error,
        error_model=ReplicateProblem,
        endpoints=[*routes.endpoints(), *ReplicateFileRoutes(files=SharedFiles.from_services(services)).endpoints()],
        is_client=is_replicate_client,
        documents={
            MODEL: models.model_document,
            MODELS: models.list_document,
            FILE: describe_file,
            FILES: describe_files,
        },
    )


def is_replicate_client(request: HTTPConnection) -> bool:
    """Return whether one of Replicate's SDKs, or the AI SDK's provider for it, has sent a request."""
    agent = request.headers.get("user-agent", "")
    return agent.startswith(("replicate-python/", "replicate-javascript/")) or "ai-sdk/replicate/" in agent
