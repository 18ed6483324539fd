"""The documents that go over our doors, as schemas: what is promised, to be read by people and held against answers.

Nothing is produced or read through them, the doors do that faster; `tests/broker/test_openapi.py` holds real answers
against them, and those to thousands of odd requests. Ours are closed: a key that is not here is a mistake.
"""

from __future__ import annotations

from typing import Annotated, Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Field
from pydantic.alias_generators import to_camel
from pydantic.config import JsonDict
from pydantic.json_schema import SkipJsonSchema

from broker.api.fields import MOST_STEPS, SAFE_INTEGER
from broker.catalog import Status
from broker.errors import STATUS_OF, TASK_CODES
from broker.orders import Mode, OutputFormat
from storage.deliveries import Fate as _Fate
from webhooks.verification import Verification as _Verdict

TASK_ID: Final = "^task_[0-9a-f]{32}$"
BATCH_ID: Final = "^batch_[0-9a-f]{32}$"
DELIVERY_ID: Final = "^evt_[0-9a-f]{32}$"
HOOK_ID: Final = "^hook_[0-9a-f]{24}$"
IMAGE_NAME: Final = r"(generated|reference)_[0-9a-f]{32}\.(png|jpg|webp)"

Absent = SkipJsonSchema[None]
"""A key that may be missing, but is never null."""
TaskId = Annotated[str, Field(pattern=TASK_ID, examples=[f"task_{'0' * 32}"])]
BatchId = Annotated[str, Field(pattern=BATCH_ID, examples=[f"batch_{'0' * 32}"])]
HookId = Annotated[str, Field(pattern=HOOK_ID, examples=[f"hook_{'0' * 24}"])]
Moment = Annotated[str, Field(json_schema_extra={"format": "date-time"}, examples=["2026-11-20T12:00:00.000Z"])]
Day = Annotated[str, Field(json_schema_extra={"format": "date"}, examples=["2026-10-02"])]
ImagePath = Annotated[str, Field(pattern=f"^/uploads/images/{IMAGE_NAME}$")]
Code = Annotated[str, Field(json_schema_extra={"enum": sorted({*STATUS_OF, *TASK_CODES})})]
TaskCode = Annotated[str, Field(json_schema_extra={"enum": sorted(TASK_CODES)})]
File = Annotated[str, Field(json_schema_extra={"format": "binary"})]
DeliveryId = Annotated[str, Field(pattern=DELIVERY_ID, examples=[f"evt_{'0' * 32}"])]
Fate = Annotated[str, Field(json_schema_extra={"enum": [fate.value for fate in _Fate]})]
Verification = Annotated[str, Field(json_schema_extra={"enum": [verdict.value for verdict in _Verdict]})]
TaskStatus = Literal["pending", "processing", "completed", "failed", "canceled"]
Yes = Literal[True]
No = Literal[False]


class Ours(BaseModel):
    """What we say: exactly these keys."""

    model_config = ConfigDict(extra="forbid", alias_generator=to_camel)


OPEN: Final = ConfigDict(extra="allow", alias_generator=to_camel)
"""What others say: unknown keys are taken."""
TO_TRY: Final[JsonDict] = {"prompt": "a red fox", "model": "nano-banana", "aspectRatio": "16:9", "dryRun": True}
"""What the page offers to send: it costs nothing."""


# -- what goes wrong


class Complaint(Ours):
    field: str
    message: str


class Refused(Ours):
    """The one shape of every error. `error` is a sentence in the language of Accept-Language."""

    success: No
    error: Annotated[str, Field(min_length=1)]
    code: Code
    retryable: bool
    field: str | Absent = None
    details: list[Complaint] | Absent = None


# -- orders


class Order(BaseModel):
    """An order in JSON. An empty or null value counts as absent; snake_case names are understood, too."""

    model_config = OPEN | ConfigDict(json_schema_extra={"examples": [TO_TRY]})

    prompt: Annotated[str, Field(min_length=1, description="up to the model's limit", examples=["a red fox"])]
    model: Annotated[str | None, Field(description="a name or alias of /api/models", examples=["nano-banana"])] = None
    mode: Annotated[Mode | Literal[""] | None, Field(description="by default: whether there are images")] = None
    aspect_ratio: Annotated[str | None, Field(description="one of the model's", examples=["16:9"])] = None
    resolution: Annotated[str | None, Field(description="one of the model's", examples=["1K"])] = None
    output_format: Annotated[str | None, Field(description="one of the model's", examples=["png"])] = None
    number_of_images: Annotated[int | Literal[""] | None, Field(ge=1, le=6, description="that many tasks")] = None
    images: Annotated[list[str] | None, Field(description="data URIs: jpeg, png or webp")] = None
    image_urls: Annotated[list[str] | None, Field(description="web addresses, fetched at once")] = None
    callback_url: Annotated[str | None, Field(description="told when the task has ended, by a signed webhook")] = None
    steps: Annotated[int | Literal[""] | None, Field(ge=1, le=MOST_STEPS)] = None
    seed: Annotated[int | Literal[""] | None, Field(ge=-SAFE_INTEGER, le=SAFE_INTEGER)] = None
    dry_run: Annotated[bool | Literal[""] | None, Field(description="only show what would be sent")] = None


