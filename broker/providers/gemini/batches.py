"""Batches of one order (Google: Batch API), and the webhooks about them (Google: Webhooks).

POST models/{model}:batchGenerateContent  → {"name": "batches/…", "metadata": {"state": …}}
GET  batches/…                            → the same; at the end with "response": {"inlinedResponses": …}
webhook                                   {"type": "batch.succeeded", "data": {"id": …}}, without the result
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Final

from broker.providers import parsing
from broker.providers.gemini.answers import Answer, read_answer
from broker.providers.gemini.errors import ERRORS
from broker.providers.inline_results import InlineDocument
from broker.reports import Failed

PREFIX: Final = "batches/"
_STATES: Final = ("BATCH_STATE_", "JOB_STATE_")
_RESPONSES: Final = ("response", "metadata.output")
"""Places of the responses; the second repeats the first."""


@dataclass(frozen=True, kw_only=True)
class Batch:
    """The state of a batch: running, unless it has an answer or a failure."""

    stage: str | None
    model: str | None
    """Google's id."""
    answer: Answer | None = None
    failure: Failed | None = None


def wrap(request: Mapping[str, Any], callback_url: str | None) -> dict[str, Any]:
    """Return the body that orders a batch of one request."""
    requests = {"requests": [{"request": dict(request), "metadata": {"key": "image"}}]}
    batch = {"displayName": "nano-banana-broker", "inputConfig": {"requests": requests}}
    return {"batch": batch | ({"webhookConfig": {"uris": [callback_url]}} if callback_url else {})}


def to_name(job_id: str) -> str:
    """Return the name of a batch; webhooks may have its id alone."""
    return job_id if job_id.startswith(PREFIX) else PREFIX + job_id


def read_name(body: Any) -> str | None:
    """Return the name of the batch that was ordered."""
    name = parsing.label(parsing.mapping(body).get("name"))
    return name if name and name.startswith(PREFIX) else None


def read_batch(document: InlineDocument, name: str) -> Batch | None:
    """Return the state of a batch; None if the document is about something else."""
    body = parsing.mapping(document.body)
    metadata = parsing.mapping(body.get("metadata"))
    state = _state(metadata.get("state") or body.get("state"))
    if read_name(body) != name or (state is None and not body.get("done")):
        return None
    batch = Batch(stage=state, model=_model(metadata.get("model")))
    match state:
        case "PENDING" | "RUNNING" | "UNSPECIFIED":
            return batch
        case "CANCELLED" | "EXPIRED":
            failure = Failed(
                code="provider_error" if state == "CANCELLED" else "deadline_exceeded",
                message=f"the batch ended as {state}",
                retryable=False,
                billed="no" if state == "EXPIRED" else "unknown",  # a canceled one may have been answered before
                provider_code=state,
            )
            return replace(batch, failure=failure)
        case _:
            return _ended(batch, body, document) if state in {None, "SUCCEEDED", "FAILED"} else batch


def _ended(batch: Batch, body: Mapping[str, Any], document: InlineDocument) -> Batch:
    item = next((found for place in _RESPONSES for found in _items(body, place)), {})
    answer = read_answer(replace(document, body=item.get("response")))
    if answer is not None:
        return replace(batch, answer=answer)
    error = parsing.mapping(item.get("error")) or parsing.mapping(body.get("error"))
    message = parsing.text(error.get("message")) or "the batch ended without a response"
    known = ERRORS.classify(None, message, [name for name in [parsing.text(error.get("status"))] if name])
    failure = Failed(
        code=known.code,
        message=message,
        retryable=False,  # it has waited for hours, and its price is not known
        billed="no" if item.get("error") or body.get("error") else "unknown",
        provider_code=parsing.label(error.get("code")),
        known=known.known,
    )
    return replace(batch, failure=failure)


def _items(body: Mapping[str, Any], place: str) -> list[Mapping[str, Any]]:
    path = f"{place}.inlinedResponses"
    values = parsing.values_at([body], f"{path}.inlinedResponses.*", f"{path}.*")
    return [dict(value) for value in values if isinstance(value, dict)]


def _state(value: Any) -> str | None:
    text = parsing.label(value)
    for prefix in _STATES:
        text = text.removeprefix(prefix) if text else None
    return text


def _model(value: Any) -> str | None:
    text = parsing.text(value)
    return text.removeprefix("models/") if text else None


# -- webhooks


def ids_in(body: Any) -> tuple[str, ...]:
    """Return the name of the batch in a webhook, in the form of `read_name`, and as it was sent."""
    found = parsing.first(parsing.label, parsing.values_at([body], "data.id", "data.name", "data.batch"))
    return tuple(dict.fromkeys((to_name(found), found))) if found and len(found) <= 240 else ()


def is_end(body: Any) -> bool:
    """Return True if a webhook is about the end of a batch."""
    kind = parsing.text(parsing.mapping(body).get("type")) or ""
    return kind.startswith("batch.")
