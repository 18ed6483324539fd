"""Models of a request to generateContent.

Names in camelCase and in snake_case are the same. A client that sends both, as an answer had them, means the former.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Final

from pydantic import BeforeValidator, ConfigDict, Field
from pydantic.alias_generators import to_camel

from broker.api.http.request_body import RequestModel
from broker.errors import ApiError

GROUNDING: Final = frozenset({"googleSearch", "googleSearchRetrieval"})
"""Tools of this name let the model search the web."""


MAX_SYSTEM_CHARACTERS: Final = 2**18
"""Kept with each image; many times what these models read."""


class GeminiInput(RequestModel):
    """Base of the objects in a request; other names are kept as extra fields."""

    model_config = ConfigDict(extra="allow", alias_generator=to_camel, populate_by_name=True)

    def unknown_names(self, prefix: str = "") -> Iterator[str]:
        """Yield the names, in camelCase, that this model does not have."""
        known = {to_camel(name) for name in type(self).model_fields}
        for name, value in (self.model_extra or {}).items():
            if value is not None and to_camel(name) not in known:
                yield prefix + to_camel(name)


class GeminiInlineData(GeminiInput):
    """Base64 of either alphabet."""

    mime_type: str | None = None
    data: str


class GeminiFileData(GeminiInput):
    """A file that was uploaded before."""

    mime_type: str | None = None
    file_uri: str


class GeminiRequestPart(GeminiInput):
    """A text, an image or a file."""

    text: str | None = None
    inline_data: GeminiInlineData | None = None
    file_data: GeminiFileData | None = None
    thought: bool | None = None
    thought_signature: str | None = None


def _as_list(value: Any) -> Any:
    return [value] if isinstance(value, Mapping) else [{"text": value}] if isinstance(value, str) else value


class GeminiRequestContent(GeminiInput):
    """One turn of a conversation; without a role, it is the user's."""

    role: str | None = None
    parts: Annotated[list[GeminiRequestPart], BeforeValidator(_as_list)] = Field(default=[])


def _as_content(value: Any) -> Any:
    return {"parts": [{"text": value}]} if isinstance(value, str) else value


def _as_contents(value: Any) -> Any:
    return [value] if isinstance(value, Mapping | str) else value


class GeminiImageConfig(GeminiInput):
    aspect_ratio: str | None = None
    image_size: str | None = None


class GeminiGenerationConfig(GeminiInput):
    response_modalities: list[str] | None = None
    image_config: GeminiImageConfig | None = None
    candidate_count: int | None = None
    seed: Annotated[int | None, Field(ge=-(2**31), lt=2**31)] = None
    temperature: Annotated[float | None, Field(ge=0, le=2)] = None
    top_p: Annotated[float | None, Field(ge=0, le=1)] = None
    top_k: Annotated[int | None, Field(ge=1, lt=2**31)] = None
    max_output_tokens: Annotated[int | None, Field(ge=1, lt=2**31)] = None


class GenerateContentRequest(GeminiInput):
    """The body of generateContent and streamGenerateContent."""

    contents: Annotated[
        list[Annotated[GeminiRequestContent, BeforeValidator(_as_content)]], BeforeValidator(_as_contents)
    ]
    system_instruction: Annotated[GeminiRequestContent | None, BeforeValidator(_as_content)] = None
    generation_config: GeminiGenerationConfig | None = None
    tools: list[dict[str, Any]] | None = None
    cached_content: str | None = None

    @property
    def config(self) -> GeminiGenerationConfig:
        return self.generation_config or GeminiGenerationConfig()

    @property
    def image_config(self) -> GeminiImageConfig:
        return self.config.image_config or GeminiImageConfig()

    @property
    def modalities(self) -> tuple[str, ...]:
        """Return what the answer may have, in capitals; without a choice both."""
        return tuple(name.upper() for name in self.config.response_modalities or ("TEXT", "IMAGE"))

    @property
    def asks_for_text(self) -> bool:
        return bool(self.config.response_modalities) and "TEXT" in self.modalities

    @property
    def has_grounding(self) -> bool:
        return any(to_camel(name) in GROUNDING for tool in self.tools or () for name in tool)

    @property
    def system_text(self) -> str | None:
        parts = self.system_instruction.parts if self.system_instruction else []
        return "\n".join(part.text for part in parts if part.text) or None

    def ignored_names(self) -> list[str]:
        """Return the names in the request that have no effect."""
        config = [*self.config.unknown_names("generationConfig.")]
        config += self.image_config.unknown_names("generationConfig.imageConfig.")
        tools = [to_camel(name) for tool in self.tools or () for name in tool]
        return [*self.unknown_names(), *config, *(f"tools.{name}" for name in tools if name not in GROUNDING)]

    def check_supported(self) -> None:
        """Raise `ApiError` for what cannot be ignored without another result."""
        if "IMAGE" not in self.modalities or not {"TEXT", "IMAGE"}.issuperset(self.modalities):
            message = 'responseModalities must have "IMAGE", and may have "TEXT": other answers are not made here.'
            raise ApiError("unsupported_parameter", message, field="generationConfig.responseModalities")
        if len(self.system_text or "") > MAX_SYSTEM_CHARACTERS:
            message = f"systemInstruction has more than {MAX_SYSTEM_CHARACTERS:,} characters: shorten it."
            raise ApiError("invalid_request", message, field="systemInstruction")
        if self.cached_content:
            message = "cachedContent is not supported: send the content itself."
            raise ApiError("unsupported_parameter", message, field="cachedContent")
