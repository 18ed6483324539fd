"""Predictions, callbacks and signatures as WaveSpeed documents them."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from broker.sandbox.callbacks import CallbackDelivery
from broker.sandbox.engine import Options
from broker.sandbox.faults import Fault
from broker.sandbox.jobs import JobView

STATUSES = {"waiting": "created", "queuing": "created", "generating": "processing", "success": "completed"}


def webhook_secret(options: Options) -> str:
    """Return the secret of the key's webhooks, which always exists."""
    return options.webhook_key or "whsec_secret-of-the-sandbox"


def build_prediction(view: JobView, base_url: str) -> dict[str, Any]:
    """Return `data` of a response."""
    job = view.job
    urls = [] if Fault.NORESULT in job.faults else list(view.urls)
    return {
        "id": job.id,
        "model": job.request["model"],
        "input": job.request["input"],
        "outputs": urls,
        "urls": {"get": f"{base_url}/api/v3/predictions/{job.id}/result"},
        "has_nsfw_contents": [False for _ in urls],
        "status": "failed" if view.failure else STATUSES.get(view.stage, view.stage),
        "created_at": datetime.fromtimestamp(job.created_at, UTC).isoformat(),
        "error": view.failure.text if view.failure else "",
        "timings": {},
    }


@dataclass(frozen=True, kw_only=True)
class WaveSpeedCallbacks:
    """The callbacks of a key: the prediction without an envelope, `outputs` only when it is completed."""

    secret: str

    def build_body(self, view: JobView) -> Any:
        prediction = build_prediction(view, "https://api.wavespeed.ai")
        return {
            name: value
            for name, value in prediction.items()
            if name != "timings" and (name != "outputs" or prediction["status"] == "completed")
        }

    def sign(self, delivery: CallbackDelivery) -> Mapping[str, str]:
        """Return the signature headers. The secret is not base64: what follows whsec_ is the key."""
        key = ("not " if delivery.is_wrong else "") + self.secret.removeprefix("whsec_")
        signed = f"{delivery.id}.{delivery.timestamp}.".encode() + delivery.body
        signature = hmac.new(key.encode(), signed, hashlib.sha256).hexdigest()
        return {
            "webhook-id": delivery.id,
            "webhook-timestamp": str(delivery.timestamp),
            "webhook-signature": f"v3,{signature}",
        }
