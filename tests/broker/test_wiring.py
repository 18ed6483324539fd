"""How the system is opened: what is agreed on with other processes, and what stops the start."""

from __future__ import annotations

from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from broker.errors import SettingsError
from broker.settings import load
from broker.wiring import Services, open_services
from storage.database import StorageError
from tests.servers.postgres import Postgres

pytestmark = pytest.mark.anyio


async def opened(stack: AsyncExitStack, folder: Path, **settings: Any) -> Services:
    chosen = load(
        env_file=None,
        api_key="test-key",
        api_url="http://127.0.0.1:9",
        tunnel_api="http://127.0.0.1:9",
        data_dir=folder,
        **settings,
    )
    return await stack.enter_async_context(open_services(chosen))


async def test_processes_that_share_a_folder_share_its_secret(tmp_path: Path, postgres: Postgres) -> None:
    url = await postgres.fresh()
    async with AsyncExitStack() as stack:
        one = await opened(stack, tmp_path, database_url=url)
        two = await opened(stack, tmp_path, database_url=url)
        assert one.broker.tokens.secret == two.broker.tokens.secret


async def test_a_machine_with_a_secret_of_its_own_making_does_not_join(tmp_path: Path, postgres: Postgres) -> None:
    """It would refuse the callbacks that the others asked for."""
    url = await postgres.fresh()
    async with AsyncExitStack() as stack:
        await opened(stack, tmp_path / "one", database_url=url)
        with pytest.raises(SettingsError, match="SECRET_KEY is not set"):
            await opened(stack, tmp_path / "two", database_url=url)
        secret = (tmp_path / "one" / "secret.key").read_text()
        await opened(stack, tmp_path / "two", database_url=url, secret_key=secret)


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
