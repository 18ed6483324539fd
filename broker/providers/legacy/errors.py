"""Error codes of the older dialect: its services resell kie.ai and pass on its codes."""

from __future__ import annotations

from typing import Final

from broker.providers.error_codes import AWAY, CREDITS, FAILED, HTTP_ACCOUNT, HTTP_ORDER, REFUNDED, REJECTED, ErrorTable

ERRORS: Final = ErrorTable(
    account={
        **HTTP_ACCOUNT,
        433: CREDITS,  # a sub-key's own limit
        455: AWAY,  # maintenance
    },
    order={
        **HTTP_ORDER,
        408: FAILED,  # of a job: no result for more than ten minutes
        413: REJECTED,  # the input matches an existing work
        451: REJECTED,  # a reference image could not be downloaded
        501: FAILED,  # generation failed
        505: REJECTED,  # feature disabled
        531: REFUNDED,  # failed, credits returned
    },
    catch_all=frozenset({500, 501}),  # used even for a bad ratio
)
