"""Health checks of an account at OpenRouter."""

from __future__ import annotations

from typing import Final

from broker.providers.health import account_checks

CHECKS: Final = account_checks(
    url_variable="OPENROUTER_BASE_URL",
    key_variable="OPENROUTER_API_KEY",
    account_path="/api/v1/key",
    page="https://openrouter.ai/keys",
    needs=frozenset({"openrouter_keys", "openrouter_url"}),
)
