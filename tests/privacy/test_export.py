"""GET /api/me/export: everything of the sender and nothing of others, in bounded memory."""

from __future__ import annotations

import asyncio
import io
import json
import os
import secrets
import zipfile
from contextlib import aclosing
from pathlib import Path
from typing import Any, Final

import pytest

from broker.principal import Principal
from storage.ids import new_image_name, new_task_id
from storage.states import TaskState
from storage.tasks import Task
from tests.dialects.test_kie import open_files
from tests.privacy.canaries import WORD, add_key, add_user
from tests.privacy.planted_account import plant_account
from tests.support.api import ApiBroker, a_task, open_api, png

pytestmark = pytest.mark.anyio

KEY: Final = "key-of-the-operator-0123456789"
MIB: Final = 2**20
LISTS: Final = {
    *("sessions", "apiKeys", "providerKeys", "conversations", "tasks"),
    *("batches", "uploadedFiles", "webhooks", "costs"),
}


def read_archive(content: bytes) -> tuple[dict[str, Any], dict[str, bytes]]:
    """Return the document and the files of an export."""
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        assert archive.testzip() is None
        files = {name: archive.read(name) for name in archive.namelist()}
    return json.loads(files.pop("data.json")), files


async def export(broker: ApiBroker, owner: str) -> tuple[dict[str, Any], dict[str, bytes]]:
    principal = Principal(owner=owner, is_admin=False, name="ada")
    async with aclosing(broker.services.account_exporter.write_archive(principal)) as pieces:
        return read_archive(b"".join([piece async for piece in pieces]))


async def add_ended(broker: ApiBroker, owner: str, **changes: Any) -> Task:
    now = broker.services.clock.now()
    ended = {"state": TaskState.SUCCEEDED, "ended_at": now, "caller": owner}
    return await broker.add_task(id=new_task_id(now), **{**ended, **changes})


async def test_export_has_everything_of_the_account_and_nothing_of_others(tmp_path: Path) -> None:
    async with open_api(tmp_path, api_keys=(KEY,)) as broker:
        ada, bob = [await plant_account(broker, name) for name in ("ada-lovelace", "bob-by-name")]
        await broker.add_task(id=f"task_{'a' * 43}", prompt="of the house")
        secret, _ = await add_key(broker, ada.user.id, "another")
        answer = await broker.client.get("/api/me/export", headers={"Authorization": f"Bearer {secret}"})
        assert (answer.status_code, answer.headers["content-type"]) == (200, "application/zip")
        assert answer.headers["content-disposition"].startswith("attachment;")
        data, files = read_archive(answer.content)
        assert data.keys() == {"formatVersion", "exportedAt", "account", *LISTS}
        assert all(data[name] for name in LISTS), "something of each"
        assert (data["account"]["id"], data["account"]["name"]) == (ada.user.id, "ada-lovelace")
        kept = {task.id: task for task in ada.content.tasks if task.state != TaskState.EXPIRED}
        tasks = {task["id"]: task for task in data["tasks"]}
        assert tasks.keys() > kept.keys()
        assert len(tasks) == len(kept) + 1
        for task in kept.values():
            shown = tasks[task.id]
            assert (shown["prompt"], shown["callbackUrl"]) == (task.prompt, task.callback_url)
            assert (shown["texts"], shown["request"], shown["parameters"]) == ([*task.texts], task.origin, task.params)
        done = next(task for task in kept.values() if task.state == TaskState.SUCCEEDED)
        (result,), (reference,) = tasks[done.id]["files"], tasks[done.id]["referenceFiles"]
        assert files == {result: png(), reference: png(), data["uploadedFiles"][0]["file"]: png("green")}
        assert data["conversations"][0]["turns"][0]["tasks"] == [done.id]
        assert data["providerKeys"][0].keys() == {"provider", "lastFour", "createdAt"}
        assert {key["name"] for key in data["apiKeys"]} == {"ada-lovelace's key", "another"}
        assert sum(cost["attempts"] for cost in data["costs"]) == len(TaskState) + 1 + 4
        text = json.dumps(data)
        rows = await broker.services.database.fetch(
            "SELECT digest FROM api_keys UNION SELECT sealed FROM provider_keys"
        )
        for hidden in (f"{WORD}-provider-key", secret, *(row["digest"] for row in rows), *bob.marks, "of the house"):
            assert hidden not in text, hidden


async def test_export_of_the_operator_has_what_its_key_has_made(tmp_path: Path) -> None:
    async with open_api(tmp_path, api_keys=(KEY,)) as broker:
        headers = {"Authorization": f"Bearer {KEY}"}
        task = (await broker.client.post("/api/generate/image", json={"prompt": "ours"}, headers=headers)).json()[
            "taskId"
        ]
        await add_ended(broker, (await add_user(broker, "ada")).id)
        data, _ = read_archive((await broker.client.get("/api/me/export", headers=headers)).content)
        assert [one["id"] for one in data["tasks"]] == [task]
        assert (await broker.client.head("/api/me/export", headers=headers)).status_code == 200


async def test_a_thousand_tasks_and_large_images_are_sent_in_small_pieces(tmp_path: Path) -> None:
    async with open_api(tmp_path) as broker:
        owner, now = (await add_user(broker, "ada")).id, broker.services.clock.now()
        tasks = [
            a_task(now + number, id=new_task_id(now), caller=owner, prompt=secrets.token_hex(2000))
            for number in range(1000)
        ]
        tables = broker.services.tables
        await broker.services.database.transact(*(tables.tasks.insert_task(task) for task in tasks))
        large = await add_ended(broker, owner)
        await broker.add_image(large.id, os.urandom(3 * MIB))
        longest = total = 0
        principal = Principal(owner=owner, is_admin=False, name="ada")
        async with aclosing(broker.services.account_exporter.write_archive(principal)) as pieces:
            collected = bytearray()
            async for piece in pieces:
                longest, total = max(longest, len(piece)), total + len(piece)
                collected += piece
        assert longest < 1.1 * MIB
        data, files = read_archive(bytes(collected))
        assert (len(data["tasks"]), [len(file) for file in files.values()]) == (1001, [3 * MIB])


async def test_image_that_is_deleted_in_the_meantime_is_named_as_missing(tmp_path: Path) -> None:
    async with open_api(tmp_path) as broker:
        owner = (await add_user(broker, "ada")).id
        first, second = [await add_ended(broker, owner) for _ in range(2)]
        images = [
            await broker.add_image(task.id, png(), name=new_image_name("generated", task.created_at, "png"))
            for task in (first, second)
        ]
        await broker.services.blobs.delete(first.id)
        data, files = await export(broker, owner)
        assert len(data["tasks"]) == 2
        assert files.keys() == {f"images/{images[1].name}", "missing.json"}
        assert json.loads(files["missing.json"]) == {"files": [f"images/{images[0].name}"]}


async def test_client_that_leaves_ends_the_export(tmp_path: Path) -> None:
    async with open_api(tmp_path, sockets=True) as broker:
        task = await add_ended(broker, "house:local")
        await broker.add_image(task.id, os.urandom(32 * MIB))
        async with broker.client.stream("GET", "/api/me/export") as answer:
            async for _ in answer.aiter_raw(MIB):
                assert any(f"/{task.id}." in name for name in open_files()), "the image is being sent"
                break
        async with asyncio.timeout(5):
            while any(f"/{task.id}." in name for name in open_files()):  # noqa: ASYNC110
                await asyncio.sleep(0.01)
