"""The dialect of the Nano Banana chat service; README.md states where it differs."""

from __future__ import annotations

from functools import partial

from broker.api.dialects.chat_service.accounts import ChatServiceAccountRoutes
from broker.api.dialects.chat_service.conversations import ConversationRoutes
from broker.api.dialects.chat_service.png_copies import PngCopies
from broker.api.dialects.chat_service.routes import ChatServiceRoutes
from broker.api.http.auth import Authenticator
from broker.api.http.endpoint import Dialect
from broker.api.http.request_body import max_form_bytes
from broker.api.shared.detail_errors import DetailError, render_detail_error
from broker.api.shared.held_answers import HeldAnswers
from broker.services import Services


def chat_service_dialect(services: Services) -> Dialect:
    """Return the dialect, mounted on the parts that it uses."""
    messages, authenticate = services.presenter.messages, Authenticator.from_services(services).authenticate
    routes = ChatServiceRoutes(
        held=HeldAnswers.from_services(services),
        conversations=services.conversation_parts.service,
        queries=services.queries,
        blobs=services.blobs,
        copies=PngCopies(blobs=services.blobs),
        messages=messages,
        max_form_bytes=max_form_bytes(services.catalog, services.settings.max_file_size),
    )
    conversations = ConversationRoutes(
        conversations=services.conversation_parts.service, blobs=services.blobs, messages=messages
    )
    accounts = ChatServiceAccountRoutes(
        users=services.users, logins=services.logins, quotas=services.quotas, authenticate=authenticate
    )
    return Dialect(
        name="chat_service",
        authenticate=authenticate,
        render_error=partial(render_detail_error, messages),
        error_model=DetailError,
        endpoints=[*routes.endpoints(), *conversations.endpoints(), *accounts.endpoints()],
    )
