"""kie.ai."""

from __future__ import annotations

from typing import Final

from broker.sandbox.dialect import SandboxDialect
from broker.sandbox.dialects.kie.faults import KieFault
from broker.sandbox.dialects.kie.records import KieCallbacks
from broker.sandbox.dialects.kie.routes import KieRoutes, respond_to_rejected
from broker.sandbox.faults import Fault

KIE: Final = SandboxDialect(
    name="kie",
    faults=(*Fault, *KieFault),
    build_routes=lambda service: KieRoutes(service).build(),
    respond_to_rejected=respond_to_rejected,
    variables=lambda url, key: {
        "NANO_BANANA_API_URL": url,
        "NANO_BANANA_UPLOAD_URL": url,
        "NANO_BANANA_API_KEY": key,
    },
    callbacks=lambda options: KieCallbacks(key=options.webhook_key),
)
