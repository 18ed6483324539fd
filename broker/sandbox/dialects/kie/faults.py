"""Faults that only kie.ai's API has."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from broker.sandbox.faults import FailureKind, FaultName, Faults

Record = dict[str, Any]


class KieFault(FaultName):
    """Faults of envelopes and bodies."""

    CODE = "code", "HTTP 200 whose body says code VALUE; no job is made", 500
    MESSAGE = "message", "envelopes say `message` instead of `msg`"
    CODE_STRING = "code_string", "envelopes carry the code as a string"
    CONTRADICTION = "contradiction", "the code means failure and the state success, or the reverse"
    TOPLEVEL = "toplevel", "taskId at the top level only"
    SNAKE = "snake", "data.task_id instead of data.taskId"


FAIL_CODES: Mapping[FailureKind, str] = {
    FailureKind.NO_IMAGE: "500",
    FailureKind.FLAGGED: "400",
    FailureKind.INTERNAL: "500",
    FailureKind.REFERENCE: "400",
}

NO_RESULTS: tuple[str | None, ...] = (None, "", '{"resultUrls":[]}', '{"resultUrls":["http')
"""`resultJson` of a success without a result, by the VALUE of the fault."""


def apply_envelope_faults(body: Record, faults: Faults) -> Record:
    if KieFault.MESSAGE in faults:
        body = {("message" if key == "msg" else key): value for key, value in body.items()}
    if KieFault.CODE_STRING in faults:
        body = {**body, "code": str(body["code"])}
    return body


def apply_callback_faults(body: Record, faults: Faults) -> Record:
    data = dict(body["data"])
    if KieFault.CONTRADICTION in faults:
        body = {**body, "code": 501 if body["code"] == 200 else 200}
    if KieFault.TOPLEVEL in faults:
        body = {**body, "taskId": data.pop("taskId"), "data": data}
    elif KieFault.SNAKE in faults:
        data["task_id"] = data.pop("taskId")
        body = {**body, "data": data}
    return apply_envelope_faults(body, faults)
