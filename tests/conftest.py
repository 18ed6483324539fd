"""Fixtures of every test: the event loop, a clean environment, the servers, a manual clock."""

from __future__ import annotations

import gc
import logging
from collections.abc import Generator, Iterator

import pytest

from broker.logs import LogEvent
from tests.support.clock import ManualClock
from tests.support.log_lines import captured_lines
from tests.support.memory_disk import keep_temporary_files_in_memory
from tests.support.planted_secrets import find_secrets
from tests.support.servers import postgres as server
from tests.support.servers.s3 import S3Server, serving_s3
from tests.support.variables import settings_variables


def pytest_configure() -> None:
    keep_temporary_files_in_memory()
    logging.getLogger("broker").setLevel(logging.INFO)  # captured with each test, and searched for secrets
    gc.disable()


def pytest_collection_finish() -> None:
    """Keep modules and tests out of later garbage collections: what they hold is never garbage."""
    gc.freeze()
    gc.enable()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Fail a test whose output holds a secret."""
    report = yield
    for title, text in report.sections:
        if report.outcome == "passed" and (found := find_secrets(text.encode("utf-8", "replace"))):
            report.outcome = "failed"
            report.longrepr = f"{item.nodeid}: a secret in {title}: {found}"
    return report


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(autouse=True, scope="session")
def no_settings_from_outside() -> Iterator[None]:
    """Remove the developer's own keys and addresses from the environment."""
    with pytest.MonkeyPatch.context() as patch:
        for name in settings_variables():
            patch.delenv(name, raising=False)
        yield


@pytest.fixture(scope="session")
def postgres() -> Iterator[server.Postgres]:
    """The server of this test process; each test creates its own database (`await postgres.fresh()`)."""
    with server.running() as running:
        yield running


@pytest.fixture(scope="session")
def s3_server() -> Iterator[S3Server]:
    """The S3 server of this test process."""
    with serving_s3() as server:
        yield server


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
def log_lines() -> Iterator[list[LogEvent]]:
    """Lines of the broker, DEBUG and above."""
    with captured_lines(logging.DEBUG) as lines:
        yield lines
