"""A database that stores nothing: no request is acknowledged, and readiness says so."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.api.test_api_callbacks import a_job, address, done
from tests.support.api import ApiBroker, open_api
from tests.support.small_disk import small_disk

pytestmark = pytest.mark.anyio

ORDER = {"prompt": "a banana"}


async def unready(broker: ApiBroker) -> str:
    """Return why the database is not ready; an empty text if it is."""
    answer = await broker.client.get("/ready")
    checks: dict[str, str] = answer.json()["checks"]
    assert answer.status_code == (200 if set(checks.values()) == {"ok"} else 503)
    return "" if checks["database"] == "ok" else checks["database"]


@pytest.mark.parametrize("is_replaced", [False, True])
async def test_nothing_is_acknowledged_into_a_removed_database(tmp_path: Path, is_replaced: bool) -> None:
    async with open_api(tmp_path) as broker:
        task = await a_job(broker)
        path = tmp_path / "broker.db"
        path.rename(tmp_path / "away.db")
        if is_replaced:
            path.write_bytes((tmp_path / "away.db").read_bytes())
        created = await broker.client.post("/api/generate/image", json=ORDER)
        called = await broker.client.post(address(broker, task), json=done())
        for answer in (created, called):
            assert (answer.status_code, answer.json()["code"]) == (503, "unavailable")
            assert "put that file back" in answer.json()["error"]
            assert answer.headers["retry-after"] == "5"
        translated = await broker.client.post("/api/generate/image", json=ORDER, headers={"Accept-Language": "ru"})
        assert "Файл базы данных" in translated.json()["error"]
        assert "removed or replaced" in await unready(broker)
        (tmp_path / "away.db").rename(path)
        assert not await unready(broker)
        assert (await broker.client.post("/api/generate/image", json=ORDER)).status_code == 202


async def test_readiness_follows_the_disk_of_the_database(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", 16) as disk:
        async with open_api(tmp_path, database_url=f"sqlite:///{disk.folder / 'b.db'}") as broker:
            assert not await unready(broker)
            disk.fill()
            assert (await broker.client.post("/api/generate/image", json=ORDER)).status_code == 507
            assert "full" in await unready(broker)
            disk.free()
            assert not await unready(broker)
            assert (await broker.client.post("/api/generate/image", json=ORDER)).status_code == 202


async def test_broker_starts_with_less_space_than_images_need(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", 32) as disk:
        async with open_api(disk.folder) as broker:
            task = await a_job(broker)
            assert (await broker.client.get(f"/api/task/{task.id}")).status_code == 200
            assert (await broker.client.post(address(broker, task), json=done())).status_code == 200
            assert (await broker.client.post("/api/generate/image", json=ORDER)).status_code == 202
            answer = await broker.client.get("/ready")
            assert answer.status_code == 503
            assert "less than 64 MiB" in answer.json()["checks"]["blobs"]
