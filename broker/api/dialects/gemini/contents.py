"""The conversation in a request: prompt, reference images and turns.

A provider with a history of its own gets the turns. All others get one prompt and the images: the prompt is what the
user wrote since the model's last image, which shows all that was written before.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal

from broker.api.dialects.gemini.files import find_file
from broker.api.dialects.gemini.requests import (
    GeminiInlineData,
    GeminiRequestContent,
    GeminiRequestPart,
)
from broker.catalog import quote_text
from broker.errors import ApiError
from broker.orders import DataUriReference, ReferenceSource, Turn, TurnPart

Role = Literal["user", "model"]

MAX_CHARACTERS: Final = 2**20
"""Of all texts of a conversation, which is kept with each of its images; many times what these models read."""

_ROLES: Final[Mapping[str, Role]] = {"": "user", "user": "user", "model": "model"}


@dataclass(frozen=True, kw_only=True)
class Conversation:
    """What a request says and shows."""

    prompt: str
    sources: tuple[ReferenceSource, ...]
    """The images, in order."""
    turns: tuple[Turn, ...]
    """Empty for one turn with its text before its images, which prompt and sources describe as well."""
    left_out: tuple[str, ...]
    """Paths of the images of earlier turns that are too many."""


@dataclass(frozen=True, kw_only=True)
class _Place:
    """A part of a request."""

    turn: int
    number: int
    role: Role
    part: GeminiRequestPart

    @property
    def path(self) -> str:
        return f"contents[{self.turn}].parts[{self.number}]"

    @property
    def has_image(self) -> bool:
        return self.part.inline_data is not None or self.part.file_data is not None


def read_conversation(
    contents: Sequence[GeminiRequestContent],
    *,
    max_images: int,
    is_sdk: bool,
) -> Conversation:
    """Return the conversation of a request.

    max_images: of its last turn; of earlier turns the newest that fit are kept. is_sdk: signatures are in the URL
    alphabet, as Google's SDKs write bytes. Raises `ApiError` for a part that is not supported.
    """
    places = [*_list_parts(contents)]
    if not places or places[-1].role != "user":
        message = "contents must end with a turn of the user: add one with a text."
        raise ApiError("invalid_request", message, field="contents")
    if sum(len(place.part.text or "") for place in places) > MAX_CHARACTERS:
        message = f"The texts of contents have more than {MAX_CHARACTERS:,} characters: leave the oldest turns out."
        raise ApiError("invalid_request", message, field="contents")
    asked = _last_turn(places)
    kept, left_out = _choose_images(places, asked, max_images)
    sources = {place.path: _read_image(place) for place in kept}
    positions = {path: position for position, path in enumerate(sources)}
    return Conversation(
        prompt=_prompt(places),
        sources=tuple(sources.values()),
        turns=() if _is_plain(places) else _build_turns(places, positions, is_sdk=is_sdk),
        left_out=tuple(place.path for place in left_out),
    )


# -- parts


def _list_parts(contents: Sequence[GeminiRequestContent]) -> Iterator[_Place]:
    """Yield the parts that say or show something; drafts of the model are left out."""
    for turn, content in enumerate(contents):
        role = _ROLES.get(content.role or "")
        if role is None:
            message = 'The role of a turn must be "user" or "model".'
            raise ApiError("unsupported_parameter", message, field=f"contents[{turn}].role")
        for number, part in enumerate(content.parts):
            place = _Place(turn=turn, number=number, role=role, part=part)
            _check_part(place)
            if not part.thought and (place.has_image or part.text or part.thought_signature):
                yield place


def _check_part(place: _Place) -> None:
    """Raise `ApiError` for what is neither text nor image: functions, code, audio, video, documents."""
    media = place.part.inline_data or place.part.file_data
    media_type = (media.mime_type if media else None) or "image/png"
    if not media_type.lower().startswith("image/"):
        message = f"Only images are read, not {quote_text(media_type)}: send PNG, JPEG or WebP."
        raise ApiError("invalid_request", message, field=place.path)
    others = [*place.part.unknown_names()]
    is_empty = media is None and place.part.text is None and not place.part.thought_signature
    if is_empty and others:
        message = "A part must be a text or an image."
        raise ApiError("unsupported_parameter", message, field=f"{place.path}.{others[0]}"[:100])


def _read_image(place: _Place) -> ReferenceSource:
    if place.part.inline_data is not None:
        return DataUriReference(text=_as_data_uri(place.part.inline_data))
    if place.part.file_data is not None:
        return find_file(place.part.file_data)
    raise ValueError(f"{place.path} has no image")


def _as_data_uri(inline: GeminiInlineData) -> str:
    """Return base64 of either alphabet, padded or not, in the standard one; the type comes from the content."""
    if inline.data.startswith("data:"):
        return inline.data
    text = _standard_alphabet(inline.data)
    return f"data:image/png;base64,{text}{'=' * (-len(text) % 4)}"


def _standard_alphabet(base64: str) -> str:
    return base64.replace("-", "+").replace("_", "/")


# -- turns


def _last_turn(places: Sequence[_Place]) -> list[_Place]:
    """Return the parts after the model's last turn."""
    answered = [at for at, place in enumerate(places) if place.role == "model"]
    return [*places[answered[-1] + 1 if answered else 0 :]]


def _choose_images(places: Sequence[_Place], asked: Sequence[_Place], most: int) -> tuple[list[_Place], list[_Place]]:
    """Return the images that are kept, in order, and those that are left out, the oldest ones."""
    count = sum(place.has_image for place in asked)
    if count > most:
        message = f"{count} images are too many: this model takes at most {most} in a turn."
        raise ApiError("too_many_images", message, field="contents")
    images = [place for place in places if place.has_image]
    begin = max(0, len(images) - most)
    return images[begin:], images[:begin]


def _build_turns(places: Sequence[_Place], positions: Mapping[str, int], *, is_sdk: bool) -> tuple[Turn, ...]:
    turns: list[tuple[int, Role, list[TurnPart]]] = []
    for place in places:
        if place.has_image and place.path not in positions:
            continue
        if not turns or turns[-1][0] != place.turn:
            turns.append((place.turn, place.role, []))
        signature = place.part.thought_signature
        turns[-1][2].append(
            TurnPart(
                text=None if place.has_image else place.part.text or "",
                reference=positions.get(place.path),
                signature=_standard_alphabet(signature) if signature and is_sdk else signature or None,
            )
        )
    return tuple(Turn(role=role, parts=tuple(parts)) for _, role, parts in turns)


def _is_plain(places: Sequence[_Place]) -> bool:
    """Return whether all is one turn of the user, its text before its images."""
    shown = [place.has_image for place in places]
    return places[0].turn == places[-1].turn and shown == sorted(shown)


def _prompt(places: Sequence[_Place]) -> str:
    """Return what the user wrote since the model's last image; if that is nothing, what was written before."""
    images = [at for at, place in enumerate(places) if place.role == "model" and place.has_image]
    begin = images[-1] + 1 if images else 0
    return _user_text(places[begin:]) or _user_text(places[:begin])


def _user_text(places: Sequence[_Place]) -> str:
    return "\n".join(place.part.text for place in places if place.role == "user" and place.part.text)
