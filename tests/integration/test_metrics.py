"""Every metric moves when the thing happens, and is explained to those who look at it."""

from __future__ import annotations

import asyncio
import json
import re
import time
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from broker.metrics import Metrics
from broker.monitoring import balance, collectors
from broker.monitoring.loop_lag import measure_loop_lag
from broker.orders import ImageParams, OrderRequest
from broker.reports import Failed, Finished, Pending
from broker.services import Services
from broker.tasks import lifecycle
from storage.attempts import Attempt
from storage.sql.scope import EVERYTHING
from storage.states import TaskState
from storage.tasks import Task
from tests.contracts.providers import Canned, Upstream, closed_port
from tests.support.api import a_task, open_api
from tests.support.brokers import RunningBroker, create_tasks, open_broker, still
from tests.support.clock import ManualClock
from tests.support.log_lines import captured_lines

pytestmark = pytest.mark.anyio

ROOT = Path(__file__).parent.parent.parent
NOW = 1_790_000_000.0
UNKNOWN_WORDS = Failed(code="provider_error", message="the flux is cold", retryable=False, known=False, job_id="job")


EMPTY = {"code": 402, "msg": "Insufficient credits"}
BUSY = {"code": 455, "msg": "maintenance"}


def left(credits_left: float) -> dict[str, Any]:
    """Return the answer of the provider with this balance."""
    return {"code": 200, "msg": "success", "data": credits_left}


def value(metrics: Metrics, name: str, **labels: str) -> float:
    return metrics.registry.get_sample_value(name, labels) or 0.0


@pytest.fixture
async def quiet(tmp_path: Path, clock: ManualClock) -> AsyncIterator[Services]:
    async with still(tmp_path, clock) as services:
        yield services


async def add(services: Services, **changes: Any) -> Task:
    """A task with a job at the provider, and its line in the ledger."""
    task = a_task(NOW, **{"job_id": "job", "sent_at": NOW, "entered_at": NOW, **changes})
    await services.database.transact(services.tables.tasks.insert_task(task))
    row = {
        **vars(
            Attempt(
                task_id=task.id,
                number=1,
                provider="kie",
                key_id="default",
                job_id="job",
                sent_at=NOW,
                outcome="accepted",
            )
        )
    }
    columns, values = ", ".join(row), ", ".join(f":{name}" for name in row)
    await services.database.execute(f"INSERT INTO attempts ({columns}) VALUES ({values})", **row)
    return task


# -- whole journeys

GOOD: list[tuple[str, dict[str, str], float]] = [
    ("broker_task_transitions_total", {"from": "queued", "to": "submitting"}, 2),
    ("broker_task_transitions_total", {"from": "submitting", "to": "waiting"}, 2),
    ("broker_task_transitions_total", {"from": "waiting", "to": "fetching"}, 1),
    ("broker_task_transitions_total", {"from": "fetching", "to": "succeeded"}, 1),
    ("broker_task_transitions_total", {"from": "waiting", "to": "failed"}, 1),
    ("broker_state_seconds_count", {"state": "queued"}, 2),
    ("broker_state_seconds_count", {"state": "submitting"}, 2),
    ("broker_state_seconds_count", {"state": "waiting"}, 2),
    ("broker_state_seconds_count", {"state": "fetching"}, 1),
    ("broker_queue_seconds_count", {"provider": "kie"}, 2),
    ("broker_task_seconds_count", {"model": "nano-banana", "outcome": "completed"}, 1),
    ("broker_task_seconds_count", {"model": "nano-banana", "outcome": "no_image"}, 1),
    ("broker_task_attempts_count", {}, 2),
    ("broker_task_attempts_sum", {}, 2),
    ("broker_submissions_total", {"provider": "kie", "outcome": "accepted"}, 2),
    ("broker_submission_seconds_count", {"provider": "kie"}, 2),
    ("broker_callbacks_total", {"provider": "kie", "verification": "accept"}, 2),
    ("broker_callback_ack_seconds_count", {}, 2),
    ("broker_downloads_total", {"outcome": "stored"}, 1),
    ("broker_download_seconds_count", {}, 1),
    ("broker_request_errors_total", {"code": "invalid_request"}, 1),
]


