"""Errors of OpenRouter (openrouter.ai: Errors): `{"error": {"code", "message", "metadata"}}`, also within HTTP 200."""

from __future__ import annotations

from typing import Final

from broker.providers.error_codes import AUTH, HTTP_ACCOUNT, HTTP_ORDER, ErrorTable

ERRORS: Final = ErrorTable(
    account={code: error for code, error in HTTP_ACCOUNT.items() if code != 403},
    order={**HTTP_ORDER, 403: AUTH},  # the moderation of an input answers 403, too, and its message says so
)
