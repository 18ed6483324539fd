"""Health checks of an account at Replicate."""

from __future__ import annotations

from typing import Final

from broker.providers.health import account_checks

CHECKS: Final = account_checks(
    url_variable="REPLICATE_BASE_URL",
    key_variable="REPLICATE_API_TOKEN",
    account_path="/v1/account",
    page="https://replicate.com/account/api-tokens",
    needs=frozenset({"replicate_tokens", "replicate_url"}),
)
