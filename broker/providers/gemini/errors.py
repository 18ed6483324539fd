"""Errors of the Gemini API (ai.google.dev: Troubleshooting), of which names say more than the HTTP status."""

from __future__ import annotations

from typing import Any, Final

from broker.providers import parsing
from broker.providers.error_codes import HTTP_ACCOUNT, HTTP_ORDER, ErrorTable

ERRORS: Final = ErrorTable(account=HTTP_ACCOUNT, order=HTTP_ORDER)

OVERLOADED: Final = "UNAVAILABLE"
"""Status of a request that the model never got, because it was overloaded."""
UNBILLED_AT_GOOGLE: Final = "INTERNAL"
"""Status that Google does not bill (ai.google.dev: Billing); a relay may."""


def error_status(body: Any) -> str | None:
    """Return the status of an error object, like `UNAVAILABLE`; None without one."""
    return parsing.text(parsing.mapping(parsing.mapping(body).get("error")).get("status"))


def retry_delay(body: Any) -> float | None:
    """Return the seconds of a RetryInfo among the details of an error: `"retryDelay": "17s"`."""
    delays = parsing.values_at([body], "error.details.*.retryDelay")
    return parsing.first(
        lambda value: parsing.amount(value.removesuffix("s")) if isinstance(value, str) else None, delays
    )
