"""The dialect of Google's Gemini API; README.md states where it differs."""

from __future__ import annotations

from broker.api.dialects.gemini.batches import GeminiBatchRoutes
from broker.api.dialects.gemini.errors import GeminiError, render_error
from broker.api.dialects.gemini.files import GeminiFileRoutes, describe_deletion, describe_file, describe_files
from broker.api.dialects.gemini.models import GeminiModelRoutes, describe_model, describe_models
from broker.api.dialects.gemini.routes import GeminiOrderRoutes
from broker.api.dialects.gemini.spelling import is_gemini_client
from broker.api.dialects.gemini.uploads import GeminiUploadRoutes
from broker.api.http.auth import Authenticator, KeyPlaces
from broker.api.http.endpoint import Dialect
from broker.api.shared.dialect import MODEL, MODELS
from broker.api.shared.files import DELETED_FILE, FILE, FILES, SharedFiles
from broker.api.shared.held_answers import HeldAnswers
from broker.services import Services

PLACES = KeyPlaces(headers=("x-goog-api-key",), query=("key",))


def gemini_dialect(services: Services, held: HeldAnswers | None = None) -> Dialect:
    """Return the dialect, mounted on the parts that it uses."""
    routes = GeminiOrderRoutes.from_services(services, held or HeldAnswers.from_services(services))
    models = GeminiModelRoutes(models=services.served_models, catalog=services.catalog)
    batches = GeminiBatchRoutes.from_services(services, routes)
    files = SharedFiles.from_services(services)
    uploads = GeminiUploadRoutes(files=files, metrics=services.metrics)
    return Dialect(
        name="gemini",
        authenticate=Authenticator.from_services(services, PLACES).authenticate,
        render_error=render_error,
        error_model=GeminiError,
        endpoints=[
            *routes.endpoints(),
            *batches.endpoints(),
            *models.endpoints(),  # after the others: a name may hold anything
            *uploads.endpoints(),
            *GeminiFileRoutes(files=files).endpoints(),
        ],
        is_client=is_gemini_client,
        documents={
            MODELS: describe_models,
            MODEL: describe_model,
            FILES: describe_files,
            FILE: describe_file,
            DELETED_FILE: describe_deletion,
        },
    )
