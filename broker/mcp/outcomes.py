"""What the tools return: structured content, and the same in sentences."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from mcp_types import CallToolResult, ImageContent, TextContent
from pydantic import BaseModel

from broker.client import Task
from broker.client.errors import describe_failure
from broker.mcp.images import SavedImage, link_to


class TaskOutcome(BaseModel):
    """A task: one image."""

    id: str
    status: str
    """pending, processing, completed, failed or canceled."""
    detail: str
    images: list[SavedImage]
    texts: list[str]
    """What the model wrote beside the images."""


class OrderOutcome(BaseModel):
    """The tasks of an order."""

    is_finished: bool
    next_step: str
    """What to call next; empty when everything is done."""
    tasks: list[TaskOutcome]


class ModelSummary(BaseModel):
    """A model, with the values that its providers in use accept."""

    name: str
    title: str
    is_default: bool
    modes: list[str]
    aspect_ratios: list[str]
    resolutions: list[str]
    output_formats: list[str]
    max_references: int
    usd_prices: dict[str, float]
    """Of one image by resolution, at the preferred provider; empty if unknown."""
    warning: str


class ModelSummaries(BaseModel):
    models: list[ModelSummary]


def task_outcome(task: Task, images: Sequence[SavedImage]) -> TaskOutcome:
    return TaskOutcome(
        id=task.id, status=task.status, detail=describe_task(task), images=list(images), texts=list(task.texts)
    )


def order_result(outcomes: Sequence[TaskOutcome], previews: Sequence[ImageContent], next_step: str) -> CallToolResult:
    """Return sentences, links and previews as content, and the outcome as structured content."""
    outcome = OrderOutcome(is_finished=not next_step, next_step=next_step, tasks=list(outcomes))
    lines = [line for one in outcomes for line in _lines(one)]
    text = TextContent(type="text", text="\n".join([*lines, *filter(None, [next_step])]))
    links = [link_to(image) for one in outcomes for image in one.images]
    return CallToolResult(content=[text, *links, *previews], structured_content=outcome.model_dump())


def describe_task(task: Task) -> str:
    """Return the state of a task in a few words."""
    if task.ended:
        return describe_failure(task) if task.status != "completed" else f"{task.id} is completed"
    progress = task.progress
    facts = [
        str(progress.get("stage") or ""),
        f"place {progress['position']}" if progress.get("position") is not None else "",
        f"{progress['percent']} %" if progress.get("percent") is not None else "",
        f"about {progress['etaSeconds']} s left" if progress.get("etaSeconds") is not None else "",
    ]
    return f"{task.id} is {task.status} ({', '.join(filter(None, facts))})"


def model_summary(model: Mapping[str, Any]) -> ModelSummary:
    """Return the summary of an entry of /api/models."""
    offers = [offer for offer in model["providers"] if offer["inUse"]]
    ends = [
        f"{name} on {model[key]}" for key, name in (("deprecatedOn", "deprecated"), ("shutdownOn", "shut down"))
        if model[key]
    ]  # fmt: skip
    instead = [f"use {model['instead']}"] if model["instead"] else []
    return ModelSummary(
        name=model["name"],
        title=model["title"],
        is_default=model["default"],
        modes=model["modes"],
        aspect_ratios=model["aspectRatios"],
        resolutions=model["resolutions"],
        output_formats=model["outputFormats"],
        max_references=model["maxReferences"],
        usd_prices=offers[0]["usdPrices"] if offers else {},
        warning="; ".join([*ends, *instead]),
    )


def _lines(outcome: TaskOutcome) -> list[str]:
    images = [f"  saved to {image.path} ({image.width}x{image.height}), {image.uri}" for image in outcome.images]
    return [outcome.detail, *images, *(f"  the model says: {text}" for text in outcome.texts)]
