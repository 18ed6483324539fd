"""nanobananaapi.ai."""

from __future__ import annotations

from typing import Any

from tests.contracts.providers import ECHO, IMAGE, JOB, KEY, PACKAGES, PAGE, UNKNOWN_ANYWHERE, Canned, Case

IMPOSSIBLE_TIME = "2026-02-27 24:00:00"


def record(flag: int | None, *, url: Any = None, error: str | None = None) -> dict[str, Any]:
    """Return a record. Its code is 200 even when the job failed."""
    data = {
        "taskId": JOB,
        "completeTime": IMPOSSIBLE_TIME,
        "response": {"originImageUrl": "https://origin.example/x.png", "resultImageUrl": url},
        "successFlag": flag,
        "errorCode": 500 if error else None,
        "errorMessage": error,
    }
    return {"code": 200, "msg": "success", "data": data}


def first_callback(code: int, msg: str, url: str | None) -> dict[str, Any]:
    return {"code": code, "msg": msg, "data": {"taskId": JOB, "info": {"resultImageUrl": url}}}


NANOBANANAAPI = Case(
    package=PACKAGES["nanobananaapi"],
    settings=lambda url: {"nanobananaapi_keys": KEY, "nanobananaapi_url": f"{url}/api/v1/nanobanana"},
    accepted=(
        Canned(body={"code": 200, "msg": "success", "data": {"taskId": JOB}}),
        Canned(body={"code": "200", "message": "success", "data": {"taskId": JOB}}),
    ),
    refused=(
        (Canned(body={"code": 402, "msg": ECHO, "data": None}), "provider_credits", False),
        (Canned(status=401, body={"code": 401, "msg": ECHO}), "provider_auth", False),
        (Canned(body={"code": 422, "msg": ECHO}), "provider_rejected", False),
        (Canned(body={"code": 429, "msg": ECHO}), "provider_rate_limited", True),
        (Canned(body={"code": 455, "msg": ECHO}), "provider_unavailable", True),
    ),
    unknown=(*UNKNOWN_ANYWHERE, Canned(body={"code": 500, "msg": ECHO, "data": None}), Canned(body={"code": 501})),
    running=(Canned(body=record(0)), Canned(body=record(None)), Canned(body=record(9))),
    finished=(Canned(body=record(1, url=IMAGE)), Canned(body=record(1, url=[IMAGE]))),
    failed=(Canned(body=record(2, error=ECHO)), Canned(body=record(3, error=ECHO))),
    unreadable=(
        Canned(hang_up=True),
        PAGE,
        Canned(body={"code": 422, "msg": "recordInfo is null", "data": None}),
        Canned(body={"code": 500, "msg": ECHO, "data": None}),
        Canned(body=b"{"),
    ),
    callbacks_running=(record(0),),
    callbacks_finished=(record(1, url=IMAGE), first_callback(200, "Image generated successfully.", IMAGE)),
    callbacks_failed=(
        record(3, error=ECHO),
        first_callback(400, ECHO, None),
        first_callback(501, ECHO, ""),
        {"code": 500, "msg": ECHO, "data": {"taskId": JOB}},
    ),
)
