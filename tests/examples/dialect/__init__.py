"""The dialect of docs/extending.md: authentication rule, error shape and endpoints of a foreign API.

A dialect that ships with the broker is a folder like this one in `broker/api`, and a line in `broker/app.py`.
"""

from __future__ import annotations

from broker.api.http.endpoint import Dialect
from broker.services import Services
from tests.examples.dialect.routes import ImageRoutes
from tests.examples.dialect.rules import ExampleAuthenticator, render_error
from tests.examples.dialect.schemas import ErrorBody, ImageRequest


def example_dialect(services: Services, request_model: type[ImageRequest] = ImageRequest) -> Dialect:
    """Return the dialect, mounted on the parts that it uses."""
    routes = ImageRoutes(orders=services.orders, queries=services.queries, request_model=request_model)
    return Dialect(
        name="example",
        authenticate=ExampleAuthenticator(services.settings.api_keys, services.tokens.secret).authenticate,
        render_error=render_error,
        error_model=ErrorBody,
        endpoints=routes.endpoints(),
    )
