"""The request log: one line with an id per request, without queries, and routine requests at DEBUG only."""

from __future__ import annotations

import logging
import re
from pathlib import Path

import pytest

from broker.logs import LogEvent
from storage.states import TaskState
from tests.support.api import open_api, png
from tests.support.log_lines import captured_lines

pytestmark = pytest.mark.anyio

Lines = list[LogEvent]
UNKNOWN = f"/api/task/task_{'0' * 43}"


def request_lines(lines: Lines) -> Lines:
    return [line for line in lines if line["action"] == "request"]


async def test_each_request_is_one_line_with_its_id(tmp_path: Path) -> None:
    with captured_lines() as lines:
        async with open_api(tmp_path) as broker:
            answer = await broker.client.post("/api/generate/image", json={"prompt": "canary"})
    (line,) = request_lines(lines)
    assert (line["method"], line["route"], line["status"]) == ("POST", "/api/generate/image", 202)
    assert (line["operation"], line["level"], line["owner"]) == ("createImage", "info", "house:local")
    assert re.fullmatch("[0-9a-f]{16}", line["request_id"])
    assert answer.headers["x-request-id"] == line["request_id"]
    assert "canary" not in str(lines)


async def test_line_of_an_order_says_what_was_ordered(tmp_path: Path) -> None:
    with captured_lines() as lines:
        async with open_api(tmp_path) as broker:
            order = {"prompt": "a fox", "numberOfImages": 2}
            answer = await broker.client.post("/api/generate/image", json=order)
            refused = await broker.client.post("/api/generate/image", json={})
    first, second = request_lines(lines)
    assert (first["change"], first["task"], first["count"]) == ("task_created", answer.json()["taskId"], 2)
    assert (first["model"], first["mode"], first["owner"]) == ("nano-banana", "text-to-image", "house:local")
    assert (refused.status_code, second["status"], "change" in second) == (400, 400, False)
    assert "task_created" not in {line["action"] for line in lines}


async def test_order_whose_response_waits_for_the_images_has_a_line_at_once(tmp_path: Path) -> None:
    with captured_lines() as lines:
        async with open_api(tmp_path, hold=0.1) as broker:
            await broker.client.post("/generate", json={"prompt": "a fox"})
    (line,), (created,) = request_lines(lines), [line for line in lines if line["action"] == "task_created"]
    assert lines.index(created) < lines.index(line)
    assert created["request_id"] == line["request_id"]
    assert "task" not in line


@pytest.mark.parametrize(
    ("given", "is_taken"),
    [("abc-1.2_3", True), ("x" * 64, True), ("x" * 65, False), ("", False), ("a b", False), ("a\u00ffb", False)],
)
async def test_a_plain_request_id_is_taken(tmp_path: Path, given: str, is_taken: bool) -> None:
    async with open_api(tmp_path) as broker:
        answer = await broker.client.get("/health", headers=[(b"x-request-id", given.encode("latin-1"))])
        twice = await broker.client.get("/health", headers=[("x-request-id", "a"), ("x-request-id", "b")])
    assert (answer.headers["x-request-id"] == given) is is_taken
    assert twice.headers.get_list("x-request-id")[0] not in {"a", "b"}


async def test_polls_health_and_images_are_logged_at_debug_only(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.DEBUG, "broker"), captured_lines() as lines:
        async with open_api(tmp_path) as broker:
            task = await broker.add_task(state=TaskState.SUCCEEDED, ended_at=broker.services.clock.now())
            image = await broker.add_image(task.id, png())
            for path in (f"/api/task/{task.id}", f"/api/batch/{task.batch}", f"/uploads/images/{image.name}"):
                answer = await broker.client.get(path)
                assert answer.status_code in {200, 404}
            etag = (await broker.client.get(f"/api/task/{task.id}")).headers["etag"]
            await broker.client.get(f"/api/task/{task.id}", headers={"If-None-Match": etag})
            await broker.client.get("/health")
            await broker.client.get(UNKNOWN)
            page = (await broker.client.get("/metrics")).text
    levels = [(line["operation"], line["status"], line["level"]) for line in request_lines(lines)]
    assert ("getTask", 200, "debug") in levels
    assert ("getTask", 304, "debug") in levels
    assert ("getImage", 200, "debug") in levels
    assert ("health", 200, "debug") in levels
    assert ("getTask", 404, "info") in levels
    assert 'broker_http_requests_total{operation="getTask",status="304"} 1.0' in page


async def test_paths_and_queries_are_not_logged(tmp_path: Path) -> None:
    """They may hold keys, tokens and ids that are secrets."""
    with captured_lines() as lines:
        async with open_api(tmp_path) as broker:
            await broker.client.post("/api/webhook/kie?task=x&token=canary", content=b"{}")
            await broker.client.get("/canary?key=canary")
    assert [line["route"] for line in request_lines(lines)] == ["/api/webhook/{provider}", None]
    assert [line["operation"] for line in request_lines(lines)] == ["receiveProviderCallback", "unmatched"]
    assert "canary" not in str(lines)
