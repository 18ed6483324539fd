"""Admins see states, counts and costs of other accounts: no prompt, no picture, and no id that opens one.

Every route for admins and every command is called; one that is not listed here fails.
"""

from __future__ import annotations

import io
import re
import zipfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final

import httpx
import pytest

from broker.api.http.endpoint import Endpoint
from broker.logs import LogEvent
from storage.ids import DELETED_OWNER, shorten_id
from storage.states import TaskState
from storage.tasks import Task
from tests.privacy.canaries import (
    SHOWN_NAME,
    TASK_CONTENT,
    WORD,
    Planted,
    add_key,
    add_user,
    columns_of,
    find_leaks,
    plant_content,
)
from tests.support.api import ApiBroker, open_api
from tests.support.fuzzing import endpoints_of

pytestmark = pytest.mark.anyio

KEY: Final = "key-of-the-operator-0123456789"
NOT_CONTENT: Final = set(
    """id batch caller state due_at lease_until leased_by version provider key_id candidates requested_provider routes
    priority model mode resolution attempt step_retries expects_callback tokens deadline_at checked_at error_code
    error_retryable billed cost cost_usd reserved created_at updated_at ended_at entered_at sent_at finished_at
    provider_percent pinned_at owner_images owner_micros""".split()
)
"""Columns of a task that tell nothing of its content; its ids are looked for all the same."""


def paths_of(endpoint: Endpoint, planted: Planted) -> list[str]:
    """Return the paths of an endpoint for admins with the ids of what was planted."""
    ids = {
        "/api/callbacks/{id}": planted.callbacks,
        "/api/deliveries/{id}": planted.deliveries,
        "/api/task/{id}/attempts": [task.id for task in planted.tasks],
        "/api/providers/{name}": ["kie"],
        "/docs/{file}": ["start.js"],
        "/api/users/{id}": ["user_unknown" if endpoint.method == "DELETE" else planted.owner],
    }
    if "{" not in endpoint.path:
        groups = [f"?by={by}{form}" for by in ("day", "model", "provider", "user") for form in ("", "&format=csv")]
        return [endpoint.path, *(f"{endpoint.path}{query}" for query in groups if endpoint.path == "/api/costs")]
    start = next((start for start in ids if endpoint.path.startswith(start)), None)
    assert start is not None, f"{endpoint.path} is a new route for admins: add its ids here"
    return [re.sub(r"\{[a-z]+\}", one, endpoint.path) for one in ids[start]]


@asynccontextmanager
async def planted_broker(folder: Path, **settings: Any) -> AsyncIterator[tuple[ApiBroker, list[Planted], list[str]]]:
    """Yield a broker, what a user and an API key without a user have made, and the secrets of two admins."""
    async with open_api(folder, api_keys=(KEY,), **settings) as broker:
        user = await add_user(broker)
        _, key = await add_key(broker)
        planted = [await plant_content(broker, user.id)]
        admin = await add_user(broker, "admin", is_admin=True)
        secret, _ = await add_key(broker, admin.id)
        house = await broker.add_task(
            id=f"task_{'a' * 43}", prompt="of the house", state=TaskState.FAILED, ended_at=1.0
        )
        await broker.add_task(id=f"task_{'b' * 43}", caller=key.id, prompt=WORD)
        assert house.caller == "house:local"
        yield broker, planted, [KEY, secret]


def test_every_column_of_a_task_is_content_or_not() -> None:
    """A new column needs a decision."""
    assert columns_of(Task) == NOT_CONTENT | TASK_CONTENT.keys()


def text_of(answer: httpx.Response) -> str:
    """Return what an answer says, an archive with all its files."""
    if answer.headers.get("content-type") != "application/zip":
        return answer.text
    with zipfile.ZipFile(io.BytesIO(answer.content)) as archive:
        return "\n".join(archive.read(name).decode("utf-8", "replace") for name in archive.namelist())


async def test_no_route_for_admins_shows_content(tmp_path: Path, log_lines: list[LogEvent]) -> None:
    async with planted_broker(tmp_path) as (broker, (planted,), keys):
        shown = 0
        for key in keys:
            headers = {"Authorization": f"Bearer {key}"}
            for endpoint in endpoints_of(broker):
                is_list = endpoint.access == "caller" and endpoint.method == "GET" and "{" not in endpoint.path
                if endpoint.access != "admin" and not is_list:
                    continue
                for path in paths_of(endpoint, planted):
                    answer = await broker.client.request(endpoint.method, path, headers=headers)
                    text = text_of(answer)
                    assert answer.status_code < 500, (path, text)
                    leaks = [leak for leak in find_leaks(text, planted) if leak not in path]  # an id was sent
                    leaks += [line for line in text.splitlines() if line.startswith("=")]
                    assert leaks == [], (endpoint.method, path, text[:2000])
                    shown += shorten_id(planted.tasks[0].id) in text
        assert shown >= 2 * 5  # tasks, callbacks, deliveries: the canaries had a chance
    logged = str(log_lines)
    assert "callback_replayed" in logged
    assert WORD not in logged