async def test_journey_updates_its_metrics(tmp_path: Path) -> None:
    async with open_broker(tmp_path, check_after=60.0, task_deadline=60.0) as broker:
        done = await broker.wait_end(await broker.create_task("a red bicycle"))
        await broker.wait_end(await broker.create_task("a red bicycle [mood:failed]"))
        await broker.client.post("/api/generate/image", json={"prompt": "x", "numberOfImages": 99})
        metrics = broker.services.metrics
        assert [
            (row, value(metrics, row[0], **row[1])) for row in GOOD if value(metrics, row[0], **row[1]) != row[2]
        ] == []
        assert value(metrics, "broker_download_bytes_total") == done["results"][0]["bytes"]
        for operation in ("poll", "change"):
            assert value(metrics, "broker_database_seconds_count", operation=operation) > 2
        page = (await broker.client.get("/metrics")).text
    assert 'broker_tasks{state="succeeded"} 1.0' in page
    assert 'broker_tasks{state="queued"} 0.0' in page
    assert re.search(r'broker_provider_cooldown_seconds{.*provider="kie".*} 0.0', page)
    assert re.search(r'broker_build_info{python="3\.\d+\.\d+",version="[^"]+"} 1\.0', page)
    assert "process_resident_memory_bytes" in page
    assert "python_gc_collections_total" in page
    assert "broker_steps_running" in page


@pytest.mark.parametrize(("mood", "outcome"), [("code:402", "refused"), ("code:500", "unknown"), ("silent", "unknown")])
async def test_submission_outcome_is_counted(tmp_path: Path, mood: str, outcome: str) -> None:
    async with open_broker(tmp_path, with_callbacks=False) as broker:
        await broker.wait_end(await broker.create_task(f"a red bicycle [mood:{mood}]"))
        metrics = broker.services.metrics
        assert value(metrics, "broker_submissions_total", provider="kie", outcome=outcome) == 1
        assert value(metrics, "broker_unknown_outcomes_total", provider="kie") == (outcome == "unknown")


async def test_unsent_order_is_counted_as_not_sent(tmp_path: Path) -> None:
    async with open_broker(tmp_path, sandbox=closed_port(), task_deadline=0.2) as broker:
        await broker.wait_end(await broker.create_task("a red bicycle"))
        assert value(broker.services.metrics, "broker_submissions_total", provider="kie", outcome="not_sent") >= 1


async def test_checks_and_download_retries_are_counted(tmp_path: Path) -> None:
    async with open_broker(tmp_path, with_callbacks=False) as broker:
        await broker.wait_end(await broker.create_task("a red bicycle [mood:gone_once:2]"))
        metrics = broker.services.metrics
        assert value(metrics, "broker_provider_checks_total", provider="kie", answer="finished") >= 1
        assert value(metrics, "broker_download_retries_total") == 2
        assert value(metrics, "broker_downloads_total", outcome="result_gone") == 2
        assert value(metrics, "broker_downloads_total", outcome="stored") == 1


# -- single changes


async def test_unclassified_error_is_counted_once_and_logged_without_its_text(quiet: Services) -> None:
    task = await add(quiet)
    report = replace(UNKNOWN_WORDS, provider_code="FLUX")
    with captured_lines() as logs:
        for _ in range(2):  # a callback and a check may both report it
            await quiet.worker.steps.transitions.apply_report(task, report, 1)
    assert value(quiet.metrics, "broker_unclassified_errors_total", provider="kie") == 1
    (line,) = [line for line in logs if line["action"] == "unclassified_provider_error"]
    assert (line["provider_code"], "flux is cold" in str(logs)) == ("FLUX", False)
    row = await quiet.queries.get(task.id, EVERYTHING)
    assert (row.error_code, row.error_detail, row.provider_code) == ("provider_error", "the flux is cold", "FLUX")


async def test_classified_error_is_not_counted_as_unclassified(quiet: Services) -> None:
    await quiet.worker.steps.transitions.apply_report(await add(quiet), replace(UNKNOWN_WORDS, known=True), 1)
    assert value(quiet.metrics, "broker_unclassified_errors_total", provider="kie") == 0


