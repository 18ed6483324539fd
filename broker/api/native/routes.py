"""Endpoints of the native dialect's orders, tasks and batches."""

from __future__ import annotations

from typing import Final

from broker.api.http.endpoint import ETAG, IF_NONE_MATCH, TEXT, Endpoint, Parameter, SuccessResponse, json_success
from broker.api.native.batches import BatchRoutes
from broker.api.native.schemas import (
    BATCH_ID,
    BatchResponse,
    DryRunResponse,
    OrderAccepted,
    OrderForm,
    OrderJson,
    PollQuery,
    TaskListQuery,
    TaskPage,
    TaskResponse,
)
from broker.api.native.tasks import TaskRoutes
from broker.presenter import TASK_ID

TASK: Final = Parameter(
    name="id",
    where="path",
    text="the task's id; a secret that gives access to the task",
    schema={"type": "string", "pattern": TASK_ID},
)
BATCH: Final = Parameter(
    name="id",
    where="path",
    text="the batch's id; a secret that gives access to its tasks",
    schema={"type": "string", "pattern": BATCH_ID},
)
LANGUAGE: Final = Parameter(
    name="Accept-Language", where="header", text="zh, en or ru: the language of sentences", schema=TEXT
)
IDEMPOTENCY_KEY: Final = Parameter(
    name="Idempotency-Key",
    where="header",
    text="the same key and the same order: the same response, and no second order",
    schema={"type": "string", "pattern": "^[!-~]{1,255}$"},
)
LAST_EVENT_ID: Final = Parameter(name="Last-Event-ID", where="header", text="the last event received", schema=TEXT)

POLL_HEADERS: Final = {**ETAG, "Retry-After": (False, "seconds, while the task has not ended")}
WARNING: Final = {"Warning": (False, "the end of a name or a model, as its vendor has announced it")}
ACCEPTED: Final = json_success(
    "the order is durable",
    OrderAccepted,
    headers={
        "Location": (True, "of the first task"),
        "Retry-After": (True, "seconds until the first poll"),
        **WARNING,
    },
    links={
        "poll": ("getTask", {"id": "$response.body#/taskId"}),
        "cancel": ("cancelTask", {"id": "$response.body#/taskId"}),
    },
)
NOT_MODIFIED: Final = SuccessResponse(text="nothing changed", headers=POLL_HEADERS)
STREAM_EVENT: Final = {
    "type": "object",
    "required": ["id", "data"],
    "properties": {
        "id": TEXT,
        "data": {
            "type": "string",
            "contentMediaType": "application/json",
            "contentSchema": {"$ref": "#/components/schemas/TaskResponse"},
        },
    },
}
GONE: Final = ("task_not_found", "task_expired")


def order_endpoints(tasks: TaskRoutes) -> list[Endpoint]:
    return [
        Endpoint(
            method="POST",
            path="/api/generate/image",
            handler=tasks.create_image,
            access="caller",
            operation_id="createImage",
            summary="Order images",
            tag="images",
            description="The order is durable before the response is sent. Whatever can be rejected is rejected here, "
            "before it costs. With `dryRun` nothing is created: the response is the provider request and its price.",
            parameters=(IDEMPOTENCY_KEY, LANGUAGE),
            request={"application/json": OrderJson, "multipart/form-data": OrderForm},
            responses={200: json_success("a dry run", DryRunResponse, headers=WARNING), 202: ACCEPTED},
            errors=(
                *("invalid_request", "invalid_prompt", "invalid_image", "too_many_images", "unsupported_parameter"),
                *("task_expired", "payload_too_large", "idempotency_mismatch", "rate_limited"),
            ),
        ),
        Endpoint(
            method="POST",
            path="/api/task/{id}/retry",
            handler=tasks.retry_task,
            access="caller",
            operation_id="retryTask",
            summary="Retry a failed task as a new one",
            tag="tasks",
            description="Canceled tasks, too. Repeated calls return the same new task until that has ended. 409 for a "
            "task that did not fail, one whose retry did not, and one whose paid image is still being downloaded.",
            parameters=(TASK, LANGUAGE),
            responses={202: ACCEPTED},
            errors=("invalid_request", *GONE, "conflict", "rate_limited"),
        ),
    ]


def task_endpoints(tasks: TaskRoutes) -> list[Endpoint]:
    return [
        Endpoint(
            method="GET",
            path="/api/task/{id}",
            handler=tasks.get_task,
            access="public",
            operation_id="getTask",
            summary="Get a task",
            tag="tasks",
            description="`status` never goes back, with one exception: a paid image that arrives after *failed* makes "
            "the task *completed*.",
            parameters=(TASK, IF_NONE_MATCH, LANGUAGE),
            query=PollQuery,
            responses={200: json_success("the task", TaskResponse, headers=POLL_HEADERS), 304: NOT_MODIFIED},
            errors=("invalid_request", *GONE),
            is_quiet=True,
        ),
        Endpoint(
            method="DELETE",
            path="/api/task/{id}",
            handler=tasks.cancel_task,
            access="caller",
            operation_id="cancelTask",
            summary="Cancel a task",
            tag="tasks",
            parameters=(TASK, LANGUAGE),
            responses={200: json_success("the canceled task", TaskResponse)},
            errors=(*GONE, "conflict"),
        ),
        Endpoint(
            method="GET",
            path="/api/task/{id}/events",
            handler=tasks.stream_task,
            access="public",
            operation_id="streamTask",
            summary="Stream a task",
            tag="tasks",
            description="Server-sent events: the response of a poll at once and at each change, until the end.",
            parameters=(TASK, LAST_EVENT_ID, LANGUAGE),
            responses={
                200: SuccessResponse(text="events", content={"text/event-stream": STREAM_EVENT}),
                204: SuccessResponse(text="the task has ended, and the client has the last event: do not reconnect"),
            },
            errors=GONE,
        ),
        Endpoint(
            method="GET",
            path="/api/tasks",
            handler=tasks.list_tasks,
            access="caller",
            operation_id="listTasks",
            summary="List tasks, newest first",
            tag="tasks",
            parameters=(LANGUAGE,),
            query=TaskListQuery,
            responses={200: json_success("a page", TaskPage)},
            errors=("invalid_request",),
        ),
    ]


def batch_endpoints(batches: BatchRoutes) -> list[Endpoint]:
    return [
        Endpoint(
            method="GET",
            path="/api/batch/{id}",
            handler=batches.get_batch,
            access="public",
            operation_id="getBatch",
            summary="Get all tasks of one request",
            tag="tasks",
            parameters=(BATCH, IF_NONE_MATCH, LANGUAGE),
            query=PollQuery,
            responses={200: json_success("the batch", BatchResponse, headers=POLL_HEADERS), 304: NOT_MODIFIED},
            errors=("invalid_request", *GONE),
            is_quiet=True,
        ),
        Endpoint(
            method="DELETE",
            path="/api/batch/{id}",
            handler=batches.cancel_batch,
            access="caller",
            operation_id="cancelBatch",
            summary="Cancel all tasks of one request",
            tag="tasks",
            parameters=(BATCH, LANGUAGE),
            responses={200: json_success("the batch afterwards", BatchResponse)},
            errors=(*GONE, "conflict"),
        ),
    ]
