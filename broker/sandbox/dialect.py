"""Records, callbacks and signatures as kie.ai documents them."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
from collections.abc import Callable
from typing import Any

from broker.sandbox.answers import envelope
from broker.sandbox.faults import PlannedCallback, build_result_json
from broker.sandbox.jobs import Job

SUCCESS_MESSAGE = "Playground task completed successfully."
FAILURE_MESSAGE = "Playground task failed."


def build_record(job: Job, stage: str, url: Callable[[int], str]) -> dict[str, Any]:
    """Return `data` of a recordInfo. stage: waiting, queuing or generating, for a job that has not ended."""
    end, created_at = job.end, int(job.created_at * 1000)
    failure = end.failure if end else None
    ended_at = int(end.at * 1000) if end else None
    return {
        "taskId": job.task_id,
        "model": job.request["model"],
        "state": "fail" if failure else "success" if end else stage,
        "param": json.dumps(job.request),
        "resultJson": build_result_json(job.faults, url) if end and not failure else None,
        "failCode": failure.code if failure else "",
        "failMsg": failure.text if failure else "",
        "costTime": ended_at - created_at if ended_at else None,
        "completeTime": ended_at,
        "createTime": created_at,
        "updateTime": ended_at or created_at,
        "creditsConsumed": end.credits if end else 0,
    }


def build_callback(job: Job, url: Callable[[int], str]) -> dict[str, Any]:
    """Return the record in the form of a callback: seconds for milliseconds, null for empty, JSON in JSON in JSON."""
    data = build_record(job, "", url)
    failed = data["state"] == "fail"
    param = {**job.request, "input": json.dumps(job.request["input"])}
    changes = {
        "param": json.dumps(param),
        "failCode": data["failCode"] or None,
        "failMsg": data["failMsg"] or None,
        "costTime": (data["costTime"] or 0) // 1000,
    }
    return envelope(501 if failed else 200, FAILURE_MESSAGE if failed else SUCCESS_MESSAGE, {**data, **changes})


def compute_signature(key: str, task_id: str, timestamp: int) -> str:
    """Return base64(HMAC-SHA256(key, "<task id>.<timestamp>")); the body is not covered."""
    digest = hmac.digest(key.encode(), f"{task_id}.{timestamp}".encode(), hashlib.sha256)
    return base64.b64encode(digest).decode()


def sign_callback(callback: PlannedCallback, key: str | None, task_id: str, now: float) -> dict[str, str]:
    """Return the signature headers of a callback sent at `now`; none without a key, as kie.ai does."""
    key = f"not {key}" if callback.signature == "wrong" else key
    if callback.signature == "none" or key is None:
        return {}
    timestamp = int(now - callback.age)
    return {"X-Webhook-Timestamp": str(timestamp), "X-Webhook-Signature": compute_signature(key, task_id, timestamp)}
