"""Request and response models of orders, tasks and batches in the native dialect.

Requests are parsed by these models and responses are built as them; the OpenAPI document reads the same classes.
"""

from __future__ import annotations

import re
from typing import Annotated, Any, Final, Literal, Self

from pydantic import Field

from broker.api.admin.visibility import OwnerName, ShownTaskId
from broker.api.http.pagination import PageQuery, PageResponse, cursor_text
from broker.api.http.query import EMPTY, FLAG_TEXT, NAME_TEXT, ParsedText, QueryModel, one_of_text
from broker.orders import Qualifier
from broker.presenter import TASK_ID, CostData, ModeName, Moment, ResponseModel, TaskData, TaskId, TaskStatus
from storage import ids
from storage.states import STATUS_FILTERS

BATCH_ID: Final = f"^{ids.BATCH_ID.pattern}$"
BatchId = Annotated[str, Field(pattern=BATCH_ID, examples=[f"batch_{'0' * ids.NUMBER_DIGITS}"])]


# -- queries

MAX_WAIT_SECONDS: Final = 30.0


def _parse_wait(text: str) -> float:
    if not re.fullmatch(r"[0-9]{1,20}(\.[0-9]{1,20})?", text):
        raise ValueError(f"must be a number of seconds up to {MAX_WAIT_SECONDS:.0f}")
    return min(float(text), MAX_WAIT_SECONDS)


_WAIT_TEXT: Final = ParsedText(_parse_wait, {"anyOf": [{"type": "number", "minimum": 0}, EMPTY]})


class PollQuery(QueryModel):
    wait: Annotated[float, _WAIT_TEXT, Field(description="seconds to hold the response until the end; at most 30")] = (
        0.0
    )


class DeletionQuery(QueryModel):
    cancel_only: Annotated[bool, FLAG_TEXT, Field(description="cancel, but delete nothing")] = False
    delete_only: Annotated[bool, FLAG_TEXT, Field(description="delete, but cancel nothing")] = False


MAX_SEARCH_CHARS: Final = 200
MAX_SEARCH_WORDS: Final = 10


def _parse_search(text: str) -> tuple[str, ...]:
    words = text.split()
    if len(text) > MAX_SEARCH_CHARS or len(words) > MAX_SEARCH_WORDS:
        raise ValueError(f"must be at most {MAX_SEARCH_WORDS} words, of {MAX_SEARCH_CHARS} characters together")
    return tuple(words)


_SEARCH_TEXT: Final = ParsedText(_parse_search, {"type": "string", "maxLength": MAX_SEARCH_CHARS})


class TaskListQuery(PageQuery):
    status: Annotated[str | None, one_of_text(STATUS_FILTERS), Field(description="only these")] = None
    q: Annotated[
        tuple[str, ...], _SEARCH_TEXT, Field(description="words that occur in the prompt, in upper or lower case")
    ] = ()
    model: Annotated[str | None, NAME_TEXT, Field(description="only of this model, by its name or an alias")] = None
    cursor: Annotated[tuple[float, str] | None, cursor_text("task")] = None


# -- responses


DEADLINE: Final = Field(description="time that the provider may take, where that is longer than usual")


class CostEstimate(ResponseModel):
    """Quote of the order by the catalog; null where a price is unknown."""

    price: Annotated[float | None, Field(description="of one image at the preferred provider, in its unit")]
    count: int
    total: float | None
    unit: str | None
    usd: Annotated[float | None, Field(description="the total in USD")]
    qualifier: Annotated[
        Qualifier, Field(description="exact: a fixed price, and nothing else can be charged by the price table")
    ]
    upper_bound_usd: Annotated[
        float | None,
        Field(description="the most that the order can cost at any of its candidates; null if one charges by use"),
    ]
    deadline_seconds: Annotated[float | None, DEADLINE]


class OrderAccepted(ResponseModel):
    success: Literal[True]
    task_id: TaskId
    status: Literal["processing"]
    message: str
    poll_url: Annotated[str, Field(pattern=f"^/api/task/{TASK_ID[1:]}")]
    task_ids: Annotated[list[TaskId], Field(min_length=1)]
    batch_id: BatchId
    batch_url: Annotated[str, Field(pattern=f"^/api/batch/{BATCH_ID[1:]}")]
    ignored: Annotated[list[str], Field(description="fields that were not used")]
    warnings: Annotated[list[str], Field(description="the same as in the header Warning")]
    estimate: CostEstimate


class RouteData(ResponseModel):
    provider: str
    own_key: Annotated[bool, Field(description="with your own key there")]
    candidate: bool
    reason: Annotated[str | None, Field(description="why it is none, or is only tried after the others")]


class ProviderPreview(CostEstimate):
    method: Literal["POST"]
    url: str
    json_: Annotated[dict[str, Any], Field(alias="json", description="the exact body for the provider")]
    ignored: list[str]
    warnings: list[str]
    routes: Annotated[list[RouteData], Field(description="every provider in use, the candidates first")]


class DryRunResponse(ResponseModel):
    success: Literal[True]
    dry_run: Literal[True]
    data: ProviderPreview


class WithheldTaskData(ResponseModel):
    """A task of another account, as an admin sees it in a list."""

    id: ShownTaskId
    withheld: Annotated[Literal[True], Field(description="its content is for its owner alone")]
    owner: OwnerName
    status: TaskStatus
    model: str
    mode: ModeName
    resolution: str | None
    error: Annotated[str | None, Field(description="the broker's own sentence, without the provider's words")]
    error_code: str | None
    billed: Annotated[str | None, Field(description="if the failed attempt costs: yes, no or unknown")]
    provider: str
    attempts: int
    cost: CostData | None
    created_at: Moment
    updated_at: Moment
    expires_at: Moment | None

    @classmethod
    def from_task(cls, task: TaskData, shown_id: str, owner: str | None) -> Self:
        detail = task.error_detail
        return cls.from_object(
            task,
            id=shown_id,
            withheld=True,
            owner=owner,
            error_code=detail.code if detail else None,
            billed=detail.billed if detail else None,
        )


TaskPage = PageResponse[TaskData | WithheldTaskData]


class StatusCounts(ResponseModel):
    pending: int
    processing: int
    completed: int
    failed: int
    canceled: int


class BatchData(ResponseModel):
    id: BatchId
    status: Annotated[TaskStatus, Field(description="completed: all have ended, at least one with an image")]
    counts: StatusCounts
    tasks: list[TaskData]
