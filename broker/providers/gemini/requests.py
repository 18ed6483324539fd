"""Bodies of generateContent: one prompt with its images, or the turns of a conversation."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, Final

from broker.orders import Order, Turn, TurnPart

_IMAGE_CONFIG: Final = ("aspectRatio", "imageSize")
_CONFIG: Final = ("seed", "temperature", "topP", "topK", "maxOutputTokens")

Part = dict[str, Any]


def build_content(order: Order, fields: Mapping[str, Any], data: Sequence[str]) -> dict[str, Any]:
    """Return the body. fields: as the catalog spells them. data: base64 of each reference, or what stands for it."""
    images = [
        {"inlineData": {"mimeType": reference.media_type, "data": text}}
        for reference, text in zip(order.references, data, strict=True)
    ]
    image_config = {name: fields[name] for name in _IMAGE_CONFIG if name in fields}
    config: dict[str, Any] = {"responseModalities": ["TEXT", "IMAGE"]}
    config |= {name: fields[name] for name in _CONFIG if name in fields}
    body: dict[str, Any] = {
        "contents": _spell_turns(order, images)
        if order.turns
        else [{"role": "user", "parts": [{"text": fields["prompt"]}, *images]}],
        "generationConfig": config | ({"imageConfig": image_config} if image_config else {}),
    }
    if system := fields.get("systemInstruction"):
        body["systemInstruction"] = {"parts": [{"text": system}]}
    if fields.get("googleSearch"):
        body["tools"] = [{"googleSearch": {}}]
    return body


def _spell_turns(order: Order, images: Sequence[Part]) -> list[dict[str, Any]]:
    """Return the conversation, with the signatures of its parts unchanged; a plan has no images yet.

    The models of the third generation refuse an image in a turn of theirs without its signature (Google: Thought
    signatures). One that another provider made has none: the user shows it at the beginning of the next turn.
    """
    contents: list[dict[str, Any]] = []
    shown: list[Part] = []
    for turn in order.turns:
        own, unsigned = _restore_turn(turn, images) or [], list[Part]()
        for part in turn.parts if not own else ():
            if part.reference is not None and part.reference >= len(images):
                continue
            is_unsigned = turn.role == "model" and part.reference is not None and not part.signature
            (unsigned if is_unsigned else own).append(_spell_part(part, images))
        if turn.role == "user":
            own, shown = [*shown, *own], []
        shown += unsigned
        if own:
            contents.append({"role": turn.role, "parts": own})
    used = {part.reference for turn in order.turns for part in turn.parts}
    shown += [image for position, image in enumerate(images) if position not in used]
    return [*contents, {"role": "user", "parts": shown}] if shown else contents


def _restore_turn(turn: Turn, images: Sequence[Part]) -> list[Part] | None:
    """Return the parts of a turn as its model wrote them; None if that is not known, or an image has no signature.

    Images that are not sent any more, and drafts, are left out.
    """
    if turn.content is None:
        return None
    outputs = {part.output: part.reference for part in turn.parts if part.output and part.reference is not None}
    parts: list[Part] = []
    for part in json.loads(turn.content)["parts"]:
        inline = part.get("inlineData") or part.get("inline_data")
        if not isinstance(inline, dict):
            parts.append(part)
            continue
        data = inline.get("data")
        position = outputs.pop(data, None) if isinstance(data, str) else None
        signature = part.get("thoughtSignature") or part.get("thought_signature")
        if position is not None and position < len(images):
            if not signature:
                return None
            parts.append({name: value for name, value in part.items() if name != "inline_data"} | images[position])
    return None if outputs else parts


def _spell_part(part: TurnPart, images: Sequence[Part]) -> Part:
    content: Part = {"text": part.text or ""} if part.reference is None else images[part.reference]
    return content | ({"thoughtSignature": part.signature} if part.signature else {})
