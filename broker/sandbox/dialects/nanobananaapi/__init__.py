"""nanobananaapi.ai. Its callbacks are not signed."""

from __future__ import annotations

from typing import Final

from broker.sandbox.dialect import SandboxDialect
from broker.sandbox.dialects.nanobananaapi.records import NanoBananaApiCallbacks
from broker.sandbox.dialects.nanobananaapi.routes import NanoBananaApiRoutes, respond_to_rejected
from broker.sandbox.faults import JOB_FAULTS

NANOBANANAAPI: Final = SandboxDialect(
    name="nanobananaapi",
    faults=JOB_FAULTS,
    build_routes=lambda service: NanoBananaApiRoutes(service).build(),
    respond_to_rejected=respond_to_rejected,
    variables=lambda url, key: {"NANOBANANAAPI_BASE_URL": url, "NANOBANANAAPI_KEY": key},
    callbacks=lambda _: NanoBananaApiCallbacks(),
)
