"""WaveSpeed."""

from __future__ import annotations

from typing import Final

from broker.sandbox.dialect import SandboxDialect
from broker.sandbox.dialects.wavespeed.records import WaveSpeedCallbacks, webhook_secret
from broker.sandbox.dialects.wavespeed.routes import WaveSpeedRoutes, respond_to_rejected
from broker.sandbox.faults import JOB_FAULTS

WAVESPEED: Final = SandboxDialect(
    name="wavespeed",
    faults=JOB_FAULTS,
    build_routes=lambda service: WaveSpeedRoutes(service).build(),
    respond_to_rejected=respond_to_rejected,
    variables=lambda url, key: {"WAVESPEED_BASE_URL": url, "WAVESPEED_API_KEY": key},
    callbacks=lambda options: WaveSpeedCallbacks(secret=webhook_secret(options)),
)
