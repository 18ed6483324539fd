"""Records, callbacks and signatures as kie.ai documents them."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from broker.sandbox.callbacks import CallbackDelivery
from broker.sandbox.dialects.kie.faults import FAIL_CODES, NO_RESULTS, apply_callback_faults
from broker.sandbox.faults import Fault
from broker.sandbox.jobs import JobView

SUCCESS_MESSAGE = "Playground task completed successfully."
FAILURE_MESSAGE = "Playground task failed."


def envelope(code: int, msg: str, data: Any = None) -> dict[str, Any]:
    return {"code": code, "msg": msg, "data": data}


def build_record(view: JobView) -> dict[str, Any]:
    """Return `data` of a recordInfo."""
    job, failure = view.job, view.failure
    created_at = int(job.created_at * 1000)
    ended_at = int(view.ended_at * 1000) if view.ended_at else None
    return {
        "taskId": job.id,
        "model": job.request["model"],
        "state": view.stage,
        "param": json.dumps(job.request),
        "resultJson": _result_json(view) if view.stage == "success" else None,
        "failCode": FAIL_CODES[failure.kind] if failure else "",
        "failMsg": failure.text if failure else "",
        "costTime": ended_at - created_at if ended_at else None,
        "completeTime": ended_at,
        "createTime": created_at,
        "updateTime": ended_at or created_at,
        "creditsConsumed": view.cost,
    }


def _result_json(view: JobView) -> str | None:
    if Fault.NORESULT in view.job.faults:
        return NO_RESULTS[int(view.job.faults[Fault.NORESULT]) % len(NO_RESULTS)]
    return json.dumps({"resultUrls": view.urls})


@dataclass(frozen=True, kw_only=True)
class KieCallbacks:
    """The callbacks of an account. key: its webhookHmacKey; None sends them unsigned."""

    key: str | None

    def build_body(self, view: JobView) -> Any:
        """Return the record in the form of a callback: seconds for milliseconds, null for empty, JSON in JSON twice."""
        data = build_record(view)
        failed = view.stage == "fail"
        param = {**view.job.request, "input": json.dumps(view.job.request["input"])}
        changes = {
            "param": json.dumps(param),
            "failCode": data["failCode"] or None,
            "failMsg": data["failMsg"] or None,
            "costTime": (data["costTime"] or 0) // 1000,
        }
        body = envelope(501 if failed else 200, FAILURE_MESSAGE if failed else SUCCESS_MESSAGE, {**data, **changes})
        return apply_callback_faults(body, view.job.faults)

    def sign(self, delivery: CallbackDelivery) -> Mapping[str, str]:
        """Return the signature headers; none without a key, as kie.ai does."""
        key = f"not {self.key}" if delivery.is_wrong else self.key
        if key is None:
            return {}
        signature = compute_signature(key, delivery.job.id, delivery.timestamp)
        return {"X-Webhook-Timestamp": str(delivery.timestamp), "X-Webhook-Signature": signature}


def compute_signature(key: str, task_id: str, timestamp: int) -> str:
    """Return base64(HMAC-SHA256(key, "<task id>.<timestamp>")); the body is not covered."""
    digest = hmac.digest(key.encode(), f"{task_id}.{timestamp}".encode(), hashlib.sha256)
    return base64.b64encode(digest).decode()
