"""Batches of the Gemini API: requests and answers. A batch is told as a long-running operation."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Final

from pydantic import Field

from broker.api.dialects.gemini.answers import TaskImages, answer_document
from broker.api.dialects.gemini.requests import GeminiInput, GenerateContentRequest
from broker.api.dialects.gemini.schemas import GeminiAnswer
from broker.api.dialects.gemini.spelling import AnswerStyle
from broker.api.shared.task_errors import completed_tasks
from broker.catalog import Catalog
from broker.clock import iso
from broker.errors import ApiError
from broker.i18n import Messages
from broker.notifications.formats.gemini_batch import batch_name
from broker.presenter import Absent, Moment, ResponseModel
from storage.batches import StoredBatch, ending_of
from storage.images import StoredImage
from storage.tasks import Task

ORIGIN: Final = "gemini_batch"
"""Key of what a task's origin says about its place in the batch."""
_STATES: Final = {"succeeded": "SUCCEEDED", "failed": "FAILED", "canceled": "CANCELLED"}
_CANCELED: Final = 1
_CODES: Final = {400: 3, 404: 5, 424: 9, 429: 8, 503: 14, 507: 8}
"""HTTP status of a failure → google.rpc.Code."""
_TYPE: Final = "type.googleapis.com/google.ai.generativelanguage.v1main.GenerateContentBatch"


# -- requests


class GeminiBatchItem(GeminiInput):
    request: GenerateContentRequest
    metadata: dict[str, Any] | None = None

    @property
    def model(self) -> str | None:
        """Return the model that the request itself names."""
        named = (self.request.model_extra or {}).get("model")
        return named if isinstance(named, str) and named else None


class GeminiBatchItems(GeminiInput):
    requests: tuple[GeminiBatchItem, ...] = ()


class GeminiBatchInput(GeminiInput):
    requests: GeminiBatchItems | None = None
    file_name: str | None = None


class GeminiWebhookConfig(GeminiInput):
    uris: tuple[str, ...] = ()
    user_metadata: dict[str, Any] | None = None


class GeminiBatchOrder(GeminiInput):
    display_name: str | None = None
    input_config: GeminiBatchInput
    webhook_config: GeminiWebhookConfig | None = None


class GeminiBatchRequest(GeminiInput):
    """The body of batchGenerateContent."""

    batch: GeminiBatchOrder


# -- answers


class GeminiItemError(ResponseModel):
    code: Annotated[int, Field(description="a google.rpc.Code")]
    message: str


class GeminiInlinedResponse(ResponseModel):
    response: GeminiAnswer | Absent = None
    error: GeminiItemError | Absent = None
    metadata: dict[str, Any] | Absent = None


class GeminiInlinedResponses(ResponseModel):
    inlined_responses: list[GeminiInlinedResponse]


class GeminiBatchOutput(ResponseModel):
    inlined_responses: GeminiInlinedResponses


class GeminiBatchStats(ResponseModel):
    request_count: str
    pending_request_count: str
    successful_request_count: str
    failed_request_count: str


class GeminiBatchMetadata(ResponseModel):
    type: Annotated[str, Field(alias="@type")]
    name: str
    model: str
    display_name: str
    state: Annotated[str, Field(description="BATCH_STATE_PENDING, RUNNING, SUCCEEDED, FAILED or CANCELLED")]
    create_time: Moment
    update_time: Moment
    end_time: Moment | Absent = None
    batch_stats: GeminiBatchStats
    output: GeminiBatchOutput | Absent = None


class GeminiBatchOperation(ResponseModel):
    name: str
    metadata: GeminiBatchMetadata
    done: bool | Absent = None
    response: Annotated[GeminiBatchOutput | Absent, Field(description="for other clients than SDKs")] = None
    error: GeminiItemError | Absent = None


class GeminiBatchList(ResponseModel):
    operations: list[GeminiBatchOperation]
    next_page_token: str | Absent = None


