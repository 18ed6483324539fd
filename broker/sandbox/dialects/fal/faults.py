"""Faults that only fal's API has."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from broker.sandbox.faults import FailureKind, FaultName


class FalFault(FaultName):
    """Faults of callbacks and of their keys."""

    PAYLOAD_NULL = "payload_null", "the callback has no payload, but a payload_error: the result must be fetched"
    RETRIED = "retried", "the gateway_request_id is another than the request_id"
    ROTATED = "rotated", "the callback is signed with a new key, which is published from then on, beside the old one"
    KEYS_DOWN = "keys_down", "from this job on the published keys answer 503"


FAILURES: Mapping[FailureKind, tuple[int, str]] = {
    FailureKind.NO_IMAGE: (422, "no_media_generated"),
    FailureKind.FLAGGED: (422, "content_policy_violation"),
    FailureKind.INTERNAL: (500, "internal_server_error"),
    FailureKind.REFERENCE: (422, "file_download_error"),
    FailureKind.CANCELED: (499, "client_cancelled"),
}
"""HTTP status of the result, and the type of its detail."""

NO_RESULTS: tuple[dict[str, Any], ...] = ({"images": []}, {"images": None}, {}, {"images": [{"url": ""}]})
"""The output of a success without a result, by the VALUE of the fault."""
