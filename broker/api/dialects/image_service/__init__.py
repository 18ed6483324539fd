"""The dialect of the image service over Replicate: generations that are polled; README.md states where it differs."""

from __future__ import annotations

from functools import partial

from broker.api.dialects.image_service.accounts import ImageServiceAccountRoutes
from broker.api.dialects.image_service.api_key import ImageServiceKeyRoutes
from broker.api.dialects.image_service.routes import ImageServiceRoutes
from broker.api.http.auth import Authenticator
from broker.api.http.endpoint import Dialect
from broker.api.shared.detail_errors import DetailError, render_detail_error
from broker.api.shared.held_answers import HeldAnswers
from broker.services import Services


def image_service_dialect(services: Services) -> Dialect:
    """Return the dialect, mounted on the parts that it uses."""
    messages = services.presenter.messages
    routes = ImageServiceRoutes(
        held=HeldAnswers.from_services(services),
        queries=services.queries,
        canceler=services.canceler,
        deleter=services.deleter,
        messages=messages,
        public_base=lambda: services.address.base,
    )
    accounts = ImageServiceAccountRoutes(
        users=services.users,
        logins=services.logins,
        quotas=services.quotas,
        origins=services.settings.cors_origins,
    )
    keys = ImageServiceKeyRoutes(service=services.provider_keys, messages=messages)
    return Dialect(
        name="image_service",
        authenticate=Authenticator.from_services(services).authenticate,
        render_error=partial(render_detail_error, messages),
        error_model=DetailError,
        endpoints=[*routes.endpoints(), *accounts.endpoints(), *keys.endpoints()],
    )
