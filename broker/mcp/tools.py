"""The tools: order, wait for a while, and say how to go on. The order itself goes on in the broker in any case."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import aclosing, asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from typing import Annotated, Any, Final, Literal

import anyio
from mcp.server.mcpserver import Context
from mcp.server.mcpserver.exceptions import ToolError
from mcp_types import CallToolResult, ImageContent
from pydantic import Field

from broker.client import AsyncClient, BrokerApiError, BrokerError, Task
from broker.client.errors import describe_failure
from broker.mcp.calls import OpenCalls, fingerprint_of
from broker.mcp.images import ImageFiles
from broker.mcp.outcomes import (
    ModelSummaries,
    OrderOutcome,
    TaskOutcome,
    describe_task,
    model_summary,
    order_result,
    task_outcome,
)

MAX_CALL_SECONDS: Final = 24.0
"""Clients give a tool 30 or 60 seconds."""
ORDER_SECONDS: Final = 20.0
"""Longest time until the broker has answered, also if `call_seconds` is less."""
PREVIEW_SECONDS: Final = 1.0
"""Longest time for the previews, after everything else."""
HEARTBEAT_SECONDS: Final = 5.0
"""Between two progress notifications, after which many clients begin their time-out again."""

Prompt = Annotated[str, Field(description="The image to make, or the change to the reference images.")]
References = Annotated[
    list[str],
    Field(
        min_length=1,
        description="Images to change or combine: paths on this machine, URLs, or uris of earlier results.",
    ),
]
ModelName = Annotated[str | None, Field(description="A name of list_models. Default: the broker's default model.")]
AspectRatio = Annotated[str | None, Field(description="Like 1:1 or 16:9.")]
Resolution = Annotated[str | None, Field(description="1K, 2K or 4K, if the model has it.")]
Format = Annotated[Literal["png", "jpg"] | None, Field(description="File type of the result.")]
Count = Annotated[int, Field(ge=1, le=6, description="Number of images; each is billed.")]
Provider = Annotated[str | None, Field(description="The only provider that may get the order.")]
Key = Annotated[
    str | None,
    Field(
        pattern="^[!-~]{1,255}$",
        description="Calls with the same key are one order. Needed only to order equal images at the same time, or to "
        "repeat a call after a restart of this server.",
    ),
]
TaskId = Annotated[str, Field(description="Begins with task_.")]
OrderAnswer = Annotated[CallToolResult, OrderOutcome]


@dataclass(frozen=True, kw_only=True)
class BrokerTools:
    """The tools of one server."""

    client: AsyncClient
    files: ImageFiles
    call_seconds: float = MAX_CALL_SECONDS
    """Longest wait of one call."""
    calls: OpenCalls = field(default_factory=OpenCalls)

    async def generate(
        self,
        context: Context[Any, Any],
        prompt: Prompt,
        *,
        model: ModelName = None,
        aspect_ratio: AspectRatio = None,
        resolution: Resolution = None,
        output_format: Format = None,
        count: Count = 1,
        provider: Provider = None,
        idempotency_key: Key = None,
    ) -> OrderAnswer:
        """Make images from a prompt. If they take longer than a call may, the answer has task ids for get_task."""
        options = {"model": model, "aspect_ratio": aspect_ratio, "resolution": resolution, "n": count}
        options |= {"output_format": output_format, "provider": provider}
        return await self._order(context, prompt, (), options, idempotency_key)

    async def edit(
        self,
        context: Context[Any, Any],
        prompt: Prompt,
        images: References,
        *,
        model: ModelName = None,
        aspect_ratio: AspectRatio = None,
        resolution: Resolution = None,
        output_format: Format = None,
        count: Count = 1,
        provider: Provider = None,
        idempotency_key: Key = None,
    ) -> OrderAnswer:
        """Change or combine images. If that takes longer than a call may, the answer has task ids for get_task."""
        options = {"model": model, "aspect_ratio": aspect_ratio, "resolution": resolution, "n": count}
        options |= {"output_format": output_format, "provider": provider}
        return await self._order(context, prompt, images, options, idempotency_key)

    async def get_task(self, context: Context[Any, Any], task_id: TaskId) -> OrderAnswer:
        """Get a task, and wait for its image for a while. Call it again while the task is not finished."""
        with _explained():
            return await self._finish(context, [task_id.strip()], self.call_seconds)

    async def list_models(self) -> ModelSummaries:
        """List the models that can be used now, with the values that they accept and their prices."""
        with _explained(), anyio.fail_after(ORDER_SECONDS):
            document = await self.client.ask("GET", "/api/models")
        return ModelSummaries(models=[model_summary(model) for model in document["data"] if model["available"]])

    # -- steps

    async def _order(
        self,
        context: Context[Any, Any],
        prompt: str,
        images: Sequence[str],
        options: Mapping[str, Any],
        idempotency_key: str | None,
    ) -> CallToolResult:
        """1. Order, with the key of an equal call that has no result yet 2. wait 3. save."""
        began = anyio.current_time()
        with _explained():
            with anyio.fail_after(max(self.call_seconds, ORDER_SECONDS)):
                references = await self.files.read_all(images)
                fingerprint = fingerprint_of({"prompt": prompt, "key": idempotency_key, **options}, references)
                key = idempotency_key or self.calls.open(fingerprint)
                try:
                    order = await self.client.create(prompt, images=references, idempotency_key=key, **options)
                except BrokerApiError as error:
                    if error.status < 500:  # nothing was ordered
                        self.calls.close(fingerprint)
                    raise
            self.calls.add_tasks(fingerprint, order.ids)
            left = self.call_seconds - (anyio.current_time() - began)
            return await self._finish(context, order.ids, left)

    async def _finish(self, context: Context[Any, Any], ids: Sequence[str], seconds: float) -> CallToolResult:
        """Wait for tasks and save their images, for `seconds` at most; then say how to go on."""
        latest: dict[str, Task] = {}
        outcomes: dict[str, TaskOutcome] = {}
        async with _open_progress(context, ids) as progress:
            with anyio.move_on_after(max(seconds, 0)):
                for task_id in ids:
                    async with aclosing(self.client.events(task_id)) as changes:
                        async for task in changes:
                            latest[task_id] = task
                            await progress.tell(task_id, describe_task(task))
                    outcomes[task_id] = task_outcome(latest[task_id], await self.files.save(latest[task_id]))
        if left := [task_id for task_id in ids if task_id not in outcomes]:
            outcomes |= {task_id: _unfinished(task_id, latest.get(task_id)) for task_id in left}
            return order_result([outcomes[task_id] for task_id in ids], (), _next_step(left))
        self.calls.close_tasks(ids)
        if all(task.status != "completed" for task in latest.values()):
            raise ToolError("\n".join(describe_failure(task) for task in latest.values()))
        previews: list[ImageContent] = []
        with anyio.move_on_after(PREVIEW_SECONDS):
            previews = await self.files.previews(list(latest.values()))
        return order_result(list(outcomes.values()), previews, "")


def _unfinished(task_id: str, task: Task | None) -> TaskOutcome:
    if task is not None:
        return task_outcome(task, ())
    return TaskOutcome(id=task_id, status="pending", detail=f"{task_id} is ordered", images=[], texts=[])


def _next_step(tasks: Sequence[str]) -> str:
    return (
        f"Not finished yet; nothing is lost. Call get_task with {', then with '.join(tasks)} to wait for the result. "
        "Do not order again."
    )


@dataclass(frozen=True, kw_only=True)
class CallProgress:
    """The progress notifications of one call."""

    context: Context[Any, Any]
    began: float
    states: dict[str, str]
    """Words about each task."""

    async def tell(self, task_id: str, state: str) -> None:
        """Notify the client, if the state of the task has changed."""
        if self.states[task_id] != state:
            self.states[task_id] = state
            await self.notify()

    async def notify(self) -> None:
        seconds = anyio.current_time() - self.began
        await self.context.report_progress(seconds, message="; ".join(self.states.values()))

    async def repeat(self) -> None:
        """Notify the client every few seconds, also without a change."""
        while True:
            await self.notify()
            await anyio.sleep(HEARTBEAT_SECONDS)


@asynccontextmanager
async def _open_progress(context: Context[Any, Any], ids: Sequence[str]) -> AsyncIterator[CallProgress]:
    states = {task_id: f"{task_id} is ordered" for task_id in ids}
    progress = CallProgress(context=context, began=anyio.current_time(), states=states)
    repeating = asyncio.create_task(progress.repeat())
    try:
        yield progress
    finally:
        repeating.cancel()
        await asyncio.wait([repeating])


@contextmanager
def _explained() -> Iterator[None]:
    """Raise errors of the broker as errors of the tool, which the model reads."""
    try:
        yield
    except BrokerError as error:
        raise ToolError(" ".join([str(error), *getattr(error, "__notes__", ())])) from error
    except TimeoutError as error:
        raise ToolError(
            "The broker did not answer in time. Call this tool again with the same arguments: an order that arrived is "
            "not repeated."
        ) from error
