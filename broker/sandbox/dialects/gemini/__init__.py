"""Google's Gemini API, and relays of its shape."""

from __future__ import annotations

from typing import Final

from broker.sandbox.dialect import SandboxDialect
from broker.sandbox.dialects.gemini.faults import FAULTS
from broker.sandbox.dialects.gemini.routes import GeminiRoutes, respond_to_rejected
from broker.sandbox.dialects.gemini.webhooks import GeminiWebhooks

GEMINI: Final = SandboxDialect(
    name="gemini",
    faults=FAULTS,
    build_routes=lambda service: GeminiRoutes(service).build(),
    respond_to_rejected=respond_to_rejected,
    variables=lambda url, key: {"GEMINI_BASE_URL": url, "GEMINI_API_KEY": key},
    callbacks=lambda options: GeminiWebhooks(secret=options.webhook_key),
)
