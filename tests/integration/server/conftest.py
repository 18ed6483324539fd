"""Both HTTP parsers, each on the event loop that it usually comes with."""

from __future__ import annotations

from typing import Any

import pytest

from tests.support.http_parsers import BACKENDS


@pytest.fixture(params=BACKENDS)
def parser(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """The parser of every server that this test starts."""
    monkeypatch.setenv("BROKER_HTTP", request.param)
    name: str = request.param
    return name


@pytest.fixture
def anyio_backend(parser: str) -> tuple[str, dict[str, Any]]:
    return "asyncio", BACKENDS[parser]
