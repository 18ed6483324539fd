"""Health checks of an account at nanobananaapi.ai."""

from __future__ import annotations

from typing import Final

from broker.providers.health import account_checks

CHECKS: Final = account_checks(
    url_variable="NANOBANANAAPI_BASE_URL",
    key_variable="NANOBANANAAPI_KEY",
    account_path="/api/v1/common/credit",
    page="https://nanobananaapi.ai/api-key",
    needs=frozenset({"nanobananaapi_keys", "nanobananaapi_url"}),
)
