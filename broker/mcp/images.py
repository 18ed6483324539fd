"""Images of the tools: references as a client names them, and results as files, resources and small previews."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from stat import S_ISREG
from typing import Final
from urllib.parse import quote, unquote, urlsplit

import anyio.to_thread
from mcp.server.mcpserver.exceptions import ToolError
from mcp_types import ImageContent, ResourceLink
from pydantic import BaseModel

from broker.client import AsyncClient, BrokerError, Result, Task
from uploads.detect import HEAD_BYTES, detect_type
from uploads.structure import InvalidImage

RESOURCE_PREFIX: Final = "broker://images/"
IMAGES_PATH: Final = "/uploads/images/"
MAX_INPUT_BYTES: Final = 64 * 2**20
"""The broker's own limit is lower; this one protects the memory of this process."""
MAX_PREVIEWS: Final = 4
"""In one answer; all images are files and resources."""
MAX_PREVIEW_BYTES: Final = 256 * 2**10


class SavedImage(BaseModel):
    """A result."""

    path: str
    """The file that it was saved to."""
    uri: str
    """The resource; also a reference for `edit`."""
    width: int | None
    height: int | None
    media_type: str | None


@dataclass(frozen=True, kw_only=True)
class ImageFiles:
    """Reads references, and saves results in a folder."""

    client: AsyncClient
    folder: Path

    # -- in

    async def read_all(self, images: Sequence[str]) -> list[str | bytes]:
        """Return references as the client of the broker takes them. Raises `ToolError` and `BrokerError`."""
        return [await self._read(image.strip()) for image in images]

    async def _read(self, image: str) -> str | bytes:
        own = f"{self.client.base}{IMAGES_PATH}"
        for prefix in (RESOURCE_PREFIX, own, IMAGES_PATH):
            if image.startswith(prefix):
                return await self.download(image.removeprefix(prefix).partition("?")[0])
        if image.lower().startswith(("http://", "https://")):
            return image
        if image.startswith("data:"):
            return _decode_data_uri(image)
        path = unquote(urlsplit(image).path) if image.startswith("file://") else image
        return await anyio.to_thread.run_sync(_read_file, path)

    async def download(self, name: str) -> bytes:
        """Return an image of the broker by its name."""
        url = f"{self.client.base}{IMAGES_PATH}{quote(unquote(name), safe='')}"
        return (await self.client.image(Result(url=url))).content

    # -- out

    async def save(self, task: Task) -> list[SavedImage]:
        """Save the images of a task, each verified by its hash. Raises `ToolError` and `BrokerError`."""
        if not task.images:
            return []
        try:
            await anyio.to_thread.run_sync(lambda: self.folder.mkdir(parents=True, exist_ok=True))
            return [self._saved(image, await self.client.download(image, self.folder)) for image in task.images]
        except OSError as error:
            reason = f"{error.strerror or error}"
            raise ToolError(
                f"{task.id} is completed, but its images cannot be saved in {self.folder} ({reason}): start the "
                "server with another --out, and call get_task."
            ) from error

    async def previews(self, tasks: Sequence[Task]) -> list[ImageContent]:
        """Return small versions of the first images."""
        images = [image for task in tasks for image in task.images][:MAX_PREVIEWS]
        return [preview for image in images if (preview := await self._preview(image))]

    async def _preview(self, image: Result) -> ImageContent | None:
        """Return the thumbnail, or a small image itself; None for others."""
        try:
            content = (await self.client.image(Result(url=image.thumbnail or image.url))).content
            if len(content) > MAX_PREVIEW_BYTES:
                return None
            media_type = detect_type(content)
        except (BrokerError, InvalidImage):  # the image itself is saved
            return None
        return ImageContent(type="image", data=base64.b64encode(content).decode(), mime_type=media_type)

    @staticmethod
    def _saved(image: Result, path: Path) -> SavedImage:
        return SavedImage(
            path=str(path),
            uri=f"{RESOURCE_PREFIX}{image.name}",
            width=image.width,
            height=image.height,
            media_type=image.media_type,
        )


def link_to(image: SavedImage) -> ResourceLink:
    """Return a link to the resource of an image."""
    return ResourceLink(uri=image.uri, name=Path(image.path).name, mime_type=image.media_type)


def _read_file(text: str) -> bytes:
    """Return the bytes of an image file. An agent may be talked into naming another file: that is sent nowhere."""
    path = Path(text).expanduser()
    try:
        status = path.stat()
        if not S_ISREG(status.st_mode):  # a device or a pipe may have no end
            raise ValueError("it is no file")
        if status.st_size > MAX_INPUT_BYTES:
            raise ToolError(f"{path} is larger than {MAX_INPUT_BYTES:,} bytes: give a smaller image.")
        content = path.read_bytes()
        detect_type(content[:HEAD_BYTES])
        return content
    except (OSError, ValueError, InvalidImage) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise ToolError(
            f"{path} cannot be read ({reason}): give the path of an image on this machine, its URL, or the uri of an "
            "earlier result."
        ) from error


def _decode_data_uri(uri: str) -> bytes:
    try:
        return base64.b64decode(uri.partition(",")[2], validate=True)
    except binascii.Error as error:
        raise ToolError("The data URI is not base64: give data:image/png;base64,<data>, or a path.") from error
