"""Predictions as responses: which tasks belong to one, and how its images are sent."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass

from starlette.requests import Request
from starlette.responses import Response

from broker.api.http.addresses import own_base_url
from broker.api.http.endpoint import principal_of
from broker.api.http.responses import json_response
from broker.api.shared.inline_images import data_uri, image_json
from broker.errors import ApiError
from broker.notifications.formats.replicate import PredictionOrigin, PredictionPresenter, ReplicatePrediction
from broker.tasks.queries import TaskQueries
from storage.blobs.store import BlobStore
from storage.images import StoredImage
from storage.sql.scope import EVERYTHING
from storage.tasks import Task


@dataclass(frozen=True, kw_only=True)
class PredictionAnswers:
    queries: TaskQueries
    blobs: BlobStore
    presenter: PredictionPresenter
    public_base: Callable[[], str | None]
    """Our public URL; None without one."""

    def base_for(self, request: Request) -> str:
        """Return where the client reaches us, without a trailing slash."""
        return own_base_url(request, self.public_base())

    async def respond(
        self,
        request: Request,
        task_id: str,
        status: int = 200,
        *,
        is_new: bool = False,
        headers: Mapping[str, str] | None = None,
    ) -> Response:
        """Return the prediction of a task as a response. is_new: it answers the order itself.

        SDKs open an output that is an https URL or a data URI, and leave any other text as it is, so the images are in
        the response where the broker is reached over plain HTTP.
        """
        tasks = await self.list_tasks(await self.queries.get(task_id, principal_of(request).scope))
        images, base_url = await self._list_images(tasks), self.base_for(request)
        prediction = self.presenter.make_prediction(tasks, images, base_url, is_new=is_new)
        document = prediction.to_document()
        if not images or base_url.startswith("https:"):
            return json_response(document, status, headers)
        inline = [data_uri(image) for image in images]
        document["output"] = inline if isinstance(document["output"], list) else inline[0]
        return image_json(document, self.blobs, status=status, headers=headers)

    async def list_tasks(self, task: Task) -> list[Task]:
        """Return the tasks of the prediction to which a task belongs; they have one owner."""
        if PredictionOrigin.of_task(task).images == 1:
            return [task]
        return await self.queries.get_batch(task.batch, EVERYTHING)

    async def list_page(self, request: Request, tasks: Sequence[Task]) -> list[ReplicatePrediction]:
        """Return the predictions of a page of tasks, with URLs; one of several tasks comes with its first."""
        base_url, predictions = self.base_for(request), list[ReplicatePrediction]()
        for task in tasks:
            with suppress(ApiError):  # expired since
                together = await self.list_tasks(task)
                if together[0].id == task.id:
                    images = await self._list_images(together)
                    predictions.append(self.presenter.make_prediction(together, images, base_url))
        return predictions

    async def _list_images(self, tasks: Sequence[Task]) -> list[StoredImage]:
        """Return the first image of each completed task: what these models return."""
        return [image for task in tasks for image in (await self.queries.get_results(task))[:1]]
