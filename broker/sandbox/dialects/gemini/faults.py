"""Faults of an API that answers with the image, as Google and its relays show them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from broker.sandbox.faults import HELD_FAULTS, FailureKind, Fault, FaultName

Record = dict[str, Any]


class GeminiFault(FaultName):
    """Faults of answers."""

    HANG_UP = "hang_up", "does the work and closes the connection without an answer"
    CUT = "cut", "does the work and closes the connection halfway through the answer"
    OVERLOADED = "overloaded", "the first VALUE orders get 503 UNAVAILABLE; nothing is made", 1
    LIST_ERROR = "list_error", "the first VALUE orders get 429 as the only element of a list", 1
    OPENAI_ERROR = "openai_error", "an error in the style of OpenAI, with HTTP status VALUE; nothing is made", 400
    THOUGHTS = "thoughts", "two drafts with `thought` come before the image"
    SNAKE = "snake", "`inline_data` and `mime_type` instead of `inlineData` and `mimeType`"
    MARKDOWN = "markdown", "a text with the image as a data: URI in Markdown"
    LINK = "link", "a text with a link to the image in Markdown"
    EXPIRED = "expired", "a batch expires instead of ending"


FAULTS: Final[tuple[FaultName, ...]] = (
    *HELD_FAULTS,
    Fault.LOST,
    Fault.LATE,
    Fault.TWICE,
    Fault.UNSIGNED,
    Fault.BADSIGN,
    Fault.STALE,
    Fault.BIG,
    Fault.WRONGTYPE,
    *GeminiFault,
)

_FINISHED: Mapping[str, Any] = {"role": "model"}

WITHOUT_IMAGE: Final[tuple[Record, ...]] = (
    {"candidates": [{"content": {"parts": [{"text": "I cannot draw that."}], **_FINISHED}, "finishReason": "STOP"}]},
    {"candidates": [{"content": {"parts": None}, "finishReason": "IMAGE_SAFETY", "finishMessage": "blocked"}]},
    {"promptFeedback": {"blockReason": "OTHER"}},
    {"candidates": [{"content": dict(_FINISHED), "finishReason": "NO_IMAGE"}]},
    {"candidates": [{"content": {"parts": []}, "finishReason": "STOP"}]},
    {"candidates": []},
)
"""Answers without an image, by the VALUE of the fault."""

FAILED_ANSWERS: Final[Mapping[FailureKind, Record]] = {
    FailureKind.NO_IMAGE: WITHOUT_IMAGE[0],
    FailureKind.FLAGGED: {"promptFeedback": {"blockReason": "PROHIBITED_CONTENT"}},
}
"""Answers of jobs that fail; for the other kinds there is an error."""
