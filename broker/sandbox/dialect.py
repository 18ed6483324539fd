"""kie.ai's words: records, callbacks and signatures, as its documents spell them."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
from collections.abc import Callable
from typing import Any

from broker.sandbox.answers import envelope
from broker.sandbox.jobs import Job
from broker.sandbox.moods import Call, result_json

GOOD_NEWS = "Playground task completed successfully."
BAD_NEWS = "Playground task failed."


def record(job: Job, stage: str, url: Callable[[int], str]) -> dict[str, Any]:
    """`data` of a recordInfo. stage: waiting, queuing or generating, while the job has not ended."""
    ended = job.ending
    failure = ended.failure if ended else None
    done_at = ended.at if ended else None
    return {
        "taskId": job.task_id,
        "model": job.request["model"],
        "state": "fail" if failure else "success" if ended else stage,
        "param": json.dumps(job.request),
        "resultJson": result_json(job.moods, url) if ended and not failure else None,
        "failCode": failure.code if failure else "",
        "failMsg": failure.text if failure else "",
        "costTime": int((done_at - job.created_at) * 1000) if done_at else None,
        "completeTime": _milliseconds(done_at),
        "createTime": _milliseconds(job.created_at),
        "updateTime": _milliseconds(done_at or job.created_at),
        "creditsConsumed": ended.credits if ended else 0,
    }


def callback(job: Job, url: Callable[[int], str]) -> dict[str, Any]:
    """The same record as a callback tells it: seconds for milliseconds, null for empty, JSON in JSON in JSON."""
    data = record(job, "", url)
    failed = data["state"] == "fail"
    param = {**job.request, "input": json.dumps(job.request["input"])}
    told = {
        "param": json.dumps(param),
        "failCode": data["failCode"] or None,
        "failMsg": data["failMsg"] or None,
        "costTime": (data["costTime"] or 0) // 1000,
    }
    return envelope(501 if failed else 200, BAD_NEWS if failed else GOOD_NEWS, {**data, **told})


def _milliseconds(at: float | None) -> int | None:
    return None if at is None else int(at * 1000)


def sign(key: str, task_id: str, timestamp: int) -> str:
    """base64(HMAC-SHA256(key, "<task id>.<timestamp>")): the body is not covered."""
    digest = hmac.digest(key.encode(), f"{task_id}.{timestamp}".encode(), hashlib.sha256)
    return base64.b64encode(digest).decode()


def seal(call: Call, key: str | None, task_id: str, now: float) -> dict[str, str]:
    """Signature headers of a callback sent at `now`; none without a key, as at kie.ai."""
    key = f"not {key}" if call.seal == "wrong" else key
    if call.seal == "none" or key is None:
        return {}
    timestamp = int(now - call.age)
    return {"X-Webhook-Timestamp": str(timestamp), "X-Webhook-Signature": sign(key, task_id, timestamp)}
