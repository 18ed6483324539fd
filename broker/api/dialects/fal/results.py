"""Outputs of ended requests."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from starlette.responses import Response

from broker.api.dialects.fal.errors import REQUEST_ID
from broker.api.http.responses import json_response
from broker.api.shared.held_streams import event_bytes
from broker.api.shared.inline_images import data_uri, image_json
from broker.api.shared.task_errors import completed_tasks
from broker.i18n import Messages
from broker.notifications.formats.fal import build_output
from broker.tasks.queries import TaskQueries
from storage.blobs.store import BlobStore
from storage.images import StoredImage
from storage.tasks import Task


@dataclass(frozen=True, kw_only=True)
class FalResults:
    queries: TaskQueries
    blobs: BlobStore
    messages: Messages

    async def render_output(self, tasks: Sequence[Task], base: str, *, is_inline: bool) -> Response:
        """Return the output of ended tasks as JSON. Raises the error of the first one if none has an image."""
        document, images = await self._build(tasks, base)
        headers = {REQUEST_ID: tasks[0].id}
        if not is_inline:
            return json_response(document, 200, headers)
        for file, image in zip(document["images"], images, strict=True):
            file["url"] = data_uri(image)
        return image_json(document, self.blobs, headers=headers)

    async def render_event(self, tasks: Sequence[Task], base: str) -> Response:
        """Return the output as the only event of a stream."""
        document, _ = await self._build(tasks, base)
        headers = {REQUEST_ID: tasks[0].id, "cache-control": "no-store"}
        return Response(event_bytes(document), headers=headers, media_type="text/event-stream")

    async def _build(self, tasks: Sequence[Task], base: str) -> tuple[dict[str, Any], list[StoredImage]]:
        completed = completed_tasks(tasks, self.messages)
        images = [image for task in completed for image in await self.queries.get_results(task)]
        return build_output(completed, images, base).to_document(), images
