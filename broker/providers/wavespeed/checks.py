"""Health checks of an account at WaveSpeed."""

from __future__ import annotations

from typing import Final

from broker.providers.health import account_checks

CHECKS: Final = account_checks(
    url_variable="WAVESPEED_BASE_URL",
    key_variable="WAVESPEED_API_KEY",
    account_path="/api/v3/balance",
    page="https://wavespeed.ai/accesskey",
    needs=frozenset({"wavespeed_keys", "wavespeed_url"}),
)
