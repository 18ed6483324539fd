"""Answers of generateContent, made of ended tasks; the images in them are streamed from the store."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from broker.api.dialects.gemini.spelling import AnswerStyle, spell_image
from broker.catalog import Catalog
from broker.errors import ApiError
from broker.reports import STORED_PREFIX
from storage.images import StoredImage
from storage.tasks import Task

PROMPT_TOKENS: Final = 10
"""Of a prompt whose tokens are not known: the count in the documentation of relays."""
_STORED: Final = re.compile(rf"{STORED_PREFIX}\S*[0-9a-f]{{64}}")
"""What stands for an image in the text of a turn."""
LATE_REASON: Final = "IMAGE_OTHER"

Document = dict[str, Any]
"""A JSON object, with `InlineImage` in place of images."""


@dataclass(frozen=True, kw_only=True)
class TaskImages:
    """A completed task and its images."""

    task: Task
    images: Sequence[StoredImage]


def model_version(task: Task) -> str:
    """Return the name by which the caller asked for the model."""
    return str(task.origin.get("model") or task.model)


def answer_document(made: Sequence[TaskImages], catalog: Catalog, style: AnswerStyle) -> Document:
    """Return the whole answer: a candidate for each task."""
    candidates = [
        {"content": {"role": "model", "parts": [*answer_parts(one, style)]}, "finishReason": "STOP", "index": index}
        for index, one in enumerate(made)
    ]
    return {"candidates": candidates, **_ending(made, catalog)}


def answer_chunks(made: Sequence[TaskImages], catalog: Catalog, style: AnswerStyle) -> Iterator[Document]:
    """Yield the same in pieces: each part, and at the end the reasons and the usage."""
    for index, one in enumerate(made):
        for part in answer_parts(one, style):
            candidate = {"content": {"role": "model", "parts": [part]}, "index": index}
            yield {"candidates": [candidate], **_identity(one.task)}
    ends = [
        {"content": {"role": "model", "parts": [{"text": ""}]}, "finishReason": "STOP", "index": index}
        for index in range(len(made))
    ]
    yield {"candidates": ends, **_ending(made, catalog)}


def late_answer(error: ApiError, *, task_id: str, model: str) -> Document:
    """Return a failure as an answer, for one that has begun as a success: SDKs trip over an error in it."""
    text = f"{error.message} (task {task_id}, {error.code})"
    content = {"role": "model", "parts": [{"text": text}]}
    candidate = {"content": content, "finishReason": LATE_REASON, "finishMessage": text, "index": 0}
    return {"candidates": [candidate], "modelVersion": model, "responseId": task_id}


# -- parts


def answer_parts(made: TaskImages, style: AnswerStyle) -> Iterator[Document]:
    """Yield the texts and images of a task, with the signatures of the provider's turn if it has any."""
    parts = _parts_of_turn(made, style) or _plain_parts(made, style)
    if style.is_image_first:
        parts.sort(key=lambda part: "text" in part)
    yield from parts


def _plain_parts(made: TaskImages, style: AnswerStyle) -> list[Document]:
    texts: list[Document] = [{"text": text} for text in made.task.texts]
    return [*texts, *(spell_image(image, style.spelling) for image in made.images)]


def _parts_of_turn(made: TaskImages, style: AnswerStyle) -> list[Document] | None:
    """Return the parts of the provider's turn; None without one, or if it is not made of texts and stored images."""
    if made.task.turn is None:
        return None
    outputs = {made.task.outputs[image.position]: image for image in made.images}
    parts: list[Document] = []
    for part in json.loads(made.task.turn)["parts"]:
        if part.get("thought") is True:
            continue
        signature = part.get("thoughtSignature") or part.get("thought_signature")
        signed = {"thoughtSignature": signature} if isinstance(signature, str) and signature else {}
        inline, text = part.get("inlineData") or part.get("inline_data"), part.get("text")
        data = inline.get("data") if isinstance(inline, dict) else None
        if isinstance(data, str) and data in outputs:
            parts.append(spell_image(outputs.pop(data), style.spelling) | signed)
        elif isinstance(text, str) and not _STORED.search(text):
            parts.append({"text": text} | signed)
    return None if outputs else parts


# -- counts


def _identity(task: Task) -> Document:
    return {"modelVersion": model_version(task), "responseId": task.id}


def _ending(made: Sequence[TaskImages], catalog: Catalog) -> Document:
    counts = [_tokens(one, catalog) for one in made]
    prompt, text, image = (sum(one.get(name, 0) for one in counts) for name in ("input", "text", "image"))
    details = [{"modality": name, "tokenCount": count} for name, count in (("TEXT", text), ("IMAGE", image)) if count]
    usage = {
        "promptTokenCount": prompt,
        "candidatesTokenCount": text + image,
        "totalTokenCount": prompt + text + image,
        "candidatesTokensDetails": details,
    }
    return {"usageMetadata": usage, **_identity(made[0].task)}


def _tokens(made: TaskImages, catalog: Catalog) -> Mapping[str, int]:
    """Return the tokens of a task: those that the provider counted, or those of the catalog for its images.

    A size that the catalog does not know counts as the next smaller one.
    """
    if made.task.tokens.get("image"):  # relays may count nothing
        return made.task.tokens
    model = catalog.resolve(made.task.model)
    largest = model.resolutions.index(made.task.resolution or model.resolutions[0])
    known = [model.output_tokens[name] for name in model.resolutions[: largest + 1] if name in model.output_tokens]
    return {"input": PROMPT_TOKENS, "image": known[-1] * len(made.images) if known else 0}
