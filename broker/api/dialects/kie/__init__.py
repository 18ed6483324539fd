"""The dialect of kie.ai, by which a broker can stand before a broker; README.md states where it differs."""

from __future__ import annotations

from broker.api.dialects.kie.errors import render_error
from broker.api.dialects.kie.routes import KieJobRoutes
from broker.api.dialects.kie.schemas import KieError
from broker.api.dialects.kie.uploads import KieUploadRoutes
from broker.api.http.auth import Authenticator
from broker.api.http.endpoint import Dialect
from broker.api.shared.files import SharedFiles
from broker.api.shared.held_answers import HeldAnswers
from broker.services import Services


def kie_dialect(services: Services) -> Dialect:
    """Return the dialect, mounted on the parts that it uses."""
    routes = KieJobRoutes(
        held=HeldAnswers.from_services(services),
        queries=services.queries,
        messages=services.presenter.messages,
        public_base=lambda: services.address.base,
        budget=services.budget,
        quotas=services.quotas,
        balances=services.balances,
        usd_per_unit=lambda provider: services.registry.terms(provider).usd_per_unit,
    )
    uploads = KieUploadRoutes(files=SharedFiles.from_services(services))
    return Dialect(
        name="kie",
        authenticate=Authenticator.from_services(services).authenticate,
        render_error=render_error,
        error_model=KieError,
        has_errors_in_success=True,
        endpoints=[*routes.endpoints(), *uploads.endpoints()],
    )
