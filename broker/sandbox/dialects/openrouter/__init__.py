"""OpenRouter."""

from __future__ import annotations

from typing import Final

from broker.sandbox.dialect import SandboxDialect
from broker.sandbox.dialects.openrouter.routes import FAULTS, OpenRouterRoutes, respond_to_rejected

OPENROUTER: Final = SandboxDialect(
    name="openrouter",
    faults=FAULTS,
    build_routes=lambda service: OpenRouterRoutes(service).build(),
    respond_to_rejected=respond_to_rejected,
    variables=lambda url, key: {"OPENROUTER_BASE_URL": f"{url}/api/v1", "OPENROUTER_API_KEY": key},
)
