"""fal."""

from __future__ import annotations

from typing import Any

from tests.contracts.providers import ECHO, IMAGE, JOB, KEY, PACKAGES, PAGE, UNKNOWN_ANYWHERE, Canned, Case


def queued(status: str = "IN_QUEUE") -> dict[str, Any]:
    base = f"https://queue.fal.run/fal-ai/nano-banana/requests/{JOB}"
    return {
        "request_id": JOB,
        "gateway_request_id": JOB,
        "status": status,
        "queue_position": 0,
        "response_url": base,
        "status_url": f"{base}/status",
        "cancel_url": f"{base}/cancel",
    }


def output(**fields: Any) -> dict[str, Any]:
    """Return an output; fal leaves sizes out of some."""
    image = {"url": IMAGE, "content_type": "image/png", "file_name": "one.png", "file_size": None, "width": None}
    return {"images": [image], "description": "", **fields}


def rejected(kind: str, message: str = ECHO) -> dict[str, Any]:
    return {"detail": [{"loc": ["body", "prompt"], "msg": message, "type": kind, "input": "x"}]}


def callback(status: str, **fields: Any) -> dict[str, Any]:
    return {"request_id": JOB, "gateway_request_id": "another", "status": status, **fields}


COMPLETED = Canned(body=queued("COMPLETED"))

FAL = Case(
    package=PACKAGES["fal"],
    settings=lambda url: {"fal_keys": KEY, "fal_url": f"{url}/v1", "fal_rest_url": url},
    auth_scheme="Key",
    job=f"fal-ai/nano-banana/requests/{JOB}",
    accepted=(
        Canned(body=queued()),
        Canned(status=202, body={"request_id": JOB, "gateway_request_id": "another"}),
    ),
    refused=(
        (Canned(status=401, body={"detail": ECHO}), "provider_auth", False),
        (Canned(status=403, body={"detail": ECHO}), "provider_auth", False),
        (Canned(status=403, body={"detail": "User is locked. Reason: Exhausted balance."}), "provider_credits", False),
        (Canned(status=404, body={"detail": ECHO}), "provider_rejected", False),
        (Canned(status=422, body=rejected("missing")), "provider_rejected", False),
        (Canned(status=422, body=rejected("content_policy_violation")), "safety_input", False),
        (Canned(status=429, body={"detail": ECHO}), "provider_rate_limited", True),
    ),
    unknown=(*UNKNOWN_ANYWHERE, Canned(status=500, body=rejected("internal_server_error"))),
    running=(
        *(Canned(status=202, body=queued(status)) for status in ("IN_QUEUE", "IN_PROGRESS")),
        Canned(body=queued("DREAMING")),
    ),
    before_end=(COMPLETED,),
    finished=(Canned(body=output()), Canned(body=output(seed=7, description=None))),
    failed=(
        Canned(status=422, body=rejected("content_policy_violation")),
        Canned(status=422, body=rejected("no_media_generated")),
        Canned(status=500, body={"detail": ECHO, "error_type": "runner_server_error"}),
    ),
    unreadable=(
        Canned(hang_up=True),
        PAGE,
        Canned(status=404, body={"detail": ECHO}),
        Canned(status=401, body={"detail": ECHO}),
        Canned(body={"request_id": JOB}),
        Canned(body=b"{"),
    ),
    callbacks_running=(),
    callbacks_finished=(callback("OK", payload=output()), callback("OK", payload=output(), error=None)),
    callbacks_failed=(
        callback("ERROR", error="Invalid status code: 422", payload=rejected("content_policy_violation")),
        callback("ERROR", error="Invalid status code: 500", payload={"detail": ECHO}),
        callback("ERROR", error=ECHO, payload=None),
    ),
    canceled=Canned(status=202, body={"status": "CANCELLATION_REQUESTED"}),
)
