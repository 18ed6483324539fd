"""Replicate."""

from __future__ import annotations

from typing import Any

from tests.contracts.providers import ECHO, IMAGE, JOB, KEY, PACKAGES, PAGE, UNKNOWN_ANYWHERE, Canned, Case


def prediction(status: str, **fields: Any) -> dict[str, Any]:
    urls = {"get": "https://api.replicate.com/v1/predictions/x", "web": "https://replicate.com/p/x"}
    return {
        "id": JOB,
        "status": status,
        "input": {"prompt": "x"},
        "output": None,
        "error": None,
        "urls": urls,
        **fields,
    }


REPLICATE = Case(
    package=PACKAGES["replicate"],
    settings=lambda url: {"replicate_tokens": KEY, "replicate_url": f"{url}/v1"},
    accepted=(
        Canned(status=201, body=prediction("starting")),
        Canned(status=202, body=prediction("processing")),
    ),
    refused=(
        (Canned(status=401, body={"title": "Unauthenticated", "detail": ECHO, "status": 401}), "provider_auth", False),
        (Canned(status=402, body={"detail": ECHO}), "provider_credits", False),
        (Canned(status=422, body={"detail": ECHO, "invalid_fields": []}), "provider_rejected", False),
        (Canned(status=404, body={"detail": ECHO}), "provider_rejected", False),
        (Canned(status=429, body={"detail": ECHO}), "provider_rate_limited", True),
    ),
    unknown=UNKNOWN_ANYWHERE,
    running=tuple(Canned(body=prediction(status)) for status in ("starting", "processing", "dreaming")),
    finished=(
        Canned(body=prediction("succeeded", output=IMAGE)),
        Canned(body=prediction("succeeded", output=[IMAGE])),
    ),
    failed=tuple(Canned(body=prediction(status, error=ECHO)) for status in ("failed", "canceled", "aborted")),
    unreadable=(
        Canned(hang_up=True),
        PAGE,
        Canned(status=404, body={"detail": ECHO}),
        Canned(status=401, body={"detail": ECHO}),
        Canned(body={**prediction("succeeded", output=IMAGE), "id": "another"}),
        Canned(body=b"{"),
    ),
    callbacks_running=(prediction("processing"),),
    callbacks_finished=(prediction("succeeded", output=IMAGE), prediction("succeeded", output=[IMAGE])),
    callbacks_failed=(prediction("failed", error=ECHO), prediction("canceled")),
    canceled=Canned(body=prediction("canceled")),
)
