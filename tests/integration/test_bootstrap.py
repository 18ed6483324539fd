"""How the system is opened: what is agreed on with other processes, and what stops the start."""

from __future__ import annotations

from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from broker.bootstrap import load_settings, open_services
from broker.clock import Clock, SystemClock
from broker.errors import SettingsError
from broker.services import Services
from storage.errors import StorageError
from tests.support.servers.postgres import Postgres

pytestmark = pytest.mark.anyio


async def opened(stack: AsyncExitStack, folder: Path, *, clock: Clock | None = None, **settings: Any) -> Services:
    chosen = load_settings(
        env_file=None,
        api_key="test-key",
        api_url="http://127.0.0.1:9",
        tunnel_api="http://127.0.0.1:9",
        data_dir=folder,
        **settings,
    )
    return await stack.enter_async_context(open_services(chosen, clock=clock))


async def test_processes_that_share_a_folder_share_its_secret(tmp_path: Path, postgres: Postgres) -> None:
    url = await postgres.fresh()
    async with AsyncExitStack() as stack:
        one = await opened(stack, tmp_path, database_url=url)
        two = await opened(stack, tmp_path, database_url=url)
        assert one.tokens.secret == two.tokens.secret


async def test_a_machine_with_a_secret_of_its_own_making_does_not_join(tmp_path: Path, postgres: Postgres) -> None:
    """It would refuse the callbacks that the others asked for."""
    url = await postgres.fresh()
    async with AsyncExitStack() as stack:
        shared: dict[str, Any] = {"database_url": url, "blob_url": f"file:{tmp_path / 'blobs'}"}
        await opened(stack, tmp_path / "one", **shared)
        with pytest.raises(SettingsError, match="SECRET_KEY is not set"):
            await opened(stack, tmp_path / "two", **shared)
        secret = (tmp_path / "one" / "secret.key").read_text()
        await opened(stack, tmp_path / "two", secret_key=secret, **shared)


async def test_a_machine_with_a_folder_of_its_own_does_not_join(tmp_path: Path, postgres: Postgres) -> None:
    """Half of the images would not be found."""
    shared: dict[str, Any] = {"database_url": await postgres.fresh(), "secret_key": "the same for all of them"}
    async with AsyncExitStack() as stack:
        await opened(stack, tmp_path / "one", **shared)
        with pytest.raises(SettingsError, match="the same bucket"):
            await opened(stack, tmp_path / "two", **shared)
        await opened(stack, tmp_path / "two", **shared, blob_url=f"file:{tmp_path / 'one' / 'blobs'}")


async def test_a_machine_with_a_wrong_clock_does_not_join(tmp_path: Path, postgres: Postgres) -> None:
    """It would take over what the others still work on, or delete what is young."""
    url = await postgres.fresh()
    async with AsyncExitStack() as stack:
        for seconds in (-3600.0, 60.0):
            with pytest.raises(SettingsError, match="NTP"):
                await opened(stack, tmp_path, clock=SetClock(seconds), database_url=url)
        with capture_logs() as logs:
            await opened(stack, tmp_path, clock=SetClock(4.0), database_url=url)
        assert [line["log_level"] for line in logs if line["action"] == "clock_skew"] == ["warning"]


class SetClock(SystemClock):
    """The system's clock, set by some seconds."""

    def __init__(self, by: float) -> None:
        self._by = by

    def now(self) -> float:
        return super().now() + self._by


async def test_a_secret_that_somebody_chose_replaces_the_one_before(tmp_path: Path, postgres: Postgres) -> None:
    url = await postgres.fresh()
    async with AsyncExitStack() as stack:
        with capture_logs() as logs:
            await opened(stack, tmp_path, database_url=url, secret_key="the first secret")
        assert [line for line in logs if line["action"] == "secret_changed"] == []
        with capture_logs() as logs:
            await opened(stack, tmp_path, database_url=url, secret_key="the second secret")
        assert [line["log_level"] for line in logs if line["action"] == "secret_changed"] == ["warning"]
        with capture_logs() as logs:
            await opened(stack, tmp_path, database_url=url, secret_key="the second secret")
        assert [line for line in logs if line["action"] == "secret_changed"] == []


@pytest.mark.parametrize(
    ("url", "cure"),
    [
        ("postgresql://nobody:hunter2@127.0.0.1:9/broker", "does Postgres run"),
        ("postgresql://postgres:hunter2@127.0.0.1:{port}/missing", "check DATABASE_URL"),
    ],
)
async def test_a_database_that_is_not_there_is_told_with_its_cure(
    tmp_path: Path, postgres: Postgres, url: str, cure: str
) -> None:
    async with AsyncExitStack() as stack:
        with pytest.raises(StorageError, match=cure) as told:
            await opened(stack, tmp_path, database_url=url.format(port=postgres.port))
    assert "hunter2" not in f"{told.value!r} {told.value.__cause__!r} {told.value.__context__!r}"
