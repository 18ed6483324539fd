"""Records and callbacks as nanobananaapi.ai documents them: two shapes of callbacks, and times that cannot be."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from broker.sandbox.callbacks import CallbackDelivery
from broker.sandbox.faults import FailureKind, Fault
from broker.sandbox.jobs import JobView

FLAGS: Mapping[FailureKind, int] = {
    FailureKind.NO_IMAGE: 3,
    FailureKind.FLAGGED: 3,
    FailureKind.INTERNAL: 3,
    FailureKind.REFERENCE: 2,
}
"""`successFlag`: 0 running, 1 success, 2 create failed, 3 generation failed."""
CODES: Mapping[FailureKind, int] = {
    FailureKind.NO_IMAGE: 501,
    FailureKind.FLAGGED: 400,
    FailureKind.INTERNAL: 500,
    FailureKind.REFERENCE: 400,
}


def envelope(code: int, msg: str, data: Any = None) -> dict[str, Any]:
    return {"code": code, "msg": msg, "data": data}


def build_record(view: JobView) -> dict[str, Any]:
    """Return `data` of a record-info. A stage of no meaning becomes a flag of none."""
    job, failure = view.job, view.failure
    running = {"waiting": 0, "queuing": 0, "generating": 0, "success": 1}
    return {
        "taskId": job.id,
        "paramJson": json.dumps(job.request["body"]),
        "completeTime": _impossible_time(view.ended_at) if view.ended_at else None,
        "response": {"originImageUrl": None, "resultImageUrl": _result_url(view)} if view.urls else None,
        "successFlag": FLAGS[failure.kind] if failure else running.get(view.stage, 7),
        "errorCode": CODES[failure.kind] if failure else None,
        "errorMessage": failure.text if failure else None,
        "operationType": job.request["endpoint"],
        "createTime": _impossible_time(job.created_at),
    }


def _result_url(view: JobView) -> Any:
    """Return one URL; an array for several images."""
    if Fault.NORESULT in view.job.faults:
        return None
    return view.urls[0] if len(view.urls) == 1 else list(view.urls)


def _impossible_time(at: float) -> str:
    """Return a local time without a zone, in which midnight is the 24th hour of the day before."""
    return datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%d 24:%M:%S")


class NanoBananaApiCallbacks:
    """The callbacks: a record with code 200 even for a failure; that of `generate` is another."""

    def build_body(self, view: JobView) -> Any:
        if view.job.request["endpoint"] != "generate" or view.stage not in {"success", "fail"}:
            return envelope(200, "success", build_record(view))
        data = {"taskId": view.job.id, "info": {"resultImageUrl": _result_url(view) if view.urls else None}}
        if view.failure:
            return envelope(CODES[view.failure.kind], view.failure.text, data)
        return envelope(200, "Image generated successfully.", data)

    def sign(self, delivery: CallbackDelivery) -> Mapping[str, str]:
        return {}