@dataclass(frozen=True, kw_only=True)
class BatchItem:
    """One request of a batch."""

    tasks: Sequence[Task]
    """In order; none is left if its caller deleted them."""

    @property
    def place(self) -> Mapping[str, Any]:
        """Return what the origin of its tasks says about it."""
        found: Mapping[str, Any] = self.tasks[0].origin[ORIGIN] if self.tasks else {}
        return found

    @property
    def has_ended(self) -> bool:
        return all(task.has_ended for task in self.tasks)

    @property
    def is_completed(self) -> bool:
        return self.has_ended and any(task.status == "completed" for task in self.tasks)


def split_items(tasks: Sequence[Task]) -> list[BatchItem]:
    """Return all requests of a batch, in order: clients find an answer by its position. tasks: those that are left."""
    items: list[list[Task]] = [[] for _ in range(tasks[0].origin[ORIGIN]["of"])]
    for task in tasks:
        items[task.origin[ORIGIN]["item"]].append(task)
    return [BatchItem(tasks=item) for item in items]


def describe_batch(batch: StoredBatch, tasks: Sequence[Task]) -> dict[str, Any]:
    """Return a batch without its images."""
    return _operation(batch, tasks).to_document()


def _operation(batch: StoredBatch, tasks: Sequence[Task]) -> GeminiBatchOperation:
    items, ending, name = split_items(tasks), ending_of([task.status for task in tasks]), batch_name(batch.id)
    completed, ended = sum(item.is_completed for item in items), sum(item.has_ended for item in items)
    ends = [task.ended_at for task in tasks if task.ended_at is not None]
    metadata = GeminiBatchMetadata(
        type=_TYPE,
        name=name,
        model=f"models/{batch.model.removeprefix('models/')}",
        display_name=batch.name,
        state=f"BATCH_STATE_{_STATES[ending] if ending else _running_state(tasks)}",
        create_time=str(iso(batch.created_at)),
        update_time=str(iso(max([batch.updated_at, *ends]))),
        end_time=iso(max(ends)) if ending else None,
        batch_stats=GeminiBatchStats(
            request_count=str(len(items)),
            pending_request_count=str(len(items) - ended),
            successful_request_count=str(completed),
            failed_request_count=str(ended - completed),
        ),
    )
    failure = GeminiItemError(code=9, message="No request of the batch has an image.") if ending == "failed" else None
    return GeminiBatchOperation(name=name, metadata=metadata, done=True if ending else None, error=failure)


def _running_state(tasks: Sequence[Task]) -> str:
    return "PENDING" if all(task.status == "pending" for task in tasks) else "RUNNING"


@dataclass(frozen=True, kw_only=True)
class BatchWriter:
    """Writes the whole document of a batch, with `InlineImage` values for the images."""

    catalog: Catalog
    messages: Messages
    images: Mapping[str, Sequence[StoredImage]]
    """Of each completed task."""
    choose_style: Callable[[bool], AnswerStyle]
    """Whether a request asked for text → the style of its answer."""
    repeats: bool
    """The answers are in `response`, too, where Google has them for other clients than SDKs."""

    def write(self, batch: StoredBatch, tasks: Sequence[Task]) -> dict[str, Any]:
        """Return the batch; with its answers once all tasks have ended."""
        document = describe_batch(batch, tasks)
        if not document.get("done"):
            return document
        output = {"inlinedResponses": {"inlinedResponses": [self._item(item) for item in split_items(tasks)]}}
        document["metadata"]["output"] = output
        return document | ({"response": output} if self.repeats and "error" not in document else {})

    def _item(self, item: BatchItem) -> dict[str, Any]:
        if not item.tasks:
            return {"error": {"code": _CODES[404], "message": "The tasks of this request are deleted."}}
        metadata = item.place.get("metadata")
        echoed = {} if metadata is None else {"metadata": metadata}
        try:
            completed = completed_tasks(item.tasks, self.messages)
        except ApiError as error:
            return {"error": _describe_failure(error, item.tasks[0]), **echoed}
        made = [TaskImages(task=task, images=self.images[task.id]) for task in completed]
        style = self.choose_style(bool(item.place.get("text")))
        return {"response": answer_document(made, self.catalog, style), **echoed}


def _describe_failure(error: ApiError, task: Task) -> dict[str, Any]:
    code = _CANCELED if error.code == "canceled" else _CODES.get(error.status, 2)
    return {"code": code, "message": f"{error.message} (task {task.id}, {error.code})"}
