"""Requests for images as JSON and as forms, and the orders that they are."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Final, Literal

from pydantic import ConfigDict, Field, ValidationError, WithJsonSchema
from starlette.datastructures import FormData, UploadFile

from broker.api.dialects.openai.models import ModelNames
from broker.api.dialects.openai.sizes import AUTO, choose_shape
from broker.api.http.request_body import RequestModel, UploadedChunks, validation_error
from broker.errors import ApiError
from broker.orders import DataUriReference, ImageParams, OrderRequest, ReferenceSource, UploadedReference, UrlReference

MAX_N: Final = 10
MAX_SAFE_INTEGER: Final = 2**53 - 1
"""Largest integer that every JSON parser reads exactly."""
ORIGIN: Final[Mapping[str, str]] = {"dialect": "openai"}
_FORMATS: Final = {"png": "png", "jpeg": "jpg", "jpg": "jpg"}
_IMAGE_FIELD: Final = re.compile(r"images?(\[[0-9]{0,3}\])?")
_OVERLAYS: Final = frozenset({"mask", "markup"})


class OpenAIImageSource(RequestModel):
    """An image within JSON."""

    model_config = ConfigDict(extra="allow")

    image_url: Annotated[str, Field(description="a web address, fetched at once, or a data URI")]


_File = Annotated[Any, WithJsonSchema({"type": "string", "format": "binary"})]
_Images = str | list[str | OpenAIImageSource] | None


class OpenAIImageFields(RequestModel):
    """What JSON and forms share; other fields are kept as extra fields, and listed as ignored."""

    model_config = ConfigDict(extra="allow")

    prompt: str
    model: Annotated[str | None, Field(description="of GET /v1/models, or one of OpenAI's names")] = None
    n: Annotated[int | None, Field(ge=1, le=MAX_N)] = None
    size: Annotated[str | None, Field(description="WIDTHxHEIGHT or auto", examples=["1536x1024"])] = None
    quality: str | None = None
    output_format: Annotated[str | None, Field(description="png or jpeg")] = None
    response_format: Literal["url", "b64_json"] | None = None
    stream: bool | None = None
    seed: Annotated[int | None, Field(ge=-MAX_SAFE_INTEGER, le=MAX_SAFE_INTEGER)] = None
    callback_url: Annotated[str | None, Field(description="receives the signed webhook of each task")] = None

    @property
    def asked_quality(self) -> str | None:
        return self.quality if self.quality and self.quality != AUTO else None

    @property
    def wants_links(self) -> bool:
        """Return whether the images are told as links: if asked for, and as retired models did."""
        retired = (self.model or "").startswith("dall-e")
        return self.response_format == "url" if self.response_format else retired

    def to_order(self, names: ModelNames, sources: tuple[ReferenceSource, ...]) -> tuple[OrderRequest, list[str]]:
        """Return the order request, and the fields that are ignored. Raises `ApiError`."""
        _check_overlays(self.model_extra or {})
        name, model = names.find_model(self.model)
        shape = choose_shape(model, self.size, self.quality)
        params = ImageParams(
            prompt=self.prompt,
            model=name,
            aspect_ratio=shape.aspect_ratio,
            resolution=shape.resolution,
            output_format=_read_format(self.output_format),
            seed=self.seed,
        )
        is_quality_unused = self.asked_quality is not None and not shape.is_quality_used
        unused = [key for key, value in (self.model_extra or {}).items() if value is not None]
        order = OrderRequest(
            params=params, count=self.n or 1, sources=sources, origin=ORIGIN, callback_url=self.callback_url or None
        )
        return order, [*(["quality"] if is_quality_unused else []), *unused]


class OpenAIImageRequest(OpenAIImageFields):
    """An order in JSON, with its images as addresses or as data."""

    image: _Images = None
    images: _Images = None
    image_urls: _Images = None

    def list_sources(self) -> Iterator[ReferenceSource]:
        for field in (self.image, self.images, self.image_urls):
            for one in [field] if isinstance(field, str) else field or ():
                yield source_of(one if isinstance(one, str) else one.image_url)


class OpenAIImageForm(OpenAIImageFields):
    """An order as a form, with its images as files."""

    image: Annotated[list[_File], Field(description="one file, or several as image[]")] = Field(default=[])


def source_of(text: str) -> ReferenceSource:
    """Return the image of a web address, a data URI, or base64 alone."""
    if re.match(r"https?://", text, re.IGNORECASE):
        return UrlReference(url=text)
    return DataUriReference(text=text)


def read_image_form(form: FormData) -> tuple[OpenAIImageFields, tuple[ReferenceSource, ...]]:
    """Return the fields and the images of a form. Raises `ApiError`. The images are read from the open form."""
    values: dict[str, Any] = {}
    sources: list[ReferenceSource] = []
    for name, value in form.multi_items():
        if isinstance(value, UploadFile):
            is_filled = bool(value.filename or value.size)
            if _IMAGE_FIELD.fullmatch(name) and is_filled:
                sources.append(UploadedReference(chunks=UploadedChunks(value)))
            elif is_filled:
                values[name] = "file"
        elif _IMAGE_FIELD.fullmatch(name):
            sources += [source_of(value)] if value else []
        elif value and values.setdefault(name, value) != value:
            raise ApiError("invalid_request", f"{name[:64]!a} was given more than once.", field=_plain_name(name))
    try:
        return OpenAIImageFields.model_validate({"prompt": "", **values}), tuple(sources)
    except ValidationError as error:
        raise validation_error(error) from error


def _plain_name(name: str) -> str | None:
    return name if re.fullmatch(r"\w{1,64}", name, re.ASCII) else None


def _read_format(name: str | None) -> str | None:
    if not name:
        return None
    if name not in _FORMATS:
        text = "The models make png and jpeg: choose one of them as output_format, or convert the image yourself."
        raise ApiError("unsupported_parameter", text, field="output_format")
    return _FORMATS[name]


def _check_overlays(extra: Mapping[str, Any]) -> None:
    for name in _OVERLAYS & {key for key, value in extra.items() if value is not None}:
        text = f"No provider takes a {name}: describe in the prompt what is to change, or mark it in the image."
        raise ApiError("unsupported_parameter", text, field=name)