async def test_second_result_counts_as_duplicate(quiet: Services) -> None:
    task = await add(quiet, state=TaskState.CANCELED, ended_at=NOW)
    for _ in range(2):
        await quiet.worker.steps.transitions.apply_report(task, Finished(outputs=("https://a/1",), job_id="job"), 1)
    assert value(quiet.metrics, "broker_duplicate_results_total", provider="kie") == 1


async def test_end_is_counted_once_and_late_image_separately(quiet: Services, clock: ManualClock) -> None:
    task = await add(quiet, state=TaskState.FETCHING, deadline_at=NOW)
    gone = lifecycle.DownloadFailure(code="download_failed", message="")
    clock.advance(90)
    steps = quiet.worker.steps
    await steps.transitions.apply_own(task, lambda row, now, policy: lifecycle.downloaded(row, now, policy, 0, [gone]))
    labels = {"model": "nano-banana", "outcome": "download_failed"}
    assert value(quiet.metrics, "broker_task_seconds_sum", **labels) == 90
    await steps.transitions.apply_own(
        await quiet.queries.get(task.id, EVERYTHING),
        lambda row, now, policy: lifecycle.downloaded(row, now, policy, 1, []),
    )
    assert value(quiet.metrics, "broker_late_results_total", model="nano-banana") == 1
    assert value(quiet.metrics, "broker_task_attempts_count") == 1


async def test_progress_report_does_not_restart_the_time_in_a_state(quiet: Services, clock: ManualClock) -> None:
    task = await add(quiet)
    clock.advance(10)
    await quiet.worker.steps.transitions.apply_report(task, Pending(job_id="job", stage="generating"), 1)
    clock.advance(10)
    await quiet.worker.steps.transitions.apply_report(
        await quiet.queries.get(task.id, EVERYTHING), Finished(outputs=("https://a/1",), job_id="job"), 1
    )
    assert value(quiet.metrics, "broker_state_seconds_sum", state="waiting") == 20


async def test_unexpected_step_error_is_counted(quiet: Services) -> None:
    async def broken() -> None:
        raise ValueError

    assert not await quiet.worker.running.contain_errors(broken(), "task_1", "waiting")
    assert value(quiet.metrics, "broker_steps_failed_total", step="waiting") == 1


# -- collected on request


async def test_task_counts_are_cached(quiet: Services, clock: ManualClock) -> None:
    """Counting a million takes half a second: ended tasks are counted every five minutes."""

    async def counted(state: TaskState) -> float:
        await quiet.collector.render_page()
        return value(quiet.metrics, "broker_tasks", state=state.value)

    await quiet.collector.render_page()
    await add(quiet, number=1, state=TaskState.WAITING)
    await quiet.database.transact(quiet.tables.tasks.insert_task(a_task(NOW, number=2, state=TaskState.FAILED)))
    assert [await counted(state) for state in (TaskState.WAITING, TaskState.FAILED)] == [0, 0]
    clock.advance(collectors.ACTIVE_TTL_SECONDS)
    assert [await counted(state) for state in (TaskState.WAITING, TaskState.FAILED)] == [1, 0]
    clock.advance(collectors.ENDED_TTL_SECONDS)
    assert [await counted(state) for state in (TaskState.WAITING, TaskState.FAILED)] == [1, 1]


async def test_cooldown_is_shown_as_remaining_seconds(quiet: Services, clock: ManualClock) -> None:
    limits, key_id = quiet.tables.provider_limits, quiet.provider.key_id
    await quiet.database.transact(limits.start_cooldown("kie", key_id, NOW + 30, "provider_unavailable"))
    await quiet.collector.render_page()
    assert value(quiet.metrics, "broker_provider_cooldown_seconds", provider="kie", key_id=key_id) == 30
    clock.advance(40)
    await quiet.collector.render_page()
    assert value(quiet.metrics, "broker_provider_cooldown_seconds", provider="kie", key_id=key_id) == 0


