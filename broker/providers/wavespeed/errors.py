"""Error codes of WaveSpeed: its envelope repeats the HTTP status."""

from __future__ import annotations

from typing import Final

from broker.providers.error_codes import HTTP_ACCOUNT, HTTP_ORDER, ErrorTable

ERRORS: Final = ErrorTable(account=HTTP_ACCOUNT, order=HTTP_ORDER)
