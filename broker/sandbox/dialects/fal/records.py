"""States, outputs, errors and callbacks as fal documents them."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from broker.sandbox.callbacks import CallbackDelivery
from broker.sandbox.dialects.fal.faults import FAILURES, NO_RESULTS, FalFault
from broker.sandbox.dialects.fal.signing import SigningKeys
from broker.sandbox.faults import Fault, JobFailure
from broker.sandbox.jobs import Job, JobView

STATUSES = {
    "waiting": "IN_QUEUE",
    "queuing": "IN_QUEUE",
    "generating": "IN_PROGRESS",
    "success": "COMPLETED",
    "fail": "COMPLETED",
}
RUNNING = {"IN_QUEUE", "IN_PROGRESS"}


def build_ticket(job: Job, base_url: str) -> dict[str, Any]:
    """Return what identifies a request, with its addresses."""
    address = f"{base_url}/{job.request['app']}/requests/{job.id}"
    return {
        "request_id": job.id,
        "gateway_request_id": job.id,
        "response_url": address,
        "status_url": f"{address}/status",
        "cancel_url": f"{address}/cancel",
    }


def build_status(view: JobView, base_url: str) -> dict[str, Any]:
    """Return a status. COMPLETED is said of failures, too."""
    status = STATUSES.get(view.stage, view.stage.upper())
    body = {"status": status, **build_ticket(view.job, base_url), "logs": None}
    if status == "IN_QUEUE":
        return body | {"queue_position": 0}
    if view.failure:
        code, kind = FAILURES[view.failure.kind]
        body |= {"error": f"Invalid status code: {code}", "error_type": kind}
    elif status == "COMPLETED":
        body |= {"metrics": {"inference_time": 1.5}}
    return body


def build_output(view: JobView) -> dict[str, Any]:
    """Return the output of a request that succeeded."""
    if Fault.NORESULT in view.job.faults:
        return NO_RESULTS[int(view.job.faults[Fault.NORESULT]) % len(NO_RESULTS)]
    images = [
        {
            "url": url,
            "content_type": f"image/{view.job.image_format}",
            "file_name": url.rpartition("/")[2],
            "file_size": None,
            "width": None,
            "height": None,
        }
        for url in view.urls
    ]
    return {"images": images, "description": ""}


def build_error(failure: JobFailure, job: Job) -> dict[str, Any]:
    """Return the body of a failed request: details by the model, one sentence for a fault of the server."""
    code, kind = FAILURES[failure.kind]
    if code >= 500:
        return {"detail": failure.text, "error_type": kind}
    return {"detail": [build_detail(kind, failure.text, job.request["input"])]}


def build_detail(kind: str, text: str, given: Any) -> dict[str, Any]:
    """Return one detail of an error."""
    url = f"https://docs.fal.ai/errors#{kind}"
    return {"loc": ["body", "prompt"], "msg": text, "type": kind, "url": url, "ctx": {}, "input": given}


@dataclass(frozen=True, kw_only=True)
class FalCallbacks:
    """The callbacks of fal, which are always signed."""

    keys: SigningKeys

    def build_body(self, view: JobView) -> Any:
        """Return the output or the error with its request; a running job, which only a fault shows, as a status."""
        job = view.job
        body: dict[str, Any] = {"request_id": job.id, "gateway_request_id": job.id}
        if FalFault.RETRIED in job.faults:
            body["gateway_request_id"] = hashlib.sha256(job.id.encode()).hexdigest()[:32]
        if STATUSES.get(view.stage) != "COMPLETED":
            return body | {"status": STATUSES.get(view.stage, view.stage.upper())}
        if FalFault.PAYLOAD_NULL in job.faults:
            status = "ERROR" if view.failure else "OK"
            return body | {"status": status, "payload": None, "payload_error": "Payload could not be serialized"}
        if view.failure:
            error = f"Invalid status code: {FAILURES[view.failure.kind][0]}"
            return body | {"status": "ERROR", "error": error, "payload": build_error(view.failure, job)}
        return body | {"status": "OK", "error": None, "payload": build_output(view)}

    def sign(self, delivery: CallbackDelivery) -> Mapping[str, str]:
        """Return the signature headers. A wrong one is by the right key, about another body."""
        number = 1 if FalFault.ROTATED in delivery.job.faults else 0
        body = delivery.body + b" " if delivery.is_wrong else delivery.body
        return self.keys.sign(number, delivery.job.id, delivery.timestamp, body)