async def test_circuit_of_a_key_and_pause_of_a_provider_are_shown(quiet: Services, clock: ManualClock) -> None:
    limits, key_id = quiet.tables.provider_limits, quiet.provider.key_id

    async def shown() -> tuple[list[str], float]:
        await quiet.collector.render_page()
        states = [
            state
            for state in ("closed", "half_open", "open", "set_aside")
            if value(quiet.metrics, "broker_provider_circuit", provider="kie", key_id=key_id, state=state)
        ]
        return states, value(quiet.metrics, "broker_provider_paused", provider="kie")

    assert await shown() == (["closed"], 0.0)
    starting = limits.start_cooldown("kie", key_id, NOW + 30, "provider_unavailable")
    await quiet.database.transact(starting, limits.pause_provider("kie", NOW))
    clock.advance(collectors.ACTIVE_TTL_SECONDS)
    assert await shown() == (["open"], 1.0)
    clock.advance(40)
    assert await shown() == (["half_open"], 1.0)
    await quiet.database.transact(limits.start_cooldown("kie", key_id, NOW + 600, "provider_credits"))
    clock.advance(collectors.ACTIVE_TTL_SECONDS)
    assert await shown() == (["set_aside"], 1.0)
    await quiet.database.transact(*limits.resume_provider("kie"))
    clock.advance(collectors.ACTIVE_TTL_SECONDS)
    assert await shown() == (["closed"], 0.0)


async def test_one_process_queries_the_balance_for_all(tmp_path: Path) -> None:
    async with open_broker(tmp_path) as broker:
        balances = broker.services.worker.balances
        await _balance_known(broker)
        assert not await balances.tables.periodic_jobs.try_acquire(
            "balance", now=broker.services.clock.now(), every=balance.REFRESH_SECONDS
        )
        async with open_api(tmp_path) as other:  # another process on the same database, which sends no query
            page = (await other.client.get("/metrics")).text
    assert re.search(r'broker_provider_credits{.*provider="kie".*} \d', page)


async def _balance_known(broker: RunningBroker) -> None:
    async with asyncio.timeout(5):
        while not await broker.services.worker.balances.latest():  # noqa: ASYNC110
            await asyncio.sleep(0.01)


async def test_low_balance_is_warned_of_once_per_fall(tmp_path: Path, clock: ManualClock) -> None:
    """Below the price of 25 images, on the first answer too; not again while it stays low, or is not known."""
    async with Upstream().open() as upstream, still(tmp_path, clock, api_url=upstream.url) as quiet:
        with captured_lines() as logs:
            for answer in (left(99.0), left(98.0), left(100.0), BUSY, left(99.5), EMPTY, left(4.0)):
                upstream.respond(Canned(body=answer))
                await quiet.balances.refresh()
                clock.advance(balance.REFRESH_SECONDS + 1)
        warned = [line["balance"] for line in logs if line["action"] == "balance_low"]
        assert warned == [99.0, 99.5]
        key_id = quiet.provider.key_id
        assert value(quiet.metrics, "broker_balance_low_total", provider="kie", key_id=key_id) == 2


async def test_account_without_credits_has_a_balance_of_zero(tmp_path: Path, clock: ManualClock) -> None:
    async with Upstream().open() as upstream, still(tmp_path, clock, api_url=upstream.url) as quiet:
        upstream.respond(Canned(body=EMPTY))
        await quiet.balances.refresh()
        assert await quiet.balances.latest() == {("kie", quiet.provider.key_id): 0.0}


async def test_daily_budget_is_shown(tmp_path: Path, clock: ManualClock) -> None:
    async with still(tmp_path, clock, daily_budget=0.5) as quiet:
        await create_tasks(quiet, OrderRequest(params=ImageParams(prompt="a fox")))
        await quiet.collector.render_page()
        assert value(quiet.metrics, "broker_daily_budget_usd", kind="limit") == 0.5
        assert value(quiet.metrics, "broker_daily_budget_usd", kind="used") == 0.02


