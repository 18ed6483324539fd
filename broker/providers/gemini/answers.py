"""Answers of generateContent, as Google and its relays send them: the image, the texts, the turn, and the tokens.

Google: `inlineData` parts. Relays: `inline_data`, or a text with the image as Markdown, which holds a `data:` URI or a
link. Parts with `thought` are drafts of the model. Without an image, a reason says why (Google: GenerateContent).
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from broker.catalog import TokenKind
from broker.providers import parsing
from broker.providers.error_codes import NAMES, NO_IMAGE, NO_IMAGE_BY_CHANCE, SAFETY_INPUT, ErrorClass
from broker.providers.inline_results import InlineDocument

MAX_TURN_CHARACTERS: Final = 2**20
"""Longest turn that is kept; the images in it are outputs of the sink."""

_MARKDOWN: Final = re.compile(r"!?\[[^\[\]]*+\]\(\s*+<?([^()\[\]\s<>]++)>?[^()\[\]]*+\)")
"""Each part ends at the next bracket, so that a text of brackets is read once, and not once per bracket."""
_OUTPUT: Final = re.compile(r"stored:[A-Za-z0-9_/]+")
_LINK: Final = re.compile(r"https?://[^\s)\"'<>\]]+")
_IMAGE_PATH: Final = re.compile(r"\.(png|jpe?g|webp)(\?|$)", re.I)


@dataclass(frozen=True, kw_only=True)
class Tokens:
    """Tokens of one answer (`usageMetadata`)."""

    prompt: float
    text: float
    """Written, thoughts included."""
    image: float

    def price(self, usd_per_million: Mapping[TokenKind, float]) -> float:
        """Return the price in USD."""
        counts: Mapping[TokenKind, float] = {"input": self.prompt, "text": self.text, "image": self.image}
        return sum(count * usd_per_million[name] for name, count in counts.items()) / 1e6

    def to_counts(self) -> dict[str, int]:
        return {"input": int(self.prompt), "text": int(self.text), "image": int(self.image)}


@dataclass(frozen=True, kw_only=True)
class Answer:
    """The content of an answer."""

    id: str | None
    image: str | None
    """URL or output of the sink; the last one, if there are more. None without an image."""
    texts: tuple[str, ...]
    turn: str | None = field(repr=False)
    """The content of the model as JSON, with outputs of the sink in place of images."""
    tokens: Tokens | None
    block_reason: str | None
    finish_reason: str | None
    explanation: str | None = field(repr=False)
    """Why there is no image, in the words of the model or of Google."""

    @property
    def message(self) -> str:
        reason = self.block_reason or self.finish_reason
        return self.explanation or (f"no image was made ({reason})" if reason else "the answer has no image")

    @property
    def failure(self) -> ErrorClass:
        """Return why there is no image.

        A blocked prompt stays blocked. An answer that just ends, without a word, may have an image the next time.
        """
        if self.block_reason:
            return SAFETY_INPUT
        if self.finish_reason == "STOP" or not self.finish_reason:
            return NO_IMAGE if self.texts else NO_IMAGE_BY_CHANCE
        return NAMES.get(self.finish_reason.lower(), ErrorClass(code="no_image", known=False))


def read_answer(document: InlineDocument) -> Answer | None:
    """Return the content of an answer; None if the document is none."""
    body = parsing.mapping(document.body)
    if "candidates" not in body and not _value(body, "promptFeedback"):
        return None
    candidates = body.get("candidates")
    candidate = parsing.mapping(candidates[0] if isinstance(candidates, list) and candidates else None)
    parts = parsing.mapping(candidate.get("content")).get("parts")
    parts = [parsing.mapping(part) for part in parts] if isinstance(parts, list) else []
    images: list[str] = []
    texts: list[str] = []
    for part in parts:
        if part.get("thought") is True:
            continue
        images += _inline_images(part, document.outputs)
        if text := parsing.text(part.get("text")):
            found, rest = split_text(text, document.outputs)
            images += found
            texts += [rest] if rest else []
    feedback = parsing.mapping(_value(body, "promptFeedback"))
    explanation = (_value(feedback, "blockReasonMessage"), _value(candidate, "finishMessage"), *texts)
    return Answer(
        id=parsing.label(_value(body, "responseId")),
        image=images[-1] if images else None,
        texts=parsing.texts(texts),
        turn=_turn(parts) if images else None,
        tokens=_tokens(parsing.mapping(_value(body, "usageMetadata"))),
        block_reason=parsing.label(_value(feedback, "blockReason")),
        finish_reason=parsing.label(_value(candidate, "finishReason")),
        explanation=parsing.first(parsing.text, explanation),
    )


def is_image(enclosing: str, name: str) -> bool:
    """Return True for the value of an answer that holds an image; see `read_inline_results`."""
    return name == "data" and enclosing in {"inlineData", "inline_data"}


def split_text(text: str, outputs: frozenset[str]) -> tuple[list[str], str]:
    """Return the images in a text, as Markdown or as links to images, and the text without them."""
    images: list[str] = []

    def take(target: str, whole: str, *, is_image: bool) -> str:
        if target in outputs or (is_image and parsing.is_link(target)):
            images.append(target)
            return ""
        return whole

    text = _MARKDOWN.sub(
        lambda found: take(found[1], found[0], is_image=found[0][0] == "!" or bool(_IMAGE_PATH.search(found[1]))), text
    )
    text = _OUTPUT.sub(lambda found: take(found[0], found[0], is_image=False), text)
    is_only_link = bool(_LINK.fullmatch(text.strip()))
    text = _LINK.sub(
        lambda found: take(found[0], found[0], is_image=is_only_link or bool(_IMAGE_PATH.search(found[0]))), text
    )
    return list(dict.fromkeys(images)), text.strip()


def _inline_images(part: Mapping[str, Any], outputs: frozenset[str]) -> Iterator[str]:
    data = parsing.mapping(_value(part, "inlineData")).get("data")
    link = _value(parsing.mapping(_value(part, "fileData")), "fileUri")
    for value in (data, link):
        if isinstance(value, str) and (value in outputs or parsing.is_link(value)):
            yield value


def _turn(parts: Sequence[Mapping[str, Any]]) -> str | None:
    """Return the turn with its signatures, unchanged; drafts only where one of them has a signature."""
    kept = [part for part in parts if part.get("thought") is not True or _value(part, "thoughtSignature")]
    turn = json.dumps({"role": "model", "parts": kept}, ensure_ascii=False, separators=(",", ":"))
    return turn if len(turn) <= MAX_TURN_CHARACTERS else None


def _tokens(usage: Mapping[str, Any]) -> Tokens | None:
    def count(name: str) -> float:
        return parsing.amount(_value(usage, name)) or 0.0

    if not usage:
        return None
    output = count("candidatesTokenCount")
    details = _value(usage, "candidatesTokensDetails")
    kinds = [parsing.mapping(one) for one in details] if isinstance(details, list) else []
    texts = sum(parsing.amount(_value(one, "tokenCount")) or 0.0 for one in kinds if one.get("modality") == "TEXT")
    return Tokens(
        prompt=count("promptTokenCount"),
        text=min(texts, output) + count("thoughtsTokenCount"),
        image=max(output - texts, 0.0),
    )


def _value(place: Mapping[str, Any], name: str) -> Any:
    """Return a value by its name; some relays write it in snake_case."""
    value = place.get(name)
    return place.get(re.sub(r"[A-Z]", lambda found: f"_{found[0].lower()}", name)) if value is None else value
