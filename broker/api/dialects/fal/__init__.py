"""The dialect of fal: queue, synchronous runs, proxy of the JavaScript client; README.md states where it differs."""

from __future__ import annotations

from broker.api.dialects.fal.errors import is_fal_client, render_error
from broker.api.dialects.fal.orders import FalOrders
from broker.api.dialects.fal.queue import FalQueue
from broker.api.dialects.fal.results import FalResults
from broker.api.dialects.fal.routes import FalEndpoints
from broker.api.dialects.fal.runs import FalRuns
from broker.api.dialects.fal.schemas import FalError, FalJwks
from broker.api.dialects.fal.statuses import FalStatuses
from broker.api.dialects.fal.uploads import FalUploads
from broker.api.http.auth import Authenticator, KeyPlaces
from broker.api.http.endpoint import Dialect
from broker.api.shared.files import SharedFiles
from broker.api.shared.held_answers import HeldAnswers
from broker.services import Services
from webhooks.signatures.ed25519_lines import derived_key, write_keys

PLACES = KeyPlaces(schemes=("key",), has_key_ids=True)


def fal_dialect(services: Services) -> Dialect:
    """Return the dialect, mounted on the parts that it uses."""
    messages, held = services.presenter.messages, HeldAnswers.from_services(services)
    orders = FalOrders(
        held=held,
        catalog=services.catalog,
        public_base=lambda: services.address.base,
    )
    results = FalResults(queries=services.queries, blobs=services.blobs, messages=messages)
    queue = FalQueue(
        orders=orders,
        queries=services.queries,
        canceler=services.canceler,
        statuses=FalStatuses(eta=services.eta, messages=messages),
        results=results,
    )

    def read_keys() -> FalJwks:
        keys = [derived_key(secret).public_key() for secret in services.tokens.secrets]
        return FalJwks.model_validate(write_keys(keys))

    routes = FalEndpoints(
        queue=queue,
        runs=FalRuns(held=held, orders=orders, results=results, canceler=services.canceler),
        uploads=FalUploads(shared=SharedFiles.from_services(services)),
        read_keys=read_keys,
    )
    return Dialect(
        name="fal",
        authenticate=Authenticator.from_services(services, PLACES).authenticate,
        render_error=render_error,
        error_model=FalError,
        is_client=is_fal_client,
        endpoints=routes.endpoints(),
    )
