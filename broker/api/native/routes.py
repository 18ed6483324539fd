"""Endpoints of the native dialect's orders, tasks and batches."""

from __future__ import annotations

from functools import partial
from typing import Any, Final

from broker.api.http.endpoint import ETAG, IF_NONE_MATCH, TEXT, Endpoint, Parameter, SuccessResponse, json_success
from broker.api.http.responses import DataResponse
from broker.api.native.params import OrderForm, OrderJson
from broker.api.native.schemas import (
    BATCH_ID,
    BatchData,
    DeletionQuery,
    DryRunResponse,
    OrderAccepted,
    PollQuery,
    TaskListQuery,
    TaskPage,
)
from broker.api.native.tasks import TaskRoutes
from broker.presenter import TASK_ID, TaskData

_TASK: Final = Parameter(
    "id", "path", "the task's id; a secret that gives access to the task", {"type": "string", "pattern": TASK_ID}
)
_BATCH: Final = Parameter(
    "id", "path", "the batch's id; a secret that gives access to its tasks", {"type": "string", "pattern": BATCH_ID}
)
_LANGUAGE: Final = Parameter("Accept-Language", "header", "zh, en or ru: the language of sentences")
_IDEMPOTENCY_KEY: Final = Parameter(
    "Idempotency-Key",
    "header",
    "the same key and the same order: the same response, and no second order",
    {"type": "string", "pattern": "^[!-~]{1,255}$"},
)
_LAST_EVENT_ID: Final = Parameter("Last-Event-ID", "header", "the last event received")

_POLL_HEADERS: Final = {**ETAG, "Retry-After": (False, "seconds, while the task has not ended")}
_WARNING: Final = {"Warning": (False, "the end of a name or a model, as its vendor has announced it")}
_NOT_MODIFIED: Final = SuccessResponse(text="nothing changed", headers=_POLL_HEADERS)
_ACCEPTED: Final = json_success(
    "the order is durable",
    OrderAccepted,
    headers={
        "Location": (True, "of the first task"),
        "Retry-After": (True, "seconds until the first poll"),
        **_WARNING,
    },
    links={
        "poll": ("getTask", {"id": "$response.body#/taskId"}),
        "cancel": ("cancelTask", {"id": "$response.body#/taskId"}),
    },
)
_EVENT: Final = {
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
_EVENTS: Final = SuccessResponse(text="events", content={"text/event-stream": _EVENT})
_NO_EVENTS: Final = SuccessResponse(text="the task has ended, and the client has the last event: do not reconnect")
_GONE: Final = ("task_not_found", "task_expired")
_TaskResponse = DataResponse[TaskData]
_BatchResponse = DataResponse[BatchData]

_caller_endpoint = partial(Endpoint, access="caller", tag="tasks")
_poll_endpoint = partial(Endpoint, "GET", access="public", tag="tasks", query=PollQuery, errors=_GONE, is_quiet=True)
_cancel_endpoint = partial(_caller_endpoint, "DELETE", errors=(*_GONE, "conflict"))


def _poll_responses(text: str, model: Any) -> dict[int, SuccessResponse]:
    return {200: json_success(text, model, headers=_POLL_HEADERS), 304: _NOT_MODIFIED}


def task_endpoints(tasks: TaskRoutes) -> list[Endpoint]:
    return [
        Endpoint(
            "POST",
            "/api/generate/image",
            tasks.create_image,
            access="caller",
            tag="images",
            parameters=(_IDEMPOTENCY_KEY, _LANGUAGE),
            request={"application/json": OrderJson, "multipart/form-data": OrderForm},
            responses={200: json_success("a dry run", DryRunResponse, headers=_WARNING), 202: _ACCEPTED},
            errors=(
                *("invalid_request", "invalid_prompt", "invalid_image", "too_many_images", "unsupported_parameter"),
                *("task_expired", "payload_too_large", "idempotency_mismatch", "rate_limited", "quota_exceeded"),
            ),
        ),
        _caller_endpoint(
            "POST",
            "/api/task/{id}/retry",
            tasks.retry_task,
            parameters=(_TASK, _LANGUAGE),
            responses={202: _ACCEPTED},
            errors=("invalid_request", *_GONE, "conflict", "rate_limited", "quota_exceeded"),
        ),
        *_pin_endpoints(tasks),
        _poll_endpoint(
            "/api/task/{id}",
            tasks.get_task,
            parameters=(_TASK, IF_NONE_MATCH, _LANGUAGE),
            responses=_poll_responses("the task", _TaskResponse),
        ),
        _cancel_endpoint(
            "/api/task/{id}",
            tasks.cancel_or_delete_task,
            operation_id="cancelTask",
            query=DeletionQuery,
            parameters=(_TASK, _LANGUAGE),
            responses={
                200: json_success("the canceled task", _TaskResponse),
                204: SuccessResponse(text="the task had ended, and is deleted with its images"),
            },
        ),
        _event_endpoint(tasks),
        _caller_endpoint(
            "GET",
            "/api/tasks",
            tasks.list_tasks,
            parameters=(_LANGUAGE,),
            query=TaskListQuery,
            responses={200: json_success("a page", TaskPage)},
            errors=("unsupported_parameter",),
        ),
    ]


def _event_endpoint(tasks: TaskRoutes) -> Endpoint:
    return Endpoint(
        "GET",
        "/api/task/{id}/events",
        tasks.stream_task,
        access="public",
        tag="tasks",
        parameters=(_TASK, _LAST_EVENT_ID, _LANGUAGE),
        responses={200: _EVENTS, 204: _NO_EVENTS},
        errors=_GONE,
    )


def _pin_endpoints(tasks: TaskRoutes) -> list[Endpoint]:
    return [
        _caller_endpoint(
            "POST",
            f"/api/task/{{id}}/{change}",
            handler,
            parameters=(_TASK, _LANGUAGE),
            responses={200: json_success("the task afterwards", _TaskResponse)},
            errors=errors,
        )
        for change, handler, errors in (
            ("pin", tasks.pin_task, (*_GONE, "quota_exceeded")),
            ("unpin", tasks.unpin_task, _GONE),
        )
    ]


def batch_endpoints(tasks: TaskRoutes) -> list[Endpoint]:
    return [
        _poll_endpoint(
            "/api/batch/{id}",
            tasks.get_batch,
            parameters=(_BATCH, IF_NONE_MATCH, _LANGUAGE),
            responses=_poll_responses("the batch", _BatchResponse),
        ),
        _cancel_endpoint(
            "/api/batch/{id}",
            tasks.cancel_batch,
            parameters=(_BATCH, _LANGUAGE),
            responses={200: json_success("the batch afterwards", _BatchResponse)},
        ),
    ]
