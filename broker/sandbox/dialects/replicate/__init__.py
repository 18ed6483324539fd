"""Replicate."""

from __future__ import annotations

from typing import Final

from broker.sandbox.dialect import SandboxDialect
from broker.sandbox.dialects.replicate.records import ReplicateCallbacks, webhook_secret
from broker.sandbox.dialects.replicate.routes import ReplicateRoutes, respond_to_rejected
from broker.sandbox.faults import JOB_FAULTS

REPLICATE: Final = SandboxDialect(
    name="replicate",
    faults=JOB_FAULTS,
    build_routes=lambda service: ReplicateRoutes(service).build(),
    respond_to_rejected=respond_to_rejected,
    variables=lambda url, key: {"REPLICATE_BASE_URL": url, "REPLICATE_API_TOKEN": key},
    callbacks=lambda options: ReplicateCallbacks(secret=webhook_secret(options)),
)