class OrderForm(BaseModel):
    """The same as a form, with the images as files."""

    model_config = OPEN

    prompt: Annotated[str, Field(min_length=1, examples=["a red fox"])]
    model: Annotated[str, Field(examples=["nano-banana"])] = ""
    mode: Mode | Literal[""] = ""
    aspect_ratio: Annotated[str, Field(examples=["16:9"])] = ""
    resolution: Annotated[str, Field(examples=["1K"])] = ""
    output_format: Annotated[str, Field(examples=["png"])] = ""
    number_of_images: Annotated[int, Field(ge=1, le=6)] = 1
    image: list[File] = []
    image_urls: list[str] = []
    callback_url: str = ""
    steps: Annotated[int | Absent, Field(ge=1, le=MOST_STEPS)] = None
    seed: Annotated[int | Absent, Field(ge=-SAFE_INTEGER, le=SAFE_INTEGER)] = None
    dry_run: bool = False


class Estimate(Ours):
    """What the order costs by the catalog; null where no price is known."""

    price: float | None
    count: int
    total: float | None
    unit: str | None


class Created(Ours):
    success: Yes
    task_id: TaskId
    status: Literal["processing"]
    message: str
    poll_url: Annotated[str, Field(pattern=f"^/api/task/{TASK_ID[1:]}")]
    task_ids: Annotated[list[TaskId], Field(min_length=1)]
    batch_id: BatchId
    batch_url: Annotated[str, Field(pattern=f"^/api/batch/{BATCH_ID[1:]}")]
    ignored: Annotated[list[str], Field(description="fields that nobody used")]
    warnings: Annotated[list[str], Field(description="the same as in the header Warning")]
    estimate: Estimate


class Preview(Ours):
    method: Literal["POST"]
    url: str
    json_: Annotated[dict[str, Any], Field(alias="json", description="the exact body for the provider")]
    price: float | None
    unit: str | None
    count: int
    total: float | None
    ignored: list[str]
    warnings: list[str]


class DryRun(Ours):
    success: Yes
    dry_run: Yes
    data: Preview


# -- tasks


class Result(Ours):
    url: ImagePath
    width: int
    height: int
    bytes: int
    media_type: Literal["image/png", "image/jpeg", "image/webp"]
    sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
    thumbnail: str | None


class Sidecar(Ours):
    """What is known of an image beside its bytes. tasks: all of the request that it belongs to, for a reference."""

    name: str
    url: str
    width: int
    height: int
    bytes: int
    media_type: Literal["image/png", "image/jpeg", "image/webp"]
    sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
    thumbnail: str | None
    kind: Literal["result", "reference"]
    task: TaskId
    tasks: list[TaskId]
    prompt: str
    model: str
    mode: Mode
    aspect_ratio: str | None
    resolution: str | None
    steps: int | None
    seed: int | None
    provider: str
    created_at: Moment
    expires_at: Moment | None


class SidecarAnswer(Ours):
    success: Yes
    data: Sidecar


class Progress(Ours):
    """null is what nobody knows."""

    stage: Literal["queued", "submitting", "waiting", "downloading", "done"]
    position: Annotated[int | None, Field(ge=1, description="place in the queue of its provider")]
    provider_state: Annotated[str | None, Field(description="the provider's own word")]
    percent: Annotated[int | None, Field(ge=0, le=100, description="only where the provider says one")]
    eta_seconds: Annotated[int | None, Field(ge=0, description="from the history of this broker")]


class Cost(Ours):
    amount: float
    unit: str


class ErrorDetail(Ours):
    """billed: whether this try costs. message: the provider's own words."""

    code: TaskCode
    retryable: bool
    billed: Literal["yes", "no", "unknown"]
    provider: str
    provider_code: str | None
    message: str | None


class Generation(Ours):
    """The record that older front ends put into their list."""

    id: TaskId
    type: Literal["image"]
    mode: Mode
    model: str
    prompt: str
    url: ImagePath
    timestamp: Moment
    aspect_ratio: str | None
    steps: int | None


class Task(Ours):
    id: TaskId
    status: TaskStatus
    prompt: str
    model: str
    mode: Mode
    aspect_ratio: str | None
    resolution: str | None
    result: Annotated[ImagePath | None, Field(description="the first image")]
    results: list[Result]
    error: str | None
    error_detail: ErrorDetail | None
    progress: Progress
    provider: str
    attempts: int
    cost: Cost | None
    created_at: Moment
    updated_at: Moment
    expires_at: Annotated[Moment | None, Field(description="when it is deleted")]
    generation: Generation | None


class TaskAnswer(Ours):
    success: Yes
    data: Task


