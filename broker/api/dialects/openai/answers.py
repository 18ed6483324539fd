"""Ended tasks as answers of the image routes: one JSON document, or an event for each image."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import Field
from starlette.responses import Response

from broker.api.shared.held_streams import stream_event
from broker.api.shared.inline_images import InlineImage, image_json
from broker.api.shared.models import SnakeResponseModel
from broker.api.shared.task_errors import completed_tasks
from broker.catalog import Catalog
from broker.i18n import Messages
from broker.presenter import Absent
from broker.tasks.queries import TaskQueries
from storage.blobs.store import BlobStore
from storage.images import StoredImage
from storage.tasks import Task

Operation = Literal["image_generation", "image_edit"]
DELIVERED_SIZE = "x-delivered-size"


class OpenAIImageData(SnakeResponseModel):
    b64_json: str | Absent = None
    url: str | Absent = None


class OpenAITokenDetails(SnakeResponseModel):
    text_tokens: int
    image_tokens: int


class OpenAIImageUsage(SnakeResponseModel):
    """Tokens by the table of the model: those of the images; the input is not counted."""

    input_tokens: int
    input_tokens_details: OpenAITokenDetails
    output_tokens: int
    total_tokens: int


class OpenAIImages(SnakeResponseModel):
    created: Annotated[int, Field(description="seconds since 1970")]
    data: Annotated[list[OpenAIImageData], Field(description="those that could be made")]
    background: Literal["opaque"]
    output_format: Annotated[str, Field(description="as delivered")]
    size: Annotated[str, Field(description="as delivered, of the first image")]
    quality: Annotated[str | Absent, Field(description="as asked for")] = None
    usage: OpenAIImageUsage | Absent = None


@dataclass(frozen=True, kw_only=True)
class ImageAnswers:
    queries: TaskQueries
    blobs: BlobStore
    catalog: Catalog
    messages: Messages

    async def respond(self, tasks: Sequence[Task], *, quality: str | None, link_base: str | None) -> Response:
        """Return the response. link_base: None sends the bytes of the images. Raises `ApiError` if none was made."""
        completed = completed_tasks(tasks, self.messages)
        images = await self._results(completed)
        document = self._describe(completed, images, quality)
        document["data"] = [
            {"url": image_link(link_base, image)} if link_base else {"b64_json": InlineImage(image=image)}
            for image in images
        ]
        sizes = ", ".join(dict.fromkeys(map(size_text, images)))
        return image_json(document, self.blobs, headers={DELIVERED_SIZE: sizes})

    async def link_document(self, tasks: Sequence[Task], link_base: str) -> OpenAIImages:
        """Return the document with links. Raises `ApiError` if no image was made."""
        completed = completed_tasks(tasks, self.messages)
        images = await self._results(completed)
        data = [OpenAIImageData(url=image_link(link_base, image)) for image in images]
        return OpenAIImages.model_validate({**self._describe(completed, images, None), "data": data})

    async def stream_events(
        self, tasks: Sequence[Task], *, operation: Operation, quality: str | None
    ) -> AsyncIterator[bytes]:
        """Yield one completed event for each image. Raises `ApiError` before the first one if none was made."""
        name = f"{operation}.completed"
        for task in completed_tasks(tasks, self.messages):
            for image in await self._results([task]):
                described = self._describe([task], [image], quality or "auto")
                created_at, _ = described.pop("created"), described.pop("data")
                document = {"type": name, "created_at": created_at, **described, "b64_json": InlineImage(image=image)}
                async for chunk in stream_event(document, self.blobs, name=name):
                    yield chunk

    async def _results(self, tasks: Sequence[Task]) -> list[StoredImage]:
        return [image for task in tasks for image in await self.queries.get_results(task)]

    def _describe(self, tasks: Sequence[Task], images: Sequence[StoredImage], quality: str | None) -> dict[str, Any]:
        """Return the answer without its images."""
        described = OpenAIImages(
            created=int(max(task.ended_at or task.created_at for task in tasks)),
            data=[],
            background="opaque",
            output_format=images[0].media_type.removeprefix("image/"),
            size=size_text(images[0]),
            quality=quality,
            usage=image_usage(count_tokens(self.catalog, tasks)),
        )
        return described.to_document()


def image_link(base: str, image: StoredImage) -> str:
    return f"{base}/uploads/images/{image.name}"


def size_text(image: StoredImage) -> str:
    return f"{image.width}x{image.height}"


@dataclass(frozen=True, kw_only=True)
class TokenCount:
    """Tokens of an order."""

    input: int
    """0 where the provider does not count them."""
    output: int

    @property
    def total(self) -> int:
        return self.input + self.output


def count_tokens(catalog: Catalog, tasks: Sequence[Task]) -> TokenCount | None:
    """Return the tokens as the provider counted them, or those of the images by the table of their model; None where
    neither is known.
    """
    model = catalog.resolve(tasks[0].model)
    by_table = model.output_tokens.get(tasks[0].resolution or model.resolutions[0])
    counted = [task.tokens for task in tasks if task.tokens.get("image")]
    if len(counted) == len(tasks):
        output = sum(one.get("image", 0) + one.get("text", 0) for one in counted)
        return TokenCount(input=sum(one.get("input", 0) for one in counted), output=output)
    return None if by_table is None else TokenCount(input=0, output=by_table * len(tasks))


def image_usage(tokens: TokenCount | None) -> OpenAIImageUsage | None:
    if tokens is None:
        return None
    return OpenAIImageUsage(
        input_tokens=tokens.input,
        input_tokens_details=OpenAITokenDetails(text_tokens=tokens.input, image_tokens=0),
        output_tokens=tokens.output,
        total_tokens=tokens.total,
    )
