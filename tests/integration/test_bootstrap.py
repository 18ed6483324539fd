"""Opening the system: agreement with other processes, and conditions that stop the start."""

from __future__ import annotations

from contextlib import AsyncExitStack
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from broker.bootstrap import database_for, load_settings, open_services
from broker.clock import Clock, SystemClock
from broker.errors import SettingsError
from broker.services import Services
from storage.errors import StorageError
from tests.support.brokers import still
from tests.support.log_lines import captured_lines
from tests.support.servers.postgres import Postgres
from tests.support.small_disk import small_disk

pytestmark = pytest.mark.anyio


async def opened(stack: AsyncExitStack, folder: Path, *, clock: Clock | None = None, **settings: Any) -> Services:
    chosen = load_settings(
        env_file=None,
        kie_keys="test-key",
        api_url="http://127.0.0.1:9",
        tunnel_api="http://127.0.0.1:9",
        data_dir=folder,
        **settings,
    )
    return await stack.enter_async_context(open_services(chosen, clock=clock))


async def test_processes_on_one_folder_share_its_secret(tmp_path: Path, postgres: Postgres) -> None:
    url = await postgres.fresh()
    async with AsyncExitStack() as stack:
        one = await opened(stack, tmp_path, database_url=url)
        two = await opened(stack, tmp_path, database_url=url)
        assert one.tokens.secret == two.tokens.secret


async def test_process_with_its_own_generated_secret_does_not_join(tmp_path: Path, postgres: Postgres) -> None:
    """It would reject the callbacks of the others."""
    url = await postgres.fresh()
    async with AsyncExitStack() as stack:
        shared: dict[str, Any] = {"database_url": url, "blob_url": f"file:{tmp_path / 'blobs'}"}
        await opened(stack, tmp_path / "one", **shared)
        with pytest.raises(SettingsError, match="SECRET_KEY is not set"):
            await opened(stack, tmp_path / "two", **shared)
        secret = (tmp_path / "one" / "secret.key").read_text()
        await opened(stack, tmp_path / "two", secret_key=secret, **shared)


async def test_process_with_its_own_folder_does_not_join(tmp_path: Path, postgres: Postgres) -> None:
    """It would not find half of the images."""
    shared: dict[str, Any] = {"database_url": await postgres.fresh(), "secret_key": "the same for all of them"}
    async with AsyncExitStack() as stack:
        await opened(stack, tmp_path / "one", **shared)
        with pytest.raises(SettingsError, match="the same bucket"):
            await opened(stack, tmp_path / "two", **shared)
        await opened(stack, tmp_path / "two", **shared, blob_url=f"file:{tmp_path / 'one' / 'blobs'}")


async def test_process_with_a_wrong_clock_does_not_join(tmp_path: Path, postgres: Postgres) -> None:
    """It would take over running steps of the others, or delete recent images."""
    url = await postgres.fresh()
    async with AsyncExitStack() as stack:
        for seconds in (-3600.0, 60.0):
            with pytest.raises(SettingsError, match="NTP"):
                await opened(stack, tmp_path, clock=SetClock(seconds), database_url=url)
        with captured_lines() as logs:
            await opened(stack, tmp_path, clock=SetClock(4.0), database_url=url)
        assert [line["level"] for line in logs if line["action"] == "clock_skew"] == ["warning"]


class SetClock(SystemClock):
    """The system's clock, set by some seconds."""

    def __init__(self, by: float) -> None:
        self._by = by

    def now(self) -> float:
        return super().now() + self._by


async def test_configured_secret_replaces_the_previous_one(tmp_path: Path, postgres: Postgres) -> None:
    url = await postgres.fresh()
    async with AsyncExitStack() as stack:
        with captured_lines() as logs:
            await opened(stack, tmp_path, database_url=url, secret_key="the first secret")
        assert [line for line in logs if line["action"] == "secret_changed"] == []
        with captured_lines() as logs:
            await opened(stack, tmp_path, database_url=url, secret_key="the second secret")
        assert [line["level"] for line in logs if line["action"] == "secret_changed"] == ["warning"]
        with captured_lines() as logs:
            await opened(stack, tmp_path, database_url=url, secret_key="the second secret")
            old: dict[str, Any] = {"old_secret_keys": "the second secret"}
            await opened(stack, tmp_path, database_url=url, secret_key="the third secret", **old)
            await opened(stack, tmp_path, database_url=url, secret_key="the third secret")
        assert [line for line in logs if line["action"] == "secret_changed"] == []


@pytest.mark.parametrize(
    ("url", "cure"),
    [
        ("postgresql://user:hunter2@127.0.0.1:9/broker", "does Postgres run"),
        ("postgresql://postgres:hunter2@127.0.0.1:{port}/missing", "check DATABASE_URL"),
    ],
)
async def test_missing_database_is_reported_with_its_cure(
    tmp_path: Path, postgres: Postgres, url: str, cure: str
) -> None:
    impatient = partial(database_for, retry_seconds=0.5)
    with pytest.raises(StorageError, match=cure) as caught:
        async with still(tmp_path, SystemClock(), open_database=impatient, database_url=url.format(port=postgres.port)):
            pass
    assert "hunter2" not in f"{caught.value!r} {caught.value.__cause__!r} {caught.value.__context__!r}"


async def test_first_start_on_a_full_disk_says_so(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", mebibytes=1) as disk:
        disk.fill()
        async with AsyncExitStack() as stack:
            with pytest.raises(SettingsError, match=r"BROKER_DATA_DIR cannot be used .*: free some space on its disk"):
                await opened(stack, disk.folder / "data")
