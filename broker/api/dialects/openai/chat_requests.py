"""Chat requests with image output, and the orders that they are.

A provider with a history of its own gets the turns. All others get one prompt and the images: the prompt is what the
user wrote since the assistant's last image, which shows all that was written before.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated, Final, Literal

from pydantic import ConfigDict, Field

from broker.api.dialects.openai.image_requests import MAX_N, MAX_SAFE_INTEGER, ORIGIN, source_of
from broker.api.dialects.openai.models import ModelNames
from broker.api.http.request_body import RequestModel
from broker.catalog import Model
from broker.errors import ApiError
from broker.orders import ImageParams, OrderRequest, Turn, TurnPart

_Number = Annotated[float, Field(allow_inf_nan=False)]
_OUTPUTS: Final = frozenset({"image", "text"})


class _ChatModel(RequestModel):
    """Base of the parts of a chat; other fields are kept as extra fields."""

    model_config = ConfigDict(extra="allow")


class OpenAIChatImageUrl(_ChatModel):
    url: Annotated[str, Field(description="a web address, fetched at once, or a data URI")]


class OpenAIChatPart(_ChatModel):
    type: str
    text: str | None = None
    image_url: OpenAIChatImageUrl | str | None = None


class OpenAIChatMessage(_ChatModel):
    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[OpenAIChatPart] | None = None
    images: Annotated[list[OpenAIChatPart] | None, Field(description="of an earlier answer, as it was")] = None


class OpenAIChatImageConfig(_ChatModel):
    aspect_ratio: str | None = None
    image_size: Annotated[str | None, Field(description="1K, 2K or 4K, where the model has them")] = None


class OpenAIStreamOptions(_ChatModel):
    include_usage: bool | None = None


class OpenAIChatRequest(_ChatModel):
    """What a client sends; other fields are listed as ignored."""

    messages: Annotated[list[OpenAIChatMessage], Field(min_length=1)]
    model: str | None = None
    modalities: Annotated[list[str] | None, Field(examples=[["image", "text"]])] = None
    image_config: OpenAIChatImageConfig | None = None
    n: Annotated[int | None, Field(ge=1, le=MAX_N)] = None
    seed: Annotated[int | None, Field(ge=-MAX_SAFE_INTEGER, le=MAX_SAFE_INTEGER)] = None
    temperature: _Number | None = None
    top_p: _Number | None = None
    stream: bool | None = None
    stream_options: OpenAIStreamOptions | None = None

    def to_order(self, names: ModelNames, most_references: Callable[[Model], int]) -> OrderRequest:
        """Return the order request. Raises `ApiError` for a chat that does not ask for an image.

        most_references: how many images a provider in use takes for a model.
        """
        self._check_outputs()
        name, model = names.find_model(self.model)
        pieces = [*_list_pieces(self.messages)]
        if not pieces or pieces[-1].role != "user":
            raise ApiError("invalid_request", "The last message must be one of the user.", field="messages")
        kept = _keep_images(pieces, most_references(model))
        config = self.image_config or OpenAIChatImageConfig()
        sampling = {"temperature": self.temperature, "topP": self.top_p}
        return OrderRequest(
            params=ImageParams(
                prompt=_prompt(pieces),
                model=name,
                aspect_ratio=config.aspect_ratio,
                resolution=config.image_size,
                seed=self.seed,
                extra={key: value for key, value in sampling.items() if value is not None},
            ),
            count=self.n or 1,
            sources=tuple(source_of(piece.image) for piece in kept if piece.image),
            turns=_turns(kept),
            origin=ORIGIN,
        )

    def ignored_names(self) -> list[str]:
        config = (self.image_config.model_extra if self.image_config else None) or {}
        names = [*(self.model_extra or {}).items(), *((f"image_config.{key}", value) for key, value in config.items())]
        return [name for name, value in names if value is not None]

    def _check_outputs(self) -> None:
        asked = set(self.modalities or ())
        if "image" not in asked:
            text = 'Chats are answered with images here: send "modalities": ["image", "text"].'
            raise ApiError("unsupported_parameter", text, field="modalities")
        if unknown := asked - _OUTPUTS:
            text = f"Only images and texts are made, not {min(unknown)[:32]!a}."
            raise ApiError("unsupported_parameter", text, field="modalities")


@dataclass(frozen=True, kw_only=True)
class _Piece:
    """A text or an image of a chat."""

    message: int
    role: Literal["system", "user", "model"]
    text: str = ""
    image: str = ""
    """An address, a data URI or base64."""


def _list_pieces(messages: Sequence[OpenAIChatMessage]) -> Iterator[_Piece]:
    """Yield texts and images in order. Raises `ApiError` for anything else."""
    roles: dict[str, Literal["system", "user", "model"]] = {"user": "user", "assistant": "model"}
    for number, message in enumerate(messages):
        role = roles.get(message.role, "system")
        content = message.content or []
        parts = [OpenAIChatPart(type="text", text=content)] if isinstance(content, str) else content
        for part in (*parts, *(message.images or ())):
            text, image = _read_part(part, number)
            if text or image:
                yield _Piece(message=number, role=role, text=text, image=image)


def _read_part(part: OpenAIChatPart, message: int) -> tuple[str, str]:
    if part.type in {"text", "input_text", "output_text"}:
        return part.text or "", ""
    if part.type in {"image_url", "input_image"} and part.image_url is not None:
        return "", part.image_url if isinstance(part.image_url, str) else part.image_url.url
    text = "A part of a message must be a text or an image_url: other inputs are not read."
    raise ApiError("unsupported_parameter", text, field=f"messages.{message}.content")


def _keep_images(pieces: Sequence[_Piece], most: int) -> list[_Piece]:
    """Return the pieces without the oldest images, where there are too many; those of the last message
    stay in any case, and are refused by the limit of the model."""
    images = [piece for piece in pieces if piece.image]
    last = pieces[-1].message
    spare = max(0, len(images) - most)
    dropped = {id(piece) for piece in images[:spare] if piece.message != last}
    return [piece for piece in pieces if id(piece) not in dropped]


def _prompt(pieces: Sequence[_Piece]) -> str:
    """Return the instructions, and what the user wrote since the last image of the model."""
    made = [number for number, piece in enumerate(pieces) if piece.role == "model" and piece.image]
    since = pieces[made[-1] + 1 :] if made else pieces
    instructions = [piece.text for piece in pieces if piece.role == "system"]
    return "\n\n".join(filter(None, [*instructions, *(piece.text for piece in since if piece.role == "user")]))


def _turns(pieces: Sequence[_Piece]) -> tuple[Turn, ...]:
    """Return the conversation, if there is one; instructions belong to the first turn of the user."""
    if all(piece.role != "model" for piece in pieces):
        return ()
    parts: list[tuple[Literal["user", "model"], list[TurnPart]]] = []
    position = 0
    for piece in pieces:
        role: Literal["user", "model"] = "model" if piece.role == "model" else "user"
        if not parts or parts[-1][0] != role:
            parts.append((role, []))
        parts[-1][1].append(TurnPart(reference=position) if piece.image else TurnPart(text=piece.text))
        position += bool(piece.image)
    return tuple(Turn(role=role, parts=tuple(listed)) for role, listed in parts)
