"""Asynchronous orders as tasks that clients poll, in the two shapes that are in use.

`/v1/images/tasks/{id}` is the shape of sub2api. `/v1/tasks/{id}` has that and the shapes of EvoLink (`results`,
`progress`) and APIMart (`data.result.images`). A task is the batch of an order; the ids of the broker's own tasks and
batches are understood, too.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Final, Literal

from pydantic import Field
from starlette.requests import Request
from starlette.responses import Response

from broker.api.dialects.openai.answers import ImageAnswers, OpenAIImages
from broker.api.dialects.openai.errors import OpenAIErrorDetail, error_detail
from broker.api.http.addresses import own_base_url
from broker.api.http.endpoint import Endpoint, Parameter, json_success, principal_of
from broker.api.http.responses import POLL_SECONDS, json_response
from broker.api.shared.held_answers import PlacedOrder
from broker.api.shared.models import SnakeResponseModel
from broker.callbacks.public_url import PublicAddress
from broker.errors import ApiError
from broker.presenter import Absent, OneOf
from broker.tasks.queries import TaskQueries
from storage.ids import TASK_ID
from storage.sql.scope import EVERYTHING
from storage.tasks import Task

_PREFIX: Final = "imgtask_"
_OBJECT: Final = "image.generation.task"
_ID: Final = Parameter("id", "path", "an `imgtask_…` id, or the id of a task or batch of the broker")
_ERRORS: Final = ("task_not_found", "task_expired")


class OpenAIImageTask(SnakeResponseModel):
    """The state of an asynchronous order."""

    id: str
    task_id: str
    object: Literal["image.generation.task"]
    status: Annotated[str, OneOf(("pending", "processing", "completed", "failed"))]
    created_at: int
    expires_at: Annotated[
        int | None, Field(description="when it is deleted; later if it is still in work now; null: it is pinned")
    ]
    poll_url: str | Absent = None
    http_status: Annotated[int | Absent, Field(description="what the synchronous route had answered")] = None
    image_url: Annotated[str | Absent, Field(description="the first image")] = None
    result: OpenAIImages | Absent = None
    error: OpenAIErrorDetail | Absent = None
    completed_at: int | Absent = None


class OpenAITaskImage(SnakeResponseModel):
    url: list[str]
    expires_at: int | None


class OpenAITaskImages(SnakeResponseModel):
    images: list[OpenAITaskImage]


class OpenAITaskData(SnakeResponseModel):
    """The part of APIMart."""

    id: str
    status: str
    progress: int
    created: int
    completed: int | Absent = None
    result: OpenAITaskImages | Absent = None
    error: OpenAIErrorDetail | Absent = None


class OpenAIAnyTask(OpenAIImageTask):
    """The same, with the parts of EvoLink and APIMart."""

    type: Literal["image"]
    model: str
    created: int
    progress: Annotated[int, Field(ge=0, le=100)]
    results: Annotated[list[str] | Absent, Field(description="addresses of the images")] = None
    code: Literal[200]
    data: OpenAITaskData


@dataclass(frozen=True, kw_only=True)
class AsyncTasks:
    queries: TaskQueries
    answers: ImageAnswers
    address: PublicAddress
    retention_seconds: float

    def endpoints(self) -> list[Endpoint]:
        return [
            Endpoint(
                "GET",
                f"/v1/{path}/{{id}}",
                handler,
                access="caller",
                tag="OpenAI",
                parameters=(_ID,),
                responses={200: json_success("the task", model)},
                errors=_ERRORS,
                is_quiet=True,
            )
            for path, handler, model in (
                ("images/tasks", self.get_openai_image_task, OpenAIImageTask),
                ("tasks", self.get_openai_task, OpenAIAnyTask),
            )
        ]

    def link_base(self, request: Request) -> str:
        return own_base_url(request, self.address.base)

    async def accept(self, placed: PlacedOrder, *, is_preferred: bool = False) -> Response:
        """Return the response to an order whose client polls. is_preferred: because it said so by `Prefer`."""
        task = (await self.queries.get_batch(placed.batch, EVERYTHING))[0]
        task_id = _PREFIX + placed.batch.removeprefix("batch_")
        poll_url = f"/v1/images/tasks/{task_id}"
        document = self._state(task_id, [task], "processing", poll_url=poll_url)
        headers = {"location": poll_url, "retry-after": POLL_SECONDS}
        headers |= {"preference-applied": "respond-async"} if is_preferred else {}
        return json_response(OpenAIImageTask(**document).to_document(), 202, headers)

    async def get_openai_image_task(self, request: Request) -> Response:
        """Get an asynchronous order of images."""
        tasks = await self._find(request)
        ended = all(task.has_ended for task in tasks)
        document = await self._describe(request, tasks) if ended else self._state(_id_of(request), tasks, "processing")
        return _respond(OpenAIImageTask(**document), ended)

    async def get_openai_task(self, request: Request) -> Response:
        """Get an asynchronous order, in the shapes of several relays."""
        tasks = await self._find(request)
        ended = all(task.has_ended for task in tasks)
        is_pending = all(task.status == "pending" for task in tasks)
        state = "pending" if is_pending else "processing"
        document = await self._describe(request, tasks) if ended else self._state(_id_of(request), tasks, state)
        return _respond(OpenAIAnyTask(**document, **_relay_parts(document, tasks)), ended)

    # -- reading

    async def _find(self, request: Request) -> list[Task]:
        """Return the tasks of an id. Raises `ApiError`, also for those of another caller."""
        task_id, scope = request.path_params["id"], principal_of(request).scope
        if TASK_ID.fullmatch(task_id):
            return [await self.queries.get(task_id, scope)]
        batch = f"batch_{task_id.removeprefix(_PREFIX)}" if task_id.startswith(_PREFIX) else task_id
        return await self.queries.get_batch(batch, scope)

    def _state(self, task_id: str, tasks: Sequence[Task], status: str, **more: Any) -> dict[str, Any]:
        last = max(task.ended_at or task.created_at for task in tasks)
        is_pinned = any(task.pinned_at is not None for task in tasks)
        return {
            "id": task_id,
            "task_id": task_id,
            "object": _OBJECT,
            "status": status,
            "created_at": int(tasks[0].created_at),
            "expires_at": None if is_pinned else int(last + self.retention_seconds),
            **more,
        }

    async def _describe(self, request: Request, tasks: Sequence[Task]) -> dict[str, Any]:
        """Return an ended order: its images, or what the synchronous route had answered."""
        ended: dict[str, Any] = {"completed_at": int(max(task.ended_at or task.updated_at for task in tasks))}
        try:
            result = await self.answers.link_document(tasks, self.link_base(request))
        except ApiError as error:
            ended |= {"http_status": error.status, "error": error_detail(error)}
            return self._state(_id_of(request), tasks, "failed", **ended)
        ended |= {"http_status": 200, "image_url": result.data[0].url, "result": result}
        return self._state(_id_of(request), tasks, "completed", **ended)


def _id_of(request: Request) -> str:
    task_id: str = request.path_params["id"]
    return task_id


def _respond(task: OpenAIImageTask, ended: bool) -> Response:
    return json_response(task.to_document(), 200, {} if ended else {"retry-after": POLL_SECONDS})


def _relay_parts(document: dict[str, Any], tasks: Sequence[Task]) -> dict[str, Any]:
    """Return what EvoLink and APIMart have beside the state."""
    result: OpenAIImages | None = document.get("result")
    urls = [image.url for image in result.data if image.url] if result else None
    progress = sum(100 if task.has_ended else int(task.provider_percent or 0) for task in tasks) // len(tasks)
    images = [OpenAITaskImage(url=[url], expires_at=document["expires_at"]) for url in urls or ()]
    data = OpenAITaskData(
        id=document["id"],
        status=document["status"],
        progress=progress,
        created=document["created_at"],
        completed=document.get("completed_at"),
        result=OpenAITaskImages(images=images) if images else None,
        error=document.get("error"),
    )
    return {
        "type": "image",
        "model": tasks[0].model,
        "created": document["created_at"],
        "progress": min(100, max(0, progress)),
        "results": urls,
        "code": 200,
        "data": data,
    }
