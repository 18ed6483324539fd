"""Predictions, callbacks and signatures as Replicate documents them."""

from __future__ import annotations

import base64
import hashlib
import hmac
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from broker.sandbox.callbacks import CallbackDelivery
from broker.sandbox.engine import Options
from broker.sandbox.faults import FailureKind, Fault
from broker.sandbox.jobs import JobView

RESULT_SECONDS = 3600.0
"""After this time a prediction has no input, output and logs."""
STATUSES = {"waiting": "starting", "queuing": "starting", "generating": "processing", "success": "succeeded"}
CODES: Mapping[FailureKind, str] = {
    FailureKind.NO_IMAGE: "",
    FailureKind.FLAGGED: " (E005)",
    FailureKind.INTERNAL: " (E004)",
    FailureKind.REFERENCE: "",
}
TRY_LATER = "Service is temporarily unavailable. Please try again later."


def webhook_secret(options: Options) -> str:
    """Return the secret of the account's webhooks, which always exists."""
    return options.webhook_key or "whsec_" + base64.b64encode(b"secret of the sandbox...").decode()


def build_prediction(view: JobView, base_url: str, now: float) -> dict[str, Any]:
    """Return the prediction object."""
    job, failure = view.job, view.failure
    is_removed = view.ended_at is not None and now - view.ended_at > RESULT_SECONDS
    url = f"{base_url}/v1/predictions/{job.id}"
    prediction = {
        "id": job.id,
        "model": job.request["model"],
        "version": "hidden",
        "input": {} if is_removed else job.request["input"],
        "output": None if is_removed else _output(view),
        "logs": "",
        "error": None,
        "status": STATUSES.get(view.stage, view.stage),
        "created_at": _timestamp(job.created_at),
        "started_at": _timestamp(job.created_at) if view.stage != "waiting" else None,
        "completed_at": _timestamp(view.ended_at) if view.ended_at else None,
        "data_removed": is_removed,
        "source": "api",
        "metrics": {"predict_time": view.ended_at - job.created_at} if view.ended_at else {},
        "urls": {"get": url, "cancel": f"{url}/cancel", "web": f"https://replicate.com/p/{job.id}"},
    }
    if failure and failure.kind == FailureKind.CANCELED:
        return {**prediction, "status": "canceled"}
    if failure:
        text = TRY_LATER if failure.kind == FailureKind.INTERNAL else failure.text
        return {**prediction, "status": "failed", "error": text + CODES[failure.kind]}
    return prediction


def _output(view: JobView) -> Any:
    """Return one URI for one image, as these models do, and an array for several."""
    if view.stage != "success" or Fault.NORESULT in view.job.faults:
        return None
    return view.urls[0] if len(view.urls) == 1 else list(view.urls)


def _timestamp(at: float) -> str:
    return datetime.fromtimestamp(at, UTC).isoformat().replace("+00:00", "Z")


@dataclass(frozen=True, kw_only=True)
class ReplicateCallbacks:
    """The callbacks of an account: the prediction, signed by Standard Webhooks."""

    secret: str

    def build_body(self, view: JobView) -> Any:
        ended_at = view.ended_at or view.job.created_at
        return build_prediction(view, "https://api.replicate.com", ended_at)

    def sign(self, delivery: CallbackDelivery) -> Mapping[str, str]:
        key = base64.b64decode(self.secret.removeprefix("whsec_"))
        key = b"not " + key if delivery.is_wrong else key
        signed = f"{delivery.id}.{delivery.timestamp}.".encode() + delivery.body
        signature = base64.b64encode(hmac.digest(key, signed, hashlib.sha256)).decode()
        return {
            "webhook-id": delivery.id,
            "webhook-timestamp": str(delivery.timestamp),
            "webhook-signature": f"v1,{signature}",
        }