async def test_admin_lists_the_tasks_of_all_accounts_page_by_page(tmp_path: Path) -> None:
    async with planted_broker(tmp_path) as (broker, (planted,), keys):
        for key in keys:
            headers, seen = {"Authorization": f"Bearer {key}"}, list[dict[str, Any]]()
            cursor: str | None = ""
            while cursor is not None:
                answer = await broker.client.get("/api/tasks", params={"limit": "2", "cursor": cursor}, headers=headers)
                assert find_leaks(answer.text, planted) == []
                seen, cursor = seen + answer.json()["data"], answer.json()["nextCursor"]
            listed = {one["id"]: one for one in seen}
            kept = [task for task in planted.tasks if task.state != TaskState.EXPIRED]
            assert len(seen) == len(listed) == len(kept) + 2
            for task in kept:
                one = listed[f"{shorten_id(task.id)}…"]
                assert (one["withheld"], one["owner"], one["status"]) == (True, SHOWN_NAME, task.status)
                assert one["attempts"] == 1
            assert listed[f"task_{'a' * 43}"]["prompt"] == "of the house"
            found = await broker.client.get("/api/tasks", params={"q": WORD}, headers=headers)
            assert found.json()["data"] == []


async def test_cursor_of_an_admin_does_not_tell_the_rest_of_an_id(tmp_path: Path) -> None:
    """A cursor of one's own choice before or behind a task would find its id, digit by digit."""
    async with planted_broker(tmp_path) as (broker, (planted,), keys):
        task = next(one for one in planted.tasks if one.state != TaskState.EXPIRED)
        for key in keys:
            listed = []
            for rest in ("0", "f"):
                cursor = f"{task.created_at!r}-{shorten_id(task.id)}{rest * 24}"
                answer = await broker.client.get(
                    "/api/tasks", params={"limit": "100", "cursor": cursor}, headers={"Authorization": f"Bearer {key}"}
                )
                listed.append([one["id"] for one in answer.json()["data"]])
            assert listed[0] == listed[1]


async def test_content_is_shown_by_setting(tmp_path: Path) -> None:
    """Then every route has it, so the test above looks in the right places."""
    async with planted_broker(tmp_path, admin_sees_content=True) as (broker, (planted,), keys):
        headers = {"Authorization": f"Bearer {keys[0]}"}
        task, callback, delivery = planted.tasks[-2], planted.callbacks[0], planted.deliveries[0]
        for path in (
            "/api/tasks",
            "/api/callbacks",
            f"/api/callbacks/{callback}",
            f"/api/callbacks/{callback}/fixture",
            "/api/deliveries",
            f"/api/deliveries/{delivery}",
            f"/api/task/{task.id}/attempts",
        ):
            answer = await broker.client.get(path, headers=headers)
            assert {WORD, planted.tasks[0].id} & set(find_leaks(answer.text, planted)), path


async def test_admin_may_cancel_and_delete_a_task_whose_id_the_owner_gave_and_not_retry_it(tmp_path: Path) -> None:
    async with planted_broker(tmp_path) as (broker, (planted,), keys):
        headers = {"Authorization": f"Bearer {keys[1]}"}
        by_state = {task.state: f"/api/task/{task.id}" for task in planted.tasks}
        assert (await broker.client.delete(by_state[TaskState.WAITING], headers=headers)).status_code == 200
        assert (await broker.client.delete(by_state[TaskState.SUCCEEDED], headers=headers)).status_code == 204
        retry = await broker.client.post(f"{by_state[TaskState.FAILED]}/retry", headers=headers)
        assert (retry.status_code, retry.json()["code"]) == (404, "task_not_found"), "its owner would pay"
        replay = f"/api/callbacks/{planted.callbacks[0]}/replay"
        assert (await broker.client.post(replay, headers=headers)).json()["data"]["replayed"]
        assert (await broker.client.post(f"/api/deliveries/{planted.deliveries[1]}/replay", headers=headers)).is_success


async def test_costs_by_user_name_users_and_sum_deleted_ones(tmp_path: Path) -> None:
    async with planted_broker(tmp_path) as (broker, (planted,), _):
        for number in (1, 2):
            gone = await add_user(broker, f"gone {number}")
            await plant_content_of_deleted(broker, gone.id, number)
        answer = await broker.client.get("/api/costs?by=user", headers={"Authorization": f"Bearer {KEY}"})
        rows = {row["name"]: (row["owner"], row["attempts"]) for row in answer.json()["data"]["rows"]}
        assert rows == {SHOWN_NAME: (planted.owner, len(TaskState)), DELETED_OWNER: (DELETED_OWNER, 2)}


async def plant_content_of_deleted(broker: ApiBroker, owner: str, number: int) -> None:
    task = await broker.add_task(id=f"task_{number:043x}", caller=owner)
    await broker.services.database.execute(
        """INSERT INTO attempts (task_id, number, provider, key_id, sent_at, outcome, billed)
            VALUES (:id, 1, 'kie', 'key', :now, 'sent', 'unknown')""",
        id=task.id,
        now=broker.services.clock.now(),
    )
    await broker.services.database.execute("DELETE FROM users WHERE id = :id", id=owner)
