"""What every door is for, as a table: without a line here, a route of `broker/app.py` has no API description.

To add one: a line in `DESCRIPTIONS` under "METHOD path"; its documents are in `schemas`. Trusted doors get their 401,
and all of them their 5XX, by themselves.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Literal

from pydantic import BaseModel

from broker.api import schemas
from storage.deliveries import Fate
from storage.tasks import SHOWN
from webhooks.verification import Verification

Schema = type[BaseModel] | Mapping[str, Any]
Tag = Literal["images", "tasks", "models", "providers", "operators"]
"""In the order in which they are shown."""


@dataclass(frozen=True, kw_only=True)
class Parameter:
    """Something beside the body. where: path parameters are always required, the others never."""

    name: str
    where: Literal["path", "query", "header"]
    text: str
    schema: Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class Answer:
    """One good answer. content: by media type; empty: no body. headers: name → (always there, what it says)."""

    text: str
    content: Mapping[str, Schema] = field(default_factory=dict)
    headers: Mapping[str, tuple[bool, str]] = field(default_factory=dict)
    links: Mapping[str, tuple[str, Mapping[str, str]]] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Description:
    """One method of one path. id: what programs call it. refuses: statuses that come in the shape of an error."""

    id: str
    summary: str
    tag: Tag
    text: str = ""
    takes: tuple[Parameter, ...] = ()
    body: Mapping[str, Schema] = field(default_factory=dict)
    answers: Mapping[int, Answer] = field(default_factory=dict)
    refuses: tuple[int, ...] = ()
    trusted: bool = True


def json_answer(text: str, schema: Schema, **more: Any) -> Answer:
    return Answer(text=text, content={"application/json": schema}, **more)


TEXT: Final = {"type": "string"}
NOTHING: Final = {"type": "string", "maxLength": 0}
"""An empty value is one that was not given."""
TASK: Final = Parameter(
    name="id",
    where="path",
    text="the task's id, which is a secret: whoever has it may look",
    schema={"type": "string", "pattern": schemas.TASK_ID},
)
BATCH: Final = Parameter(
    name="id",
    where="path",
    text="the batch's id, which is a secret: whoever has it may look",
    schema={"type": "string", "pattern": schemas.BATCH_ID},
)
HOOK: Final = Parameter(
    name="id", where="path", text="the callback's id", schema={"type": "string", "pattern": schemas.HOOK_ID}
)
DELIVERY: Final = Parameter(
    name="id",
    where="path",
    text="the delivery's id, and its webhook-id",
    schema={"type": "string", "pattern": schemas.DELIVERY_ID},
)
WAIT: Final = Parameter(
    name="wait",
    where="query",
    text="seconds to hold the answer until the end; 30 at most are waited",
    schema={"anyOf": [{"type": "number", "minimum": 0}, NOTHING]},
)
LIMIT: Final = Parameter(
    name="limit",
    where="query",
    text="of a page; 100 at most",
    schema={"anyOf": [{"type": "integer", "minimum": 1, "maximum": 999_999_999}, NOTHING], "default": 20},
)
CURSOR: Final = Parameter(name="cursor", where="query", text="`nextCursor` of the page before", schema=TEXT)
NAMED: Final = {"anyOf": [{"type": "string", "pattern": "^[!-~]{1,100}$"}, NOTHING]}
IMAGE: Final = Parameter(name="name", where="path", text="the image's name", schema=TEXT)
IF_NONE_MATCH: Final = Parameter(
    name="If-None-Match", where="header", text="the ETag you have; then 304 if nothing changed", schema=TEXT
)
KEY: Final = Parameter(
    name="Idempotency-Key",
    where="header",
    text="the same key and the same order: the same answer, and no second order",
    schema={"type": "string", "pattern": "^[!-~]{1,255}$"},
)
LANGUAGE: Final = Parameter(
    name="Accept-Language", where="header", text="zh, en or ru: the language of sentences", schema=TEXT
)
ETAG: Final = {"ETag": (True, "of this very answer")}
LATER: Final = {"Retry-After": (False, "seconds, while the task has not ended")}
WARNING: Final = {"Warning": (False, "a name or a model that its vendor has given an end")}
TAKEN: Final = {
    "Location": (True, "of the first task"),
    "Retry-After": (True, "seconds until a look is worth it"),
    **WARNING,
}
POLLS: Final = {
    "poll": ("getTask", {"id": "$response.body#/taskId"}),
    "cancel": ("cancelTask", {"id": "$response.body#/taskId"}),
}

EVENT: Final = {
    "type": "object",
    "required": ["id", "data"],
    "properties": {
        "id": TEXT,
        "data": {
            "type": "string",
            "contentMediaType": "application/json",
            "contentSchema": {"$ref": "#/components/schemas/TaskAnswer"},
        },
    },
}
BYTES: Final = {"type": "string", "format": "binary"}
PICTURE: Final = {"image/png": BYTES, "image/jpeg": BYTES, "image/webp": BYTES}
PICTURES: Final[Mapping[int, Answer]] = {
    200: Answer(text="the image", content=PICTURE, headers=ETAG),
    206: Answer(text="the part asked for", content=PICTURE, headers=ETAG),
    304: Answer(text="you have it", headers=ETAG),
    307: Answer(text="the store hands it out itself", headers={"Location": (True, "for a few minutes")}),
    416: Answer(text="the image has no such part"),
}
SIZE: Final = Parameter(
    name="size",
    where="query",
    text="a WebP thumbnail with this longest side: the next of 128, 256, 512, 1024",
    schema={"anyOf": [{"type": "integer", "minimum": 1, "maximum": 999_999}, NOTHING]},
)
RANGE: Final = Parameter(name="Range", where="header", text="a part: bytes=0-99", schema=TEXT)

GREETING: Final = json_answer("it is there", schemas.Greeting)
HEARD: Final = {
    200: json_answer("taken, or old news", schemas.Heard),
    202: json_answer("not believed: the provider is asked", schemas.Heard),
}
CALLBACK: Final[Mapping[str, Schema]] = {
    "application/json": {
        "examples": [
            {"task_id": "task_…", "status": "completed", "output": {"image_url": "https://example.com/a.png"}},
            {"code": 200, "data": {"taskId": "…", "state": "success", "resultJson": '{"resultUrls":["https://…"]}'}},
        ]
    }
}
"""Providers write what they like, so nothing is required."""
HEAR_TEXT: Final = (
    "What a callback proves decides what it does: the token of its address is believed, anything else at most makes "
    "the broker ask the provider. Any content type is read as JSON."
)
PROOF: Final = tuple(
    Parameter(name=name, where="query", text="of the address the provider was given", schema=TEXT)
    for name in ("task", "attempt", "token")
)
PROVIDER: Final = Parameter(name="provider", where="path", text="who calls", schema=TEXT)

DESCRIPTIONS: Final[Mapping[str, Description]] = {
    "POST /api/generate/image": Description(
        id="createImage",
        summary="Order images",
        tag="images",
        text="The order is durable before it is answered. Everything that can be refused is refused here, before money "
        "is spent. With `dryRun` nothing is made: the answer is what would be sent, and its price.",
        takes=(KEY, LANGUAGE),
        body={"application/json": schemas.Order, "multipart/form-data": schemas.OrderForm},
        answers={
            200: json_answer("a dry run", schemas.DryRun, headers=WARNING),
            202: json_answer(
                "the order is taken",
                schemas.Created,
                headers=TAKEN,
                links=POLLS,
            ),
        },
        refuses=(400, 410, 413, 422, 429),
    ),
    "GET /api/task/{id}": Description(
        id="getTask",
        summary="How a task is",
        tag="tasks",
        text="`status` never goes back, but for one case: a paid image that comes home after *failed* makes it "
        "*completed*.",
        takes=(
            TASK,
            WAIT,
            IF_NONE_MATCH,
            LANGUAGE,
        ),
        answers={
            200: json_answer("the task", schemas.TaskAnswer, headers={**ETAG, **LATER}),
            304: Answer(text="nothing changed", headers={**ETAG, **LATER}),
        },
        refuses=(400, 404, 410),
        trusted=False,
    ),
    "GET /api/task/{id}/events": Description(
        id="followTask",
        summary="The same as a stream",
        tag="tasks",
        text="Server-sent events: the poll's answer at once and at each change, until the task has ended.",
        takes=(
            TASK,
            Parameter(name="Last-Event-ID", where="header", text="the last event you have", schema=TEXT),
            LANGUAGE,
        ),
        answers={
            200: Answer(text="events", content={"text/event-stream": EVENT}),
            204: Answer(text="the task has ended, and you know: do not come again"),
        },
        refuses=(404, 410),
        trusted=False,
    ),
    "DELETE /api/task/{id}": Description(
        id="cancelTask",
        summary="Cancel a task",
        tag="tasks",
        takes=(TASK, LANGUAGE),
        answers={200: json_answer("canceled", schemas.TaskAnswer)},
        refuses=(404, 409, 410),
    ),
    "POST /api/task/{id}/retry": Description(
        id="retryTask",
        summary="A failed task again, as a new one",
        tag="tasks",
        text="Canceled ones, too. Asked for twice, it is the same new task until that one has ended. 409 for a task "
        "that did not fail, one whose retry did not, and one whose image is paid and still on its way.",
        takes=(TASK, LANGUAGE),
        answers={202: json_answer("the order is taken", schemas.Created, headers=TAKEN, links=POLLS)},
        refuses=(400, 404, 409, 410, 429),
    ),
    "GET /api/batch/{id}": Description(
        id="getBatch",
        summary="How all images of one request are",
        tag="tasks",
        takes=(BATCH, WAIT, IF_NONE_MATCH, LANGUAGE),
        answers={
            200: json_answer("its tasks", schemas.BatchAnswer, headers={**ETAG, **LATER}),
            304: Answer(text="nothing changed", headers={**ETAG, **LATER}),
        },
        refuses=(400, 404, 410),
        trusted=False,
    ),
    "DELETE /api/batch/{id}": Description(
        id="cancelBatch",
        summary="Cancel what can be canceled of one request",
        tag="tasks",
        takes=(BATCH, LANGUAGE),
        answers={200: json_answer("its tasks now", schemas.BatchAnswer)},
        refuses=(404, 409, 410),
    ),
    "GET /api/tasks": Description(
        id="listTasks",
        summary="The newest tasks",
        tag="tasks",
        takes=(
            Parameter(name="status", where="query", text="only these", schema={"enum": [*SHOWN, ""]}),
            LIMIT,
            CURSOR,
            LANGUAGE,
        ),
        answers={200: json_answer("a page", schemas.TaskPage)},
        refuses=(400,),
    ),
    "GET /api/models": Description(
        id="listModels",
        summary="Which models there are, what each takes, and what it costs",
        tag="models",
        answers={200: json_answer("the catalog as it is today", schemas.ModelList)},
    ),
    "GET /api/hooks": Description(
        id="listHooks",
        summary="Callbacks that came, newest first, and how many never came",
        tag="operators",
        takes=(
            Parameter(name="task", where="query", text="only about this task", schema=NAMED),
            Parameter(
                name="verdict",
                where="query",
                text="only with this verdict",
                schema={"enum": [*(verdict.value for verdict in Verification), ""]},
            ),
            Parameter(name="provider", where="query", text="only from this provider", schema=NAMED),
            LIMIT,
            CURSOR,
        ),
        answers={200: json_answer("a page", schemas.HookPage)},
        refuses=(400,),
    ),
    "GET /api/hooks/{id}": Description(
        id="getHook",
        summary="One callback whole",
        tag="operators",
        takes=(HOOK,),
        answers={200: json_answer("what it said, and what it proved", schemas.HookAnswer)},
        refuses=(404,),
    ),
    "POST /api/hooks/{id}/replay": Description(
        id="replayHook",
        summary="Let today's code read a callback again",
        tag="operators",
        text="Its news is taken in as it was then, never believed more. With `dryRun` it is only explained.",
        takes=(
            HOOK,
            Parameter(
                name="dryRun",
                where="query",
                text="change nothing",
                schema={"enum": ["true", "false", "1", "0", ""]},
            ),
        ),
        answers={200: json_answer("what it comes to", schemas.ReplayAnswer)},
        refuses=(400, 404),
    ),
    "GET /api/hooks/{id}/fixture": Description(
        id="exportHook",
        summary="A callback as a test fixture",
        tag="operators",
        takes=(HOOK,),
        answers={200: json_answer("what was said and proved, and what it comes to", schemas.HookFixture)},
        refuses=(404,),
    ),
    "GET /api/deliveries": Description(
        id="listDeliveries",
        summary="Webhooks to callers, newest first",
        tag="operators",
        takes=(
            Parameter(name="task", where="query", text="only of this task", schema=NAMED),
            Parameter(
                name="outcome",
                where="query",
                text="only with this outcome",
                schema={"enum": [*(fate.value for fate in Fate), ""]},
            ),
            LIMIT,
            CURSOR,
        ),
        answers={200: json_answer("a page", schemas.DeliveryPage)},
        refuses=(400,),
    ),
    "GET /api/deliveries/{id}": Description(
        id="getDelivery",
        summary="One of them, with its body and every try",
        tag="operators",
        takes=(DELIVERY,),
        answers={200: json_answer("the delivery", schemas.DeliveryWholeAnswer)},
        refuses=(404,),
    ),
    "POST /api/deliveries/{id}/replay": Description(
        id="replayDelivery",
        summary="Send one again",
        tag="operators",
        text="Under the same webhook-id, from the first rung of the ladder on.",
        takes=(DELIVERY,),
        answers={
            202: json_answer(
                "due now", schemas.DeliveryAnswer, headers={"Location": (True, "where to see what becomes of it")}
            )
        },
        refuses=(404, 409),
    ),
    "GET /api/webhook/nano-banana": Description(
        id="greetKie",
        summary="Is the address right?",
        tag="providers",
        answers={200: GREETING},
        trusted=False,
    ),
    "POST /api/webhook/nano-banana": Description(
        id="hearKie",
        summary="A callback of kie.ai",
        tag="providers",
        text=HEAR_TEXT,
        takes=PROOF,
        body=CALLBACK,
        answers=HEARD,
        refuses=(400, 401, 404, 413),
        trusted=False,
    ),
    "GET /api/webhook/{provider}": Description(
        id="greetProvider",
        summary="Is the address right?",
        tag="providers",
        takes=(PROVIDER,),
        answers={200: GREETING},
        trusted=False,
    ),
    "POST /api/webhook/{provider}": Description(
        id="hearProvider",
        summary="A callback of a provider",
        tag="providers",
        text=HEAR_TEXT,
        takes=(PROVIDER, *PROOF),
        body=CALLBACK,
        answers=HEARD,
        refuses=(400, 401, 404, 413),
        trusted=False,
    ),
    "GET /uploads/images/{name}": Description(
        id="getImage",
        summary="An image that was made",
        tag="images",
        takes=(IMAGE, SIZE, IF_NONE_MATCH, RANGE),
        answers=PICTURES,
        refuses=(400, 404),
        trusted=False,
    ),
    "GET /uploads/images/{name}.json": Description(
        id="aboutImage",
        summary="What is known of an image that was made",
        tag="images",
        takes=(IMAGE,),
        answers={200: json_answer("prompt, model, provider and the rest", schemas.SidecarAnswer)},
        refuses=(404,),
    ),
    "GET /uploads/references/{name}.json": Description(
        id="aboutReference",
        summary="What is known of an image that was given",
        tag="images",
        takes=(IMAGE,),
        answers={200: json_answer("the tasks it was given for", schemas.SidecarAnswer)},
        refuses=(404,),
    ),
    "GET /uploads/references/{name}": Description(
        id="getReference",
        summary="An image that was given",
        tag="images",
        takes=(IMAGE, SIZE, IF_NONE_MATCH, RANGE),
        answers=PICTURES,
        refuses=(400, 404),
        trusted=False,
    ),
    "GET /health": Description(
        id="health",
        summary="The process answers",
        tag="operators",
        answers={200: json_answer("it does", schemas.Health)},
        trusted=False,
    ),
    "GET /ready": Description(
        id="ready",
        summary="An order would be kept and worked on",
        tag="operators",
        answers={
            200: json_answer("it would", schemas.Ready),
            503: json_answer("which part is to blame", schemas.Unready, headers={"Retry-After": (True, "seconds")}),
        },
    ),
    "GET /metrics": Description(
        id="metrics",
        summary="Numbers for Prometheus",
        tag="operators",
        answers={200: Answer(text="its text format", content={"text/plain": TEXT})},
    ),
    "GET /openapi.json": Description(
        id="openapi",
        summary="This description",
        tag="operators",
        takes=(IF_NONE_MATCH,),
        answers={
            200: json_answer("OpenAPI 3.1", {"type": "object"}, headers=ETAG),
            304: Answer(text="nothing changed", headers=ETAG),
        },
    ),
    "GET /docs": Description(
        id="docs",
        summary="This description, to look at and to try",
        tag="operators",
        answers={200: Answer(text="a page", content={"text/html": TEXT})},
    ),
    "GET /docs/{file}": Description(
        id="docsFile",
        summary="What the page is made of",
        tag="operators",
        takes=(Parameter(name="file", where="path", text="its name", schema=TEXT), IF_NONE_MATCH),
        answers={
            200: Answer(text="script or style", content={"text/javascript": TEXT, "text/css": TEXT}, headers=ETAG),
            304: Answer(text="nothing changed", headers=ETAG),
        },
        refuses=(404,),
    ),
}
