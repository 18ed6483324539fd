"""fal: its queue, its file storage, and the keys of its callbacks."""

from __future__ import annotations

from typing import Final

from broker.sandbox.dialect import SandboxDialect
from broker.sandbox.dialects.fal.faults import FalFault
from broker.sandbox.dialects.fal.records import FalCallbacks
from broker.sandbox.dialects.fal.routes import FalRoutes, respond_to_rejected
from broker.sandbox.dialects.fal.signing import SigningKeys
from broker.sandbox.faults import JOB_FAULTS

FAL: Final = SandboxDialect(
    name="fal",
    faults=(*JOB_FAULTS, *FalFault),
    build_routes=lambda service: FalRoutes(service).build(),
    respond_to_rejected=respond_to_rejected,
    variables=lambda url, key: {"FAL_BASE_URL": url, "FAL_REST_BASE_URL": url, "FAL_KEY": key},
    callbacks=lambda options: FalCallbacks(keys=SigningKeys(options.webhook_key)),
)
