"""Every client of the dialects, and every provider, at least once; `python -m tests.dialects` runs all pairs."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.dialects.matrix import open_column, run_python, short_matrix
from tests.support.emulators import PROVIDERS

pytestmark = pytest.mark.anyio


@pytest.mark.parametrize("provider", PROVIDERS)
async def test_clients_complete_both_orders_at_a_provider(tmp_path: Path, provider: str) -> None:
    async with open_column(provider, tmp_path) as broker:
        for name in short_matrix()[provider]:
            await run_python(name, broker)