async def test_unknown_balance_is_absent(quiet: Services, clock: ManualClock) -> None:
    """An old balance is not shown, nor is there one while the provider cannot be reached."""
    balances, key_id = quiet.worker.balances, quiet.provider.key_id
    await balances.refresh()
    assert await balances.latest() == {}
    await balances.tables.cluster_state.set_value(f"balance of kie {key_id}", f"12.5 {NOW!r}")
    assert await balances.latest() == {("kie", key_id): 12.5}
    await quiet.collector.render_page()
    assert value(quiet.metrics, "broker_provider_credits", provider="kie", key_id=key_id) == 12.5
    clock.advance(balance.MAX_AGE_SECONDS + 1)
    await quiet.collector.render_page()
    assert b"broker_provider_credits{" not in await quiet.collector.render_page()


async def test_blocked_event_loop_is_measured() -> None:
    metrics = Metrics()
    with captured_lines() as logs:
        async with measure_loop_lag(metrics, interval_seconds=0.001), asyncio.timeout(5):
            await asyncio.sleep(0)
            time.sleep(0.6)  # noqa: ASYNC251  # this is the stall
            while value(metrics, "broker_event_loop_lag_seconds_sum") < 0.5:  # noqa: ASYNC110
                await asyncio.sleep(0)
    assert [line["action"] for line in logs] == ["loop_stalled"]


# -- documentation


def names(metrics: Metrics) -> set[str]:
    """Return the metric names as queries spell them."""
    endings = {"counter": "_total", "info": "_info"}
    return {family.name + endings.get(family.type, "") for family in metrics.registry.collect()}


def test_manual_explains_every_metric_and_no_other() -> None:
    manual = (ROOT / "docs" / "operating.md").read_text("utf-8")
    table = manual.split("| metric |")[1].split("\n\n")[0]
    explained = {name for line in table.splitlines() for name in re.findall(r"`([a-z_]+)`", line.split("|")[1])}
    assert explained == {name for name in names(Metrics()) if name.startswith("broker_")}


def test_manual_explains_every_log_action() -> None:
    manual = (ROOT / "docs" / "operating.md").read_text("utf-8")
    sources = [
        path for folder in ("broker", "storage", "uploads", "webhooks") for path in (ROOT / folder).rglob("*.py")
    ]
    actions = {name for path in sources for name in re.findall(r'action="(\w+)"', path.read_text("utf-8"))}
    assert len(actions) > 25
    assert {action for action in actions if f"`{action}`" not in manual} == set()


def test_manual_and_dashboard_query_existing_metrics_only() -> None:
    manual = (ROOT / "docs" / "operating.md").read_text("utf-8")
    named = re.findall(r"\b(?:broker|process|python)_[a-z_]+(?=[{\[)`]| [<>])", manual)
    dashboard = json.loads((ROOT / "deploy" / "grafana.json").read_text("utf-8"))
    for query in queries(dashboard):
        named += re.findall(r"\b(?:broker|process)_[a-z_]+", query)
    base = {re.sub(r"_(bucket|sum|count)$", "", name) for name in named}
    assert len(base) > 25
    assert base <= names(Metrics())


def queries(dashboard: dict[str, Any]) -> list[str]:
    return [target["expr"] for panel in dashboard["panels"] for target in panel.get("targets", [])]


def test_dashboard_works_with_any_prometheus() -> None:
    """Its data source is chosen on import; every panel uses that and no other, has a title, and no panels overlap."""
    dashboard = json.loads((ROOT / "deploy" / "grafana.json").read_text("utf-8"))
    assert [variable["type"] for variable in dashboard["templating"]["list"]] == ["datasource"]
    assert (dashboard["schemaVersion"] >= 39, dashboard["id"]) == (True, None)
    panels = [panel for panel in dashboard["panels"] if panel["type"] != "row"]
    assert all(
        panel["datasource"]["uid"] == "${datasource}" and panel["title"] and panel["targets"] for panel in panels
    )
    assert len({panel["id"] for panel in dashboard["panels"]}) == len(dashboard["panels"])
    cells = [
        (panel["gridPos"]["x"] + x, panel["gridPos"]["y"] + y)
        for panel in dashboard["panels"]
        for x in range(panel["gridPos"]["w"])
        for y in range(panel["gridPos"]["h"])
    ]
    assert len(set(cells)) == len(cells)
    assert max(x for x, _ in cells) == 23
