"""The benchmarks run on the current schema. `make test` does not run them otherwise, so a change could break them."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.benchmarks.engines import intake, notify, postgres_paths
from tests.benchmarks.engines.lives import Upstream, live
from tests.benchmarks.engines.measuring import SPAWN, Side
from tests.benchmarks.engines.retention import Bench
from tests.benchmarks.growth import __main__ as growth
from tests.support.servers.postgres import Postgres

pytestmark = pytest.mark.anyio


async def test_benchmarks_fill_the_tables(postgres: Postgres) -> None:
    assert len(await postgres_paths.stored(await postgres.fresh(), 3)) == 3
    assert len(await notify.seeded(await postgres.fresh(), 2)) == 2
    assert await Bench(server=postgres, rows=5, calm=0.0, remembered=True).seeded()


async def test_images_of_a_benchmark_are_accepted(tmp_path: Path) -> None:
    images = intake.write_images(tmp_path, 64, 64)
    (row,) = await intake.measure({"image": images["lossless WebP, 64 x 64"]}, tmp_path / "store", 1)
    assert row[0] == "image"
    assert len(images) == 6


async def test_curves_of_growth_are_measured_and_drawn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(growth, "CALL_SECONDS", 0.0)
    monkeypatch.setattr(growth, "DOCS", tmp_path)
    await growth.draw(tmp_path, "stored", "Stored tasks", [(10, 10, 5), (600, 600, 5)])
    picture = (tmp_path / "stored.svg").read_text("utf-8")
    assert "read of a task" in picture
    assert "claim of ten queued" in picture


async def test_tasks_of_a_benchmark_end(tmp_path: Path) -> None:
    side = Side(SPAWN.Event(), SPAWN.Event(), SPAWN.Event())
    side.go.set()
    await live(side, f"sqlite:///{tmp_path}/broker.db", Upstream(seconds=0.01), [0.0, 0.0])
