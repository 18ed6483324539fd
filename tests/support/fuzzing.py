"""Generated requests to a real broker, whose responses are checked against the OpenAPI document.

`python -m tests.support.fuzzing SECONDS` runs for that time; the tests send a few hundred requests, always the same.
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
from typing import Any, Final, Literal

import schemathesis
from schemathesis.engine import events, from_schema

from broker.api.http.endpoint import Dialect, Endpoint
from broker.api.native.schemas import MAX_WAIT_SECONDS
from broker.app import build_app
from broker.logs import configure_logging
from storage.ids import reference_owner
from storage.states import TaskState
from tests.support.api import ApiBroker, open_api, png
from tests.support.brokers import RunningBroker
from tests.support.servers import postgres

KEY: Final = "key-of-a-caller-0123456789"
AUTHORIZED: Final = {"Authorization": f"Bearer {KEY}"}
DISABLED_CHECKS: Final = ("positive_data_acceptance", "use_after_free")
"""Checks that do not apply: a schema does not know the limits of each model, and a canceled task still exists."""


DICTIONARIES: Final = (
    ("DELETE /api/task/{id}", "cancelable"),
    ("GET /api/task/{id}/events", "ended"),
    ("POST /api/task/{id}/retry", "failed"),
    ("/api/task/", "tasks"),
    ("/api/batch/", "batches"),
    ("/api/callbacks/", "callbacks"),
    ("/api/deliveries/", "deliveries"),
    ("/api/providers/", "providers"),
    ("/uploads/images/", "results"),
    ("/uploads/references/", "references"),
    ("/docs/", "files"),
    ("/v1/predictions/{id}/cancel", "cancelable"),
    ("/v1/predictions/", "tasks"),
)
"""Method and path, or start of a path → the dictionary of its ids; the first match counts."""


@dataclass(kw_only=True)
class Findings:
    """Results of a run. failures: each with a command to repeat it; seen: number by (endpoint, status)."""

    failures: list[str] = field(default_factory=list)
    checks: Counter[str] = field(default_factory=Counter)
    seen: Counter[tuple[str, int]] = field(default_factory=Counter)

    def statuses(self, endpoint: str) -> set[int]:
        return {status for label, status in self.seen if label == endpoint}


@dataclass(frozen=True, kw_only=True)
class KnownIds:
    """Ids that exist."""

    tasks: tuple[str, ...]
    cancelable: tuple[str, ...]
    """Not among `tasks`, so that no other request ends them."""
    ended: tuple[str, ...]
    batches: tuple[str, ...]
    callbacks: tuple[str, ...]
    results: tuple[str, ...]
    references: tuple[str, ...]
    failed: tuple[str, ...]
    deliveries: tuple[str, ...]


@asynccontextmanager
async def filled_broker(folder: Path, **settings: Any) -> AsyncIterator[tuple[ApiBroker, KnownIds]]:
    """Run a broker with caller keys and a task in every state; orders stay queued."""
    async with open_api(folder, sockets=True, api_keys=(KEY,), **settings) as broker:
        yield broker, await _fill(broker)


async def _fill(broker: ApiBroker) -> KnownIds:
    now = broker.services.clock.now()
    columns: dict[TaskState, dict[str, Any]] = {
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
        state: await broker.add_task(number=n, state=state, **more)
        for n, (state, more) in enumerate(columns.items(), 1)
    }
    deliveries = [
        await broker.add_delivery(task)
        for state, task in tasks.items()
        if task.has_ended and state != TaskState.EXPIRED
    ]
    cancelable = [await broker.add_task(number=number) for number in range(21, 25)]
    running, ended = f"batch_{1:043x}", f"batch_{2:043x}"
    for number in (11, 12):
        await broker.add_task(number=number, batch=running)
    await broker.add_task(number=13, batch=ended, state=TaskState.FAILED, ended_at=now, error_code="no_image")
    await broker.client.post("/api/webhook/kie", json={"task_id": tasks[TaskState.WAITING].id}, headers=AUTHORIZED)
    callbacks = (await broker.client.get("/api/callbacks", headers=AUTHORIZED)).json()["data"]
    result = await broker.add_image(tasks[TaskState.SUCCEEDED].id, png())
    reference = await broker.add_image(reference_owner(running), png("blue"), kind="reference")
    return KnownIds(
        tasks=tuple(task.id for task in tasks.values()),
        cancelable=tuple(task.id for task in cancelable),
        ended=tuple(task.id for state, task in tasks.items() if task.has_ended or state == TaskState.EXPIRED),
        batches=(running, ended),
        callbacks=tuple(one["id"] for one in callbacks),
        results=(result.name,),
        references=(reference.name,),
        failed=(tasks[TaskState.FAILED].id,),
        deliveries=tuple(delivery.id for delivery in deliveries),
    )


async def run_fuzzer(
    broker: ApiBroker,
    known: KnownIds,
    *,
    examples: int,
    seconds: int | None = None,
    seed: int = 1,
    mode: Literal["all", "positive"] = "all",
    document: dict[str, Any] | None = None,
) -> Findings:
    """Send requests to every endpoint.

    examples: per endpoint and phase. seconds: continue with new ones for that time; None = once, always the same.
    mode: valid and invalid requests, or valid ones.
    document: what the responses are compared with; None = the document that is served.
    """
    document = document or await _native_document(broker)
    values = _config(broker, known, examples, seconds, seed)
    values["generation"]["mode"] = mode
    config = schemathesis.Config.from_dict(values)
    return await asyncio.to_thread(execute, document, config)


async def _native_document(broker: ApiBroker) -> dict[str, Any]:
    """Return the document of the native endpoints; those of dialects wait for an image that no provider makes here."""
    document: dict[str, Any] = (await broker.client.get("/openapi.json", headers=AUTHORIZED)).json()
    native = {endpoint.path for endpoint in endpoints_of(broker, "native")}
    document["paths"] = {path: item for path, item in document["paths"].items() if path in native}
    return document


def dialects_of(broker: ApiBroker | RunningBroker) -> list[Dialect]:
    dialects: list[Dialect] = build_app(broker.services).state.dialects
    return dialects


def endpoints_of(broker: ApiBroker | RunningBroker, *names: str) -> list[Endpoint]:
    """Return the endpoints of some dialects, by default of all."""
    dialects = [dialect for dialect in dialects_of(broker) if dialect.name in names or not names]
    return [endpoint for dialect in dialects for endpoint in dialect.endpoints]


def _bound_parameters(endpoint: Endpoint) -> dict[str, Any]:
    """Return existing values for the parameters of an endpoint that take an id or a name."""
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
    operation = f"{endpoint.method} {endpoint.path}"
    return next((name for key, name in DICTIONARIES if key == operation or endpoint.path.startswith(key)), None)


def base_config(base_url: str, *, examples: int, seed: int, seconds: int | None = None) -> dict[str, Any]:
    """Return the configuration of a run, without ids that exist."""
    return {
        "seed": seed,
        "base-url": base_url,
        "headers": AUTHORIZED,
        "request-timeout": MAX_WAIT_SECONDS + 10,
        **({"max-time": seconds} if seconds else {}),
        "max-stream-events": 1,
        "continue-on-failure": True,
        "workers": 1,
        "suppress-health-check": ["all"],
        "generation": {"max-examples": examples, "deterministic": True, "no-shrink": True, "database": "none"},
        "checks": {name: {"enabled": False} for name in DISABLED_CHECKS},
    }


def _config(broker: ApiBroker, known: KnownIds, examples: int, seconds: int | None, seed: int) -> dict[str, Any]:
    bound = {one.operation_id: _bound_parameters(one) for one in endpoints_of(broker, "native")}
    return {
        **base_config(f"http://127.0.0.1:{broker.port}", examples=examples, seconds=seconds, seed=seed),
        "dictionaries": {
            "tasks": {"values": list(known.tasks)},
            "cancelable": {"values": list(known.cancelable)},
            "failed": {"values": list(known.failed)},
            "ended": {"values": list(known.ended)},
            "batches": {"values": list(known.batches)},
            "callbacks": {"values": list(known.callbacks)},
            "results": {"values": list(known.results)},
            "references": {"values": list(known.references)},
            "deliveries": {"values": list(known.deliveries)},
            "providers": {"values": ["kie"]},
            "files": {"values": ["start.js", "swagger-ui.css"]},
            "waits": {"values": [0, 0.01]},
        },
        "operations": [
            {"include-operation-id": operation_id, "parameters": parameters}
            for operation_id, parameters in bound.items()
            if parameters
        ],
    }


def execute(document: dict[str, Any], config: schemathesis.Config) -> Findings:
    """Send the requests, in the calling thread."""
    findings = Findings()
    for event in from_schema(schemathesis.openapi.from_dict(document, config=config)).execute():
        if isinstance(event, events.ScenarioFinished):
            _record(event.recorder, findings)
        elif isinstance(event, events.NonFatalError):
            findings.failures.append(f"{event.label}: {event.value!r}")
        elif isinstance(event, events.FatalError):
            findings.failures.append(repr(event.exception))
    return findings


def _record(recorder: Any, findings: Findings) -> None:
    for case_id, interaction in recorder.interactions.items():
        if interaction.response is not None and case_id in recorder.cases:
            operation = recorder.cases[case_id].value.operation
            findings.seen[operation.label, interaction.response.status_code] += 1
    for check in (check for checks in recorder.checks.values() for check in checks):
        findings.checks[check.name] += 1
        if check.failure_info is not None:
            findings.failures.append(f"{check.name}: {check.failure_info.failure}\n{check.failure_info.code_sample}")


def report_lines(findings: Findings) -> Iterator[str]:
    """Yield the report of a run, for people."""
    for (endpoint, status), times in sorted(findings.seen.items()):
        yield f"{times:7}  {status}  {endpoint}"
    yield f"{sum(findings.seen.values()):7}  requests, {sum(findings.checks.values())} checks"
    yield from findings.failures
    yield f"{len(findings.failures)} failures"


async def main(seconds: int, seeds: Sequence[int], server: postgres.Postgres | None) -> int:
    failures = 0
    configure_logging("CRITICAL", "console", None)
    for seed in seeds:
        settings = {"database_url": await server.fresh()} if server else {}
        with tempfile.TemporaryDirectory() as folder:
            async with filled_broker(Path(folder), **settings) as (broker, known):
                findings = await run_fuzzer(broker, known, examples=50, seconds=seconds, seed=seed)
        sys.stdout.write("\n".join([f"seed {seed}", *report_lines(findings), ""]))
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
