"""Odd requests by the thousand against a real broker, and the API description held against every answer.

`python -m tests.support.fuzzing SECONDS` goes on for so long; the tests make a few hundred, always the same.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import tempfile
from collections import Counter
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import schemathesis
from schemathesis.engine import events, from_schema

from broker.api.http.endpoint import Dialect, Endpoint
from broker.api.native.schemas import MAX_WAIT_SECONDS
from broker.app import build_app
from broker.logs import configure_logging
from storage.ids import reference_owner
from storage.states import TaskState
from tests.support.api import ApiBroker, open_api, png
from tests.support.servers import postgres

KEY: Final = "key-of-a-caller-0123456789"
AUTHORIZED: Final = {"Authorization": f"Bearer {KEY}"}
UNFIT: Final = ("positive_data_acceptance", "use_after_free")
"""Checks that are not for us: what a model takes is no matter of a schema, and a canceled task is still there."""


DICTIONARIES: Final = (
    ("DELETE /api/task/", "cancelable"),
    ("GET /api/task/{id}/events", "ended"),
    ("POST /api/task/{id}/retry", "failed"),
    ("/api/task/", "tasks"),
    ("/api/batch/", "batches"),
    ("/api/callbacks/", "callbacks"),
    ("/api/deliveries/", "deliveries"),
    ("/uploads/", "images"),
    ("/docs/", "files"),
)
"""Start of a path, or of method and path → the dictionary of its ids; the first match counts."""


@dataclass(kw_only=True)
class Findings:
    """Results of a run. failures: each with a command to repeat it; seen: number by (endpoint, status)."""

    failures: list[str] = field(default_factory=list)
    checks: Counter[str] = field(default_factory=Counter)
    seen: Counter[tuple[str, int]] = field(default_factory=Counter)

    def statuses(self, door: str) -> set[int]:
        return {status for where, status in self.seen if where == door}


@dataclass(frozen=True, kw_only=True)
class Known:
    """Ids of things that exist."""

    tasks: tuple[str, ...]
    ended: tuple[str, ...]
    batches: tuple[str, ...]
    callbacks: tuple[str, ...]
    images: tuple[str, ...]
    failed: tuple[str, ...]
    deliveries: tuple[str, ...]


@asynccontextmanager
async def furnished(folder: Path, **settings: Any) -> AsyncIterator[tuple[ApiBroker, Known]]:
    """Run a broker with caller keys and a task in every state; orders stay queued."""
    async with open_api(folder, sockets=True, api_keys=(KEY,), **settings) as broker:
        yield broker, await _furnish(broker)


async def _furnish(broker: ApiBroker) -> Known:
    now = broker.services.clock.now()
    facts: dict[TaskState, dict[str, Any]] = {
        TaskState.QUEUED: {"attempt": 0},
        TaskState.SUBMITTING: {"aspect_ratio": "16:9"},
        TaskState.WAITING: {"job_id": "job-1", "params": {"seed": 5}},
        TaskState.FETCHING: {"outputs": ("https://example.com/a.png",), "cost": 4.0, "billed": "yes"},
        TaskState.SUCCEEDED: {
            "ended_at": now,
            "cost": 4.0,
            "billed": "yes",
            "params": {"steps": 30},
            "resolution": "1K",
        },
        TaskState.FAILED: {
            "ended_at": now,
            "error_code": "safety_input",
            "error_detail": "flagged",
            "provider_code": "400",
            "billed": "no",
        },
        TaskState.CANCELED: {"ended_at": now, "error_code": "canceled"},
        TaskState.EXPIRED: {"ended_at": now},
    }
    tasks = {
        state: await broker.add_task(number=n, state=state, **more) for n, (state, more) in enumerate(facts.items(), 1)
    }
    deliveries = [
        await broker.add_delivery(task)
        for state, task in tasks.items()
        if task.has_ended and state != TaskState.EXPIRED
    ]
    running, over = f"batch_{1:032x}", f"batch_{2:032x}"
    for number in (11, 12):
        await broker.add_task(number=number, batch=running)
    await broker.add_task(number=13, batch=over, state=TaskState.FAILED, ended_at=now, error_code="no_image")
    await broker.client.post("/api/webhook/kie", json={"task_id": tasks[TaskState.WAITING].id}, headers=AUTHORIZED)
    callbacks = (await broker.client.get("/api/callbacks", headers=AUTHORIZED)).json()["data"]
    made = await broker.add_image(tasks[TaskState.SUCCEEDED].id, png())
    given = await broker.add_image(reference_owner(running), png("blue"), kind="reference")
    return Known(
        tasks=tuple(task.id for task in tasks.values()),
        ended=tuple(task.id for state, task in tasks.items() if task.has_ended or state == TaskState.EXPIRED),
        batches=(running, over),
        callbacks=tuple(one["id"] for one in callbacks),
        images=(made.name, given.name),
        failed=(tasks[TaskState.FAILED].id,),
        deliveries=tuple(delivery.id for delivery in deliveries),
    )


async def walk(
    broker: ApiBroker,
    known: Known,
    *,
    examples: int,
    seconds: int | None = None,
    seed: int = 1,
    document: dict[str, Any] | None = None,
) -> Findings:
    """Send requests to every endpoint, valid ones and others.

    examples: per endpoint and phase. seconds: continue with new ones until they are over; None = once, always the same.
    document: the description that the responses are compared with; None = the one that is served.
    """
    document = document or (await broker.client.get("/openapi.json", headers=AUTHORIZED)).json()
    config = schemathesis.Config.from_dict(_config(broker, known, examples, seconds, seed))
    return await asyncio.to_thread(_walk, document, config)


def endpoints_of(broker: ApiBroker) -> list[Endpoint]:
    dialects: list[Dialect] = build_app(broker.services).state.dialects
    return [endpoint for dialect in dialects for endpoint in dialect.endpoints]


def _bound_parameters(endpoint: Endpoint) -> dict[str, Any]:
    """Values that exist, for the parameters of an endpoint that take an id or a name."""
    often = {"probability": 0.7}
    bound: dict[str, Any] = {}
    if endpoint.query and "wait" in endpoint.query.model_fields:
        bound["query.wait"] = {"dictionary": "waits", "probability": 1}
    for parameter in endpoint.parameters:
        if parameter.where == "path" and (found := _dictionary_of(endpoint)):
            bound[f"path.{parameter.name}"] = {"dictionary": found, **often}
        elif parameter.name == "task" and endpoint.access == "provider":
            bound["query.task"] = {"dictionary": "tasks", **often}
    return bound


def _dictionary_of(endpoint: Endpoint) -> str | None:
    label = f"{endpoint.method} {endpoint.path}"
    return next(
        (name for start, name in DICTIONARIES if label.startswith(start) or endpoint.path.startswith(start)), None
    )


def _config(broker: ApiBroker, known: Known, examples: int, seconds: int | None, seed: int) -> dict[str, Any]:
    bound = {endpoint.operation_id: _bound_parameters(endpoint) for endpoint in endpoints_of(broker)}
    return {
        "seed": seed,
        "base-url": f"http://127.0.0.1:{broker.port}",
        "headers": AUTHORIZED,
        "request-timeout": MAX_WAIT_SECONDS + 10,
        **({"max-time": seconds} if seconds else {}),
        "max-stream-events": 1,
        "continue-on-failure": True,
        "workers": 1,
        "suppress-health-check": ["all"],
        "generation": {"max-examples": examples, "deterministic": True, "no-shrink": True, "database": "none"},
        "checks": {name: {"enabled": False} for name in UNFIT},
        "dictionaries": {
            "tasks": {"values": list(known.tasks)},
            "cancelable": {"values": [*known.tasks[:3], *known.failed]},
            "failed": {"values": list(known.failed)},
            "ended": {"values": list(known.ended)},
            "batches": {"values": list(known.batches)},
            "callbacks": {"values": list(known.callbacks)},
            "images": {"values": list(known.images)},
            "deliveries": {"values": list(known.deliveries)},
            "files": {"values": ["start.js", "swagger-ui.css"]},
            "waits": {"values": [0, 0.01]},
        },
        "operations": [
            {"include-operation-id": name, "parameters": values} for name, values in bound.items() if values
        ],
    }


def _walk(document: dict[str, Any], config: schemathesis.Config) -> Findings:
    findings = Findings()
    for event in from_schema(schemathesis.openapi.from_dict(document, config=config)).execute():
        if isinstance(event, events.ScenarioFinished):
            _note(event.recorder, findings)
        elif isinstance(event, events.NonFatalError):
            findings.failures.append(f"{event.label}: {event.value!r}")
        elif isinstance(event, events.FatalError):
            findings.failures.append(repr(event.exception))
    return findings


def _note(recorder: Any, findings: Findings) -> None:
    for case_id, interaction in recorder.interactions.items():
        if interaction.response is not None and case_id in recorder.cases:
            operation = recorder.cases[case_id].value.operation
            findings.seen[operation.label, interaction.response.status_code] += 1
    for check in (check for checks in recorder.checks.values() for check in checks):
        findings.checks[check.name] += 1
        if check.failure_info is not None:
            findings.failures.append(f"{check.name}: {check.failure_info.failure}\n{check.failure_info.code_sample}")


def told(findings: Findings) -> Iterator[str]:
    """For people to read."""
    for (door, status), times in sorted(findings.seen.items()):
        yield f"{times:7}  {status}  {door}"
    yield f"{sum(findings.seen.values()):7}  requests, {sum(findings.checks.values())} checks"
    yield from findings.failures
    yield f"{len(findings.failures)} failures"


async def main(seconds: int, seeds: Sequence[int], server: postgres.Postgres | None) -> int:
    failures = 0
    configure_logging("CRITICAL", "console", None)
    for seed in seeds:
        settings = {"database_url": await server.fresh()} if server else {}
        with tempfile.TemporaryDirectory() as folder:
            async with furnished(Path(folder), **settings) as (broker, known):
                findings = await walk(broker, known, examples=50, seconds=seconds, seed=seed)
        sys.stdout.write("\n".join([f"seed {seed}", *told(findings), ""]))
        failures += len(findings.failures)
    return 1 if failures else 0


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m tests.support.fuzzing")
    parser.add_argument("seconds", type=int, nargs="?", default=300, help="per seed")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1])
    parser.add_argument("--postgres", action="store_true", help="instead of SQLite")
    chosen = parser.parse_args()
    with postgres.running() if chosen.postgres else nullcontext() as server:
        raise SystemExit(asyncio.run(main(chosen.seconds, chosen.seeds, server)))
