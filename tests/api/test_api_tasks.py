"""Tasks over HTTP: polls, streams, pages and cancellation."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from storage.states import TaskState
from tests.support.api import ApiBroker, open_api, png, task_cache

pytestmark = pytest.mark.anyio

KEYS = """id status prompt model mode aspectRatio resolution result results texts error errorDetail progress provider
    attempts cost createdAt updatedAt expiresAt generation""".split()
NOTHING_KNOWN = dict.fromkeys(("stage", "position", "providerState", "percent", "etaSeconds"))


async def get_data(broker: ApiBroker, task_id: str, **headers: str) -> dict[str, Any]:
    answer = await broker.client.get(f"/api/task/{task_id}", headers=headers)
    assert answer.status_code == 200, answer.text
    assert answer.json()["success"] is True
    data: dict[str, Any] = answer.json()["data"]
    return data


# -- the document


async def test_running_task_has_the_keys_of_the_contract(tmp_path: Path) -> None:
    """Without an unknown percentage, and without the error of the last attempt."""
    async with open_api(tmp_path) as broker:
        trouble = {"error_code": "provider_unavailable", "error_detail": "503 from upstream"}
        task = await broker.add_task(created_at=1_790_000_000.5, updated_at=1_790_000_001.0, **trouble)
        data = await get_data(broker, task.id)
        assert list(data) == KEYS
        assert (data["status"], data["progress"]) == ("processing", {**NOTHING_KNOWN, "stage": "waiting"})
        assert (data["error"], data["errorDetail"], data["expiresAt"], data["generation"]) == (None, None, None, None)
        assert data["createdAt"] == "2026-09-21T14:13:20.500Z"
        assert data["cost"] is None


async def test_cost_has_the_unit_of_the_provider_that_made_the_image(tmp_path: Path) -> None:
    async with open_api(tmp_path) as broker:
        task = await broker.add_task(provider="kie", cost=4.0, cost_usd=0.02)
        assert (await get_data(broker, task.id))["cost"] == {"amount": 4.0, "unit": "credits", "usd": 0.02}
        task = await broker.add_task(number=2, provider="legacy", cost=1.5)
        assert (await get_data(broker, task.id))["cost"] == {"amount": 1.5, "unit": None, "usd": None}


STATES: list[tuple[TaskState, dict[str, Any], str, str]] = [
    (TaskState.QUEUED, {"attempt": 0}, "pending", "queued"),
    (TaskState.QUEUED, {"attempt": 1}, "processing", "queued"),
    (TaskState.SUBMITTING, {}, "processing", "submitting"),
    (TaskState.WAITING, {}, "processing", "waiting"),
    (TaskState.FETCHING, {}, "processing", "downloading"),
    (TaskState.FETCHING, {"ended_at": 1.0, "error_code": "download_failed"}, "failed", "done"),
    (TaskState.FAILED, {"ended_at": 1.0, "error_code": "no_image"}, "failed", "done"),
    (TaskState.CANCELED, {"ended_at": 1.0, "error_code": "canceled"}, "canceled", "done"),
]


async def test_every_state_has_a_status_and_a_stage(tmp_path: Path) -> None:
    async with open_api(tmp_path) as broker:
        for number, (state, changes, status, stage) in enumerate(STATES):
            task = await broker.add_task(number=number, state=state, **changes)
            data = await get_data(broker, task.id)
            assert (data["status"], data["progress"]["stage"]) == (status, stage)
            assert (data["error"] is not None) == (status in {"failed", "canceled"})


async def test_failure_is_reported_in_the_language_of_the_caller(tmp_path: Path) -> None:
    """A sentence for people, a code for programs, and the message of the provider."""
    async with open_api(tmp_path) as broker:
        task = await broker.add_task(
            state=TaskState.FAILED, ended_at=1_790_000_000.0, error_code="safety_input", error_detail="flagged: 敏感",
            billed="no", provider_code="400",
        )  # fmt: skip
        english, chinese, russian = [
            await get_data(broker, task.id, **{"Accept-Language": w}) for w in ("en", "zh", "ru")
        ]
        assert len({english["error"], chinese["error"], russian["error"]}) == 3
        assert "safety filter" in english["error"]
        assert chinese["errorDetail"] == {
            "code": "safety_input",
            "retryable": False,
            "billed": "no",
            "provider": "kie",
            "providerCode": "400",
            "message": "flagged: 敏感",
        }
        assert english["expiresAt"] == "2026-09-22T14:13:20.000Z"


async def test_completed_task_has_results_and_a_generation_record(tmp_path: Path) -> None:
    async with open_api(tmp_path) as broker:
        task = await broker.add_task(
            state=TaskState.SUCCEEDED, ended_at=1_790_000_000.0, outputs=("https://a/1", "https://a/2"),
            params={"steps": 30},
            aspect_ratio="1:1",
        )  # fmt: skip
        images = [await broker.add_image(task.id, png(color), position=n) for n, color in enumerate(("red", "blue"))]
        data = await get_data(broker, task.id)
        assert data["result"] == f"/uploads/images/{images[0].name}"
        assert [result["url"] for result in data["results"]] == [f"/uploads/images/{image.name}" for image in images]
        assert data["results"][1] == {
            "url": f"/uploads/images/{images[1].name}",
            "width": 4,
            "height": 4,
            "bytes": images[1].size,
            "mediaType": "image/png",
            "sha256": images[1].sha256,
            "thumbnail": f"/uploads/images/{images[1].name}?size=512",
            "requested": {"width": 1024, "height": 1024},
            "actual": {"width": 4, "height": 4},
            "mismatch": True,
        }
        assert data["generation"] == {
            "id": task.id,
            "type": "image",
            "mode": "text-to-image",
            "model": "nano-banana",
            "prompt": "a banana",
            "url": data["result"],
            "timestamp": "2026-09-21T14:13:20.000Z",
            "aspectRatio": "1:1",
            "steps": 30,
        }
        assert (await broker.client.get(data["result"])).content == png("red")


@pytest.mark.parametrize(
    ("order", "size", "requested", "mismatch"),
    [
        ({"aspect_ratio": "16:9"}, (1344, 768), (1344, 768), False),
        ({"aspect_ratio": "16:9"}, (1024, 1024), (1344, 768), True),
        ({"aspect_ratio": "16:9", "resolution": "2K", "model": "nano-banana-pro"}, (2752, 1536), (2752, 1536), False),
        ({"aspect_ratio": "16:9", "resolution": "2K", "model": "nano-banana-pro"}, (1376, 768), (2752, 1536), True),
        ({"aspect_ratio": "auto"}, (640, 480), None, False),
        ({}, (640, 480), None, False),
        ({"aspect_ratio": "1:1", "model": "a-model-of-yesterday"}, (640, 480), None, False),
    ],
)
async def test_result_says_whether_it_has_the_size_that_was_ordered(
    tmp_path: Path, order: dict[str, Any], size: tuple[int, int], requested: tuple[int, int] | None, mismatch: bool
) -> None:
    async with open_api(tmp_path) as broker:
        task = await broker.add_task(state=TaskState.SUCCEEDED, ended_at=1_790_000_000.0, **order)
        await broker.add_image(task.id, png(), width=size[0], height=size[1])
        (result,) = (await get_data(broker, task.id))["results"]
        assert result["requested"] == (requested and {"width": requested[0], "height": requested[1]})
        assert result["actual"] == {"width": size[0], "height": size[1]}
        assert result["mismatch"] is mismatch


async def test_text_that_the_model_wrote_is_returned_with_the_images(tmp_path: Path) -> None:
    async with open_api(tmp_path) as broker:
        task = await broker.add_task(
            state=TaskState.SUCCEEDED, ended_at=1_790_000_000.0, provider="gemini", texts=("Here it is.", "Еще одна.")
        )
        data = await get_data(broker, task.id)
        assert (data["texts"], data["provider"]) == (["Here it is.", "Еще одна."], "gemini")
        silent = await broker.add_task(number=2)
        assert (await get_data(broker, silent.id))["texts"] == []


IDS_OF_NOTHING = [
    *("task_", "x", "..", "🍌", "task_٠", "'; DROP TABLE tasks", "%00", "%0a", "%ff%fe", "%2e%2e%2fetc%2fpasswd"),
    *("task_" + digits for digits in ("0" * 43, "0" * 32, "0" * 44, "A" * 43, "0" * 43 + "%0a", "0" * 5000)),
]


async def test_unknown_id_is_not_found(tmp_path: Path) -> None:
    async with open_api(tmp_path) as broker:
        for task_id in IDS_OF_NOTHING:
            for path in (f"/api/task/{task_id}", f"/api/task/{task_id}/events"):
                answer = await broker.client.get(path)
                assert answer.status_code == 404, task_id
                assert answer.json()["code"] in {"task_not_found", "not_found"}, task_id
            assert (await broker.client.delete(f"/api/task/{task_id}")).status_code in {404, 405}, task_id


async def test_deleted_task_is_gone(tmp_path: Path) -> None:
    """410, not 404: the id was correct."""
    async with open_api(tmp_path) as broker:
        task = await broker.add_task(state=TaskState.SUCCEEDED, ended_at=1.0)
        assert (await get_data(broker, task.id))["status"] == "completed"
        await broker.change_task(task, state=TaskState.EXPIRED)
        for path in (f"/api/task/{task.id}", f"/api/task/{task.id}?wait=5", f"/api/task/{task.id}/events"):
            answer = await broker.client.get(path)
            assert (answer.status_code, answer.json()["code"]) == (410, "task_expired")


# -- polling


async def test_not_modified_until_something_visible_changes(tmp_path: Path) -> None:
    """A lease changes the row, but no visible field."""
    async with open_api(tmp_path) as broker:
        task = await broker.add_task()
        path = f"/api/task/{task.id}"
        first = await broker.client.get(path)
        tag = first.headers["etag"]
        assert (first.headers["retry-after"], first.headers["cache-control"]) == ("3", "private, no-cache")
        for offered in (tag, f"W/{tag}", f'"other", {tag}', "*", f'"a",W/"b" , W/{tag}'):
            answer = await broker.client.get(path, headers={"If-None-Match": offered})
            assert (answer.status_code, answer.content, answer.headers["etag"]) == (304, b"", tag), offered
            assert answer.headers["retry-after"] == "3"
        for offered in ('"other"', tag.strip('"'), "", tag[:-2] + '"', "W/" + tag.strip('"')):
            assert (await broker.client.get(path, headers={"If-None-Match": offered})).status_code == 200, offered
        await broker.change_task(task, leased_by="worker", lease_until=5.0)
        assert (await broker.client.get(path, headers={"If-None-Match": tag})).status_code == 304
        await broker.change_task(task, state=TaskState.FAILED, ended_at=5.0, error_code="no_image")
        last = await broker.client.get(path, headers={"If-None-Match": tag})
        assert (last.status_code, last.json()["data"]["status"]) == (200, "failed")
        assert "retry-after" not in last.headers


async def test_head_is_get_without_the_body(tmp_path: Path) -> None:
    async with open_api(tmp_path) as broker:
        task = await broker.add_task()
        got, headed = [await broker.client.request(method, f"/api/task/{task.id}") for method in ("GET", "HEAD")]
        assert (headed.status_code, headed.content) == (200, b"")
        for name in ("etag", "content-length", "content-type", "retry-after"):
            assert headed.headers[name] == got.headers[name]


async def test_kept_response_is_sent_until_what_it_shows_changes(tmp_path: Path) -> None:
    """Whatever statement changes it."""
    async with open_api(tmp_path) as broker:
        task = await broker.add_task()
        cache = task_cache(broker.services)
        first = await cache.response(task.id, "en")
        await broker.services.database.execute("UPDATE tasks SET leased_by = 'a worker', version = version + 1")
        assert await cache.response(task.id, "en") is first
        assert await cache.response(task.id, "zh") is not first
        await broker.services.database.execute("UPDATE tasks SET prompt = 'changed without a version'")
        for language in ("en", "zh"):
            assert b'"prompt":"changed without' in (await cache.response(task.id, language)).body


async def test_cache_size_is_limited(tmp_path: Path) -> None:
    """In bytes: one prompt may be as long as forty others."""
    async with open_api(tmp_path) as broker:
        cache = task_cache(broker.services, max_bytes=5_000)
        tasks = [await broker.add_task(number=n, prompt="x" * 900) for n in range(20)]
        for task in tasks:
            size = len((await cache.response(task.id, "en")).body)
        assert 0 < cache.size_bytes <= 5_000
        assert cache.size_bytes % size == 0
        assert await cache.response(tasks[-1].id, "en") is await cache.response(tasks[-1].id, "en")


async def test_wait_ends_with_the_task(tmp_path: Path) -> None:
    """Long before its time is over."""
    async with open_api(tmp_path) as broker:
        task = await broker.add_task()
        waiting = asyncio.create_task(broker.client.get(f"/api/task/{task.id}?wait=30"))
        await broker.wait_for_listener(task)
        await broker.change_task(task, updated_at=2.0)
        await broker.change_task(task, state=TaskState.CANCELED, ended_at=5.0, error_code="canceled")
        async with asyncio.timeout(5):
            assert (await waiting).json()["data"]["status"] == "canceled"


async def test_wait_ends_after_its_time(tmp_path: Path) -> None:
    async with open_api(tmp_path) as broker:
        task = await broker.add_task()
        async with asyncio.timeout(5):
            for wait in ["0", "0.1", "0.05", "", "00.1"]:
                assert (await broker.client.get(f"/api/task/{task.id}?wait={wait}")).status_code == 200


@pytest.mark.parametrize(
    "wait", ["-1", "abc", "nan", "inf", "1e9", "٣", "1,5", " 1", "0x1", "1.", "9" * 30, "%00", "--"]
)
async def test_invalid_wait_is_rejected(tmp_path: Path, wait: str) -> None:
    async with open_api(tmp_path) as broker:
        task = await broker.add_task()
        answer = await broker.client.get(f"/api/task/{task.id}?wait={wait}")
        assert (answer.status_code, answer.json()["field"]) == (400, "wait")


async def test_longer_wait_than_allowed_is_shortened(tmp_path: Path) -> None:
    async with open_api(tmp_path) as broker:
        task = await broker.add_task(state=TaskState.CANCELED, ended_at=5.0)
        assert (await broker.client.get(f"/api/task/{task.id}?wait=99999999")).status_code == 200


# -- the stream


async def stream(broker: ApiBroker, path: str, **headers: str) -> list[tuple[str, dict[str, Any]]]:
    """Return all events of a stream, until it ends: (id, document)."""
    answer = await broker.client.get(path, headers=headers)
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"].startswith("text/event-stream")
    return parsed(answer.text)


def parsed(text: str) -> list[tuple[str, dict[str, Any]]]:
    events = []
    for block in text.split("\n\n"):
        fields = dict(line.split(": ", 1) for line in block.splitlines() if not line.startswith(":"))
        if "data" in fields:
            events.append((fields["id"], json.loads(fields["data"])))
    return events


async def test_stream_sends_the_state_each_change_and_the_end(tmp_path: Path) -> None:
    async with open_api(tmp_path, sockets=True) as broker:
        task = await broker.add_task()
        received = ""
        async with asyncio.timeout(10), broker.client.stream("GET", f"/api/task/{task.id}/events") as answer:
            async for text in answer.aiter_text():
                received += text
                statuses = [document["data"]["progress"]["stage"] for _, document in parsed(received)]
                if statuses == ["waiting"]:
                    await broker.change_task(task, leased_by="w")
                    await broker.change_task(task, state=TaskState.FETCHING)
                elif statuses == ["waiting", "downloading"]:
                    await broker.change_task(task, state=TaskState.SUCCEEDED, ended_at=5.0)
        events = parsed(received)
        assert [document["data"]["status"] for _, document in events] == ["processing", "processing", "completed"]
        assert len({event_id for event_id, _ in events}) == 3


async def test_stream_does_not_repeat_the_last_event(tmp_path: Path) -> None:
    """A browser that reconnects sends the id of its last event; after the end it receives 204."""
    async with open_api(tmp_path, sockets=True) as broker:
        task = await broker.add_task(state=TaskState.FAILED, ended_at=5.0, error_code="no_image")
        path = f"/api/task/{task.id}/events"
        ((event_id, document),) = await stream(broker, path)
        assert document["data"] == (await get_data(broker, task.id))
        again = await broker.client.get(path, headers={"Last-Event-ID": event_id})
        assert (again.status_code, again.content) == (204, b"")
        assert len(await stream(broker, path, **{"Last-Event-ID": "older"})) == 1
        headed = await broker.client.head(path)
        assert (headed.status_code, headed.content) == (200, b"")


async def test_reconnected_stream_continues_after_the_last_event(tmp_path: Path) -> None:
    async with open_api(tmp_path, sockets=True) as broker:
        task = await broker.add_task()
        path = f"/api/task/{task.id}/events"
        async with broker.client.stream("GET", path) as answer:
            async for text in answer.aiter_text():
                ((event_id, _),) = parsed(text)
                break
        following = asyncio.create_task(stream(broker, path, **{"Last-Event-ID": event_id}))
        await broker.wait_for_listener(task)
        await broker.change_task(task, state=TaskState.SUCCEEDED, ended_at=5.0)
        async with asyncio.timeout(5):
            events = await following
        assert [document["data"]["status"] for _, document in events] == ["completed"]


async def test_reconnection_at_the_moment_of_the_end_receives_the_end(tmp_path: Path) -> None:
    """Not the 204 after which a browser gives up: the end may come between two reads of the same request."""
    async with open_api(tmp_path, sockets=True) as broker:
        for number in range(1, 41):
            task = await broker.add_task(number=number)
            running = await broker.client.get(f"/api/task/{task.id}")
            last = {"Last-Event-ID": running.headers["etag"].strip('"')}
            ending = asyncio.create_task(broker.change_task(task, state=TaskState.SUCCEEDED, ended_at=5.0))
            await asyncio.sleep(number / 20_000)
            events = await stream(broker, f"/api/task/{task.id}/events", **last)
            await ending
            assert [document["data"]["status"] for _, document in events] == ["completed"]


async def test_stream_ends_when_its_task_is_deleted(tmp_path: Path) -> None:
    async with open_api(tmp_path, sockets=True) as broker:
        task = await broker.add_task()
        async with asyncio.timeout(10), broker.client.stream("GET", f"/api/task/{task.id}/events") as answer:
            received = ""
            async for text in answer.aiter_text():
                received += text
                await broker.change_task(task, state=TaskState.EXPIRED)
        assert len(parsed(received)) == 1


# -- canceling


async def test_cancel_ends_a_waiting_task(tmp_path: Path) -> None:
    async with open_api(tmp_path) as broker:
        task = await broker.add_task()
        answer = await broker.client.delete(f"/api/task/{task.id}")
        assert (answer.status_code, answer.json()["data"]["status"]) == (200, "canceled")
        again = await broker.client.delete(f"/api/task/{task.id}", params={"cancelOnly": "true"})
        assert (again.status_code, again.json()["code"]) == (409, "conflict")


@pytest.mark.parametrize("state", [TaskState.SUCCEEDED, TaskState.FAILED, TaskState.FETCHING])
async def test_cancel_is_rejected_when_it_is_too_late(tmp_path: Path, state: TaskState) -> None:
    async with open_api(tmp_path) as broker:
        task = await broker.add_task(state=state, ended_at=None if state == TaskState.FETCHING else 5.0)
        before = await broker.services.tables.tasks.get(task.id)
        answer = await broker.client.delete(f"/api/task/{task.id}", params={"cancelOnly": "true"})
        assert (answer.status_code, answer.json()["code"]) == (409, "conflict")
        assert await broker.services.tables.tasks.get(task.id) == before


# -- the list


async def test_pages_list_every_task_once_newest_first(tmp_path: Path) -> None:
    """Tasks of one moment have a fixed order; none is listed twice when new ones arrive between pages."""
    async with open_api(tmp_path) as broker:
        tasks = [await broker.add_task(number=n, created_at=1_790_000_000.0 + n // 3) for n in range(1, 26)]
        seen: list[str] = []
        cursor: str | None = None
        while True:
            params = {"limit": "4", **({"cursor": cursor} if cursor else {})}
            page = (await broker.client.get("/api/tasks", params=params)).json()
            seen += [data["id"] for data in page["data"]]
            assert list(page["data"][0]) == KEYS
            await broker.add_task(number=1000 + len(seen), created_at=1_800_000_000.0)
            cursor = page["nextCursor"]
            if cursor is None:
                break
        expected = sorted(tasks, key=lambda task: (task.created_at, task.id), reverse=True)
        assert seen == [task.id for task in expected]


async def test_list_can_be_filtered_by_status(tmp_path: Path) -> None:
    async with open_api(tmp_path) as broker:
        await broker.add_task(number=1, state=TaskState.QUEUED, attempt=0)
        await broker.add_task(number=2)
        await broker.add_task(number=3, state=TaskState.SUCCEEDED, ended_at=5.0)
        await broker.add_task(number=4, state=TaskState.EXPIRED, ended_at=5.0)
        for status, number in {"pending": 1, "processing": 2, "completed": 3}.items():
            page = (await broker.client.get(f"/api/tasks?status={status}")).json()
            assert [data["id"] for data in page["data"]] == [f"task_{number:043x}"], status
        assert len((await broker.client.get("/api/tasks?status=&limit=&cursor=")).json()["data"]) == 3
        assert len((await broker.client.get("/api/tasks?limit=999999999")).json()["data"]) == 3


INVALID_QUERIES = [
        *(("limit", value) for value in ("0", "-1", "x", "1.5", "9" * 40, "%00", "٣", "1e3", " ")),
        *(("status", value) for value in ("done", "PENDING", "%00", "expired", "' OR 1=1", "x" * 5000)),
        *(("cursor", value) for value in ("x", "%00", "🍌", "=", "A" * 5000, "%ff", "1.0", "a-b", "1.0-task_x",
                                          f"1e999-task_{0:043x}", f"nan-task_{0:043x}", f"-1.0-task_{0:043x}",
                                          f"1.0-task_{0:043x}%0A", f"1.0-task_{0:043x}!", f"1.0-evt_{0:032x}")),
    ]  # fmt: skip


async def test_invalid_query_names_its_field(tmp_path: Path) -> None:
    async with open_api(tmp_path) as broker:
        for name, value in INVALID_QUERIES:
            answer = await broker.client.get(f"/api/tasks?{name}={value}")
            error = (answer.status_code, answer.json()["code"], answer.json()["field"])
            assert error == (400, "invalid_request", name), (name, value)
