"""Error codes of fal: HTTP statuses (fal: Request Errors, Model Errors); the types of a `detail` are shared names.

403 is a key without permission or an account without balance, which only its message tells apart.
"""

from __future__ import annotations

from typing import Final

from broker.providers.error_codes import AUTH, HTTP_ACCOUNT, HTTP_ORDER, ErrorTable

ERRORS: Final = ErrorTable(
    account={code: error for code, error in HTTP_ACCOUNT.items() if code != 403},
    order={**HTTP_ORDER, 403: AUTH},
)
