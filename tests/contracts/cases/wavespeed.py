"""WaveSpeed."""

from __future__ import annotations

from typing import Any

from tests.contracts.providers import ECHO, IMAGE, JOB, KEY, PACKAGES, PAGE, UNKNOWN_ANYWHERE, Canned, Case


def prediction(status: str, *outputs: str, error: str = "") -> dict[str, Any]:
    urls = {"get": f"https://api.wavespeed.ai/api/v3/predictions/{JOB}/result"}
    return {
        "id": JOB,
        "model": "google/nano-banana",
        "status": status,
        "outputs": [*outputs],
        "urls": urls,
        "error": error,
    }


def envelope(status: str, *outputs: str, error: str = "") -> dict[str, Any]:
    return {"code": 200, "message": "success", "data": prediction(status, *outputs, error=error)}


WAVESPEED = Case(
    package=PACKAGES["wavespeed"],
    settings=lambda url: {"wavespeed_keys": KEY, "wavespeed_url": f"{url}/api/v3"},
    accepted=(Canned(body=envelope("created")), Canned(body=envelope("processing"))),
    refused=(
        (Canned(status=401, body={"code": 401, "message": ECHO}), "provider_auth", False),
        (Canned(status=400, body={"code": 400, "message": ECHO}), "provider_rejected", False),
        (Canned(body={"code": 402, "message": ECHO}), "provider_credits", False),
        (Canned(status=404, body={"code": 404, "message": ECHO}), "provider_rejected", False),
        (Canned(status=429, body={"code": 429, "message": ECHO}), "provider_rate_limited", True),
    ),
    unknown=UNKNOWN_ANYWHERE,
    running=tuple(Canned(body=envelope(status)) for status in ("created", "processing", "dreaming")),
    finished=(Canned(body=envelope("completed", IMAGE)),),
    failed=(Canned(body=envelope("failed", error=ECHO)),),
    unreadable=(
        Canned(hang_up=True),
        PAGE,
        Canned(status=404, body={"code": 404, "message": ECHO}),
        Canned(body={"code": 500, "message": ECHO}),
        Canned(body=b"{"),
    ),
    callbacks_running=(prediction("processing"),),
    callbacks_finished=(prediction("completed", IMAGE), envelope("completed", IMAGE)),
    callbacks_failed=(prediction("failed", error=ECHO),),
)
