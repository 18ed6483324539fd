"""The route of docs/extending.md, mounted with the native authentication rule and error shape.

A route that ships with the broker is an entry in an endpoint list of `broker/api`, and needs no dialect of its own.
"""

from __future__ import annotations

from functools import partial

from broker.api.http.auth import Authenticator
from broker.api.http.endpoint import Dialect
from broker.api.http.responses import ErrorResponse, error_response
from broker.services import Services
from tests.examples.route.newest import NewestRoute


def newest_dialect(services: Services) -> Dialect:
    """Return a dialect of one endpoint."""
    return Dialect(
        name="newest",
        authenticate=Authenticator.from_services(services).authenticate,
        render_error=partial(error_response, services.presenter.messages),
        error_model=ErrorResponse,
        endpoints=NewestRoute(queries=services.queries).endpoints(),
    )
