"""The dialect of OpenAI: images, their asynchronous form, and chats that answer with images; see README.md."""

from __future__ import annotations

import re
from typing import Final

from starlette.requests import HTTPConnection

from broker.api.dialects.openai.answers import ImageAnswers
from broker.api.dialects.openai.async_tasks import AsyncTasks
from broker.api.dialects.openai.chat_answers import ChatAnswers
from broker.api.dialects.openai.chat_routes import OpenAIChatRoutes
from broker.api.dialects.openai.errors import OpenAIError, render_error
from broker.api.dialects.openai.image_routes import OpenAIImageRoutes
from broker.api.dialects.openai.manifest import ManifestRoute
from broker.api.dialects.openai.models import ModelNames, describe_model, list_models
from broker.api.http.auth import Authenticator, KeyPlaces
from broker.api.http.endpoint import Dialect
from broker.api.http.request_body import max_form_bytes
from broker.api.shared.dialect import MODEL, MODELS
from broker.api.shared.held_answers import HeldAnswers
from broker.services import Services

_USER_AGENT: Final = re.compile(r"(Async)?(Azure)?OpenAI/")


def openai_dialect(services: Services) -> Dialect:
    """Return the dialect, mounted on the parts that it uses. Raises `SettingsError`."""
    names = ModelNames.from_setting(services.settings.openai_model, services.catalog, services.served_models)
    held, queries, messages = HeldAnswers.from_services(services), services.queries, services.presenter.messages
    answers = ImageAnswers(queries=queries, blobs=services.blobs, catalog=services.catalog, messages=messages)
    tasks = AsyncTasks(
        queries=queries,
        answers=answers,
        address=services.address,
        retention_seconds=services.policy.retention_seconds,
    )
    images = OpenAIImageRoutes(
        held=held,
        names=names,
        answers=answers,
        async_tasks=tasks,
        max_form_bytes=max_form_bytes(services.catalog, services.settings.max_file_size),
    )
    chats = OpenAIChatRoutes(
        held=held,
        names=names,
        answers=ChatAnswers(queries=queries, blobs=services.blobs, catalog=services.catalog, messages=messages),
        most_references=services.most_references,
        async_tasks=tasks,
    )
    manifest = ManifestRoute(models=services.served_models, default=names.default, address=services.address)
    return Dialect(
        name="openai",
        authenticate=Authenticator.from_services(services, KeyPlaces(query=("key",))).authenticate,
        render_error=render_error,
        error_model=OpenAIError,
        endpoints=[*images.endpoints(), *chats.endpoints(), *manifest.endpoints(), *tasks.endpoints()],
        is_client=_is_openai_client,
        documents={MODELS: list_models, MODEL: describe_model},
    )


def _is_openai_client(request: HTTPConnection) -> bool:
    return _USER_AGENT.match(request.headers.get("user-agent", "")) is not None