class TaskPage(Ours):
    success: Yes
    data: list[Task]
    next_cursor: Annotated[str | None, Field(description="the cursor of the next page; null on the last")]


class Counts(Ours):
    pending: int
    processing: int
    completed: int
    failed: int
    canceled: int


class Batch(Ours):
    id: BatchId
    status: Annotated[TaskStatus, Field(description="completed: all have ended, and at least one image is there")]
    counts: Counts
    tasks: list[Task]


class BatchAnswer(Ours):
    success: Yes
    data: Batch


# -- models


class ModelAlias(Ours):
    name: str
    until: Annotated[Day | None, Field(description="its vendor took it back on that day")]


class ModelOffer(Ours):
    name: Annotated[str, Field(description="the provider")]
    modes: list[Mode]
    prices: Annotated[dict[str, float], Field(description="of one image, by resolution; empty: not known")]
    unit: str | None


class Model(Ours):
    name: str
    title: str
    default: bool
    available: Annotated[bool, Field(description="the provider in use sells it")]
    status: Status
    deprecated_on: Day | None
    shutdown_on: Day | None
    instead: Annotated[str | None, Field(description="the model to move to")]
    aliases: list[ModelAlias]
    modes: list[Mode]
    aspect_ratios: list[str]
    resolutions: list[str]
    output_formats: list[OutputFormat]
    max_references: int
    max_reference_bytes: int
    prompt_limit: Annotated[int, Field(description="characters")]
    providers: list[ModelOffer]


class ModelList(Ours):
    success: Yes
    data: list[Model]
    default: str
    provider: Annotated[str, Field(description="the one in use")]


# -- providers and operators


class Greeting(Ours):
    status: Literal["ok"]
    message: str
    timestamp: Moment


class Heard(Ours):
    success: Yes
    message: str


class HookEntry(Ours):
    """One callback that came. lagSeconds: how long it was on its way, where its body says when the job ended."""

    id: HookId
    provider: str
    task_id: TaskId | None
    attempt: int | None
    verdict: Verification
    status: int
    reason: str
    received_at: Moment
    lag_seconds: float | None
    digested_at: Moment | None
    replay_of: HookId | Absent = None


class Hook(HookEntry):
    headers: dict[str, str]
    query: dict[str, str]
    proofs: dict[str, Any]
    body: str


class MissingHooks(Ours):
    """Callbacks that were expected, and never came."""

    count: int
    hours: float
    providers: dict[str, int]


class HookPage(Ours):
    success: Yes
    data: list[HookEntry]
    next_cursor: str | None
    missing: Annotated[MissingHooks | Absent, Field(description="with the first page")] = None


class HookAnswer(Ours):
    success: Yes
    data: Hook


class HookWas(Ours):
    verdict: Verification
    status: int
    reason: str


class Replay(Ours):
    """What today's code says of a callback. effect: what its news does to the task now."""

    id: HookId
    was: HookWas
    names: list[str]
    task_id: TaskId | None
    attempt: int | None
    verdict: Verification
    status: int
    reason: str
    taken_as: Verification | None
    report: dict[str, Any] | None
    says: str
    effect: str
    dry_run: bool
    replayed: bool
    replay_id: HookId | None


class ReplayAnswer(Ours):
    success: Yes
    data: Replay


class HookExpected(Ours):
    names: list[str]
    report: dict[str, Any] | None
    verdict: Verification
    status: int


class HookFixture(Ours):
    provider: str
    received_at: Moment
    headers: dict[str, str]
    query: dict[str, str]
    body: str
    proofs: dict[str, Any]
    was: HookWas
    expected: HookExpected


class Delivery(Ours):
    """A webhook to a caller. url: without its query, which may be a secret."""

    id: DeliveryId
    task_id: TaskId
    type: Literal["task.completed", "task.failed", "task.canceled"]
    url: str
    outcome: Fate
    attempts: int
    last_status: int | None
    reason: str | None
    created_at: Moment
    next_at: Moment | None
    delivered_at: Moment | None


class DeliveryTry(Ours):
    number: int
    at: Moment
    status: int | None
    error: str | None
    milliseconds: int


class Event(Ours):
    type: Literal["task.completed", "task.failed", "task.canceled"]
    timestamp: Moment
    data: Task


class DeliveryWhole(Delivery):
    tries: list[DeliveryTry]
    body: Event


class DeliveryPage(Ours):
    success: Yes
    data: list[Delivery]
    next_cursor: str | None


class DeliveryAnswer(Ours):
    success: Yes
    data: Delivery


class DeliveryWholeAnswer(Ours):
    success: Yes
    data: DeliveryWhole


class Health(Ours):
    status: Literal["healthy"]
    version: str


class Checks(Ours):
    database: str
    blobs: str
    worker: str
    server: str


class Ready(Ours):
    status: Literal["ready"]
    checks: Checks


class Unready(Refused):
    status: Literal["unready"]
    checks: Checks
