"""Models of kie.ai's requests and responses; the record of a job is in `broker.notifications.formats.kie`."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Final, cast

from pydantic import AfterValidator, ConfigDict, Field, WithJsonSchema
from pydantic.alias_generators import to_camel
from pydantic_core import PydanticCustomError

from broker.api.http.query import NAME_TEXT, QueryModel
from broker.api.http.request_body import RequestModel
from broker.api.shared.models import Seed
from broker.notifications.formats import ORIGIN_KEY
from broker.notifications.formats.kie import KieRecord
from broker.ordering.files import FileDetails
from broker.orders import ImageParams, OrderRequest, UrlReference
from broker.presenter import Absent, MediaType, Moment, ResponseModel

EDIT_MODEL: Final = "google/nano-banana-edit"
"""The one that needs a reference image."""
SQUARE_MODELS: Final = frozenset({"google/nano-banana", EDIT_MODEL, "nano-banana-pro"})
"""Those that make a square image where the order names no ratio; the others choose it."""
_REFERENCES: Final = ("image_urls", "image_input")


class KieInput(RequestModel):
    """The fields of an order, by the names that they have at one model or another; others are kept as extra fields."""

    model_config = ConfigDict(extra="allow", strict=True)

    prompt: str
    image_urls: list[str] | None = None
    image_input: list[str] | None = None
    aspect_ratio: str | None = None
    image_size: Annotated[str | None, Field(description="the older name of aspect_ratio, which takes precedence")] = (
        None
    )
    resolution: str | None = None
    output_format: str | None = None
    seed: Seed | None = None
    google_search: bool | None = None

    @property
    def references(self) -> list[str]:
        return self.image_urls or self.image_input or []

    @property
    def unused(self) -> set[str]:
        """Return the names of fields without an effect: those that are not known, or that another one overrides."""
        overridden = {"image_size": self.aspect_ratio, "image_input": self.image_urls}
        given = {name for name, other in overridden.items() if other and getattr(self, name)}
        return given | {*(self.model_extra or {})}

    def to_params(self, model: str) -> ImageParams:
        """Return the parameters; the catalog checks their values."""
        ratio = self.aspect_ratio or self.image_size or ("1:1" if model in SQUARE_MODELS else None)
        return ImageParams(
            prompt=self.prompt,
            model=model,
            aspect_ratio=ratio,
            resolution=self.resolution,
            output_format=self.output_format,
            seed=self.seed,
            extra={"google_search": True} if self.google_search else {},
        )

    def to_origin(self) -> dict[str, Any]:
        """Return what a record shows of it beside the prompt: no secrets, which queries of URLs may be."""
        known = self.model_dump(exclude={"prompt", *self.unused}, exclude_none=True)
        return {
            name: [url.partition("?")[0] for url in value] if name in _REFERENCES else value
            for name, value in known.items()
        }


class KieCreateTask(RequestModel):
    """The body of createTask; other fields are kept as extra fields."""

    model_config = ConfigDict(extra="allow", strict=True)

    model: Annotated[str, Field(min_length=1, examples=["nano-banana-2"])]
    callback_url: Annotated[str | None, Field(alias="callBackUrl", description="called when the job has ended")] = None
    input: KieInput

    @property
    def ignored(self) -> list[str]:
        return [*(self.model_extra or {}), *(f"input.{name}" for name in sorted(self.input.unused))]

    def to_order(self, base_url: str, sources: Sequence[UrlReference]) -> OrderRequest:
        """Return the order request. base_url: where the client reaches the broker."""
        origin: Mapping[str, Any] = {
            "dialect": "kie",
            "model": self.model,
            "input": self.input.to_origin(),
            "base_url": base_url,
            ORIGIN_KEY: "kie",
        }
        return OrderRequest(
            params=self.input.to_params(self.model),
            mode="image-to-image" if self.model == EDIT_MODEL else None,
            sources=tuple(sources),
            callback_url=self.callback_url or None,
            origin=origin,
        )


class KieRecordQuery(QueryModel):
    task_id: Annotated[str | None, NAME_TEXT, Field(description="required")] = None


class KieTaskId(ResponseModel):
    task_id: str
    record_id: Annotated[str, Field(description="the same")]


class KieAnswer(ResponseModel):
    """Base of all answers: the code decides, not the status."""

    code: Annotated[int, Field(description="200 for success; an error has another one, and no data")]
    msg: str


class KieTaskCreated(KieAnswer):
    data: KieTaskId | None


class KieRecordAnswer(KieAnswer):
    data: KieRecord | None


class KieCredits(KieAnswer):
    data: float | None


class KieError(KieAnswer):
    data: None
    success: Annotated[bool | Absent, Field(description="of uploads alone")] = None


# -- uploads


_NO_BLANKS: Final = str.maketrans("", "", " \t\r\n")


def _decode(text: str) -> bytes:
    """Return the bytes of base64, alone or in a data URL."""
    encoded = text.partition(",")[2] if text.startswith("data:") else text
    try:
        return base64.b64decode(encoded.translate(_NO_BLANKS), validate=True)
    except ValueError as error:
        raise PydanticCustomError("base64", "is not base64") from error


_Folder = Annotated[str, Field(pattern="^[^/]+(/[^/]+)*$", max_length=200, description="without a slash at its ends")]


class KieUpload(RequestModel):
    """What an upload says about its file; other fields are ignored."""

    model_config = ConfigDict(alias_generator=to_camel, strict=True)

    upload_path: _Folder
    file_name: str | None = None

    def to_details(self, name: str = "") -> FileDetails:
        """Return what is kept with the file. name: what it is called where no name was chosen."""
        return FileDetails(name=self.file_name or name, metadata={"uploadPath": self.upload_path})


class KieBase64Upload(KieUpload):
    base64_data: Annotated[str, AfterValidator(_decode), Field(alias="base64Data", description="or a data URL")]

    @property
    def data(self) -> bytes:
        return cast("bytes", self.base64_data)


class KieUrlUpload(KieUpload):
    file_url: str


class KieUploadForm(KieUpload):
    file: Annotated[Any, WithJsonSchema({"type": "string", "format": "binary"})]


class KieFile(ResponseModel):
    file_name: str
    file_path: str
    download_url: Annotated[str, Field(description="for orders of the same caller; to download it, send the key")]
    file_size: int
    mime_type: MediaType
    uploaded_at: Moment


class KieUploaded(KieAnswer):
    success: bool
    data: KieFile | None
