"""Error codes of nanobananaapi.ai, which are of kie.ai's family (docs.nanobananaapi.ai)."""

from __future__ import annotations

from typing import Final

from broker.providers.error_codes import AWAY, FAILED, HTTP_ACCOUNT, HTTP_ORDER, REJECTED, ErrorTable

ERRORS: Final = ErrorTable(
    account={**HTTP_ACCOUNT, 455: AWAY},  # maintenance
    order={
        **HTTP_ORDER,
        501: FAILED,  # generation failed
        505: REJECTED,  # feature disabled
    },
    catch_all=frozenset({500, 501}),  # used even for a wrong name of a parameter
)
