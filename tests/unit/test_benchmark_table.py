"""The table of the benchmark: medians, ratios, the goal, and when a row is not judged."""

from __future__ import annotations

import json
import sqlite3
from pathlib import Path

import pytest

from tests.benchmarks.results import (
    BEGIN_MARK,
    END_MARK,
    MAX_OTHER_LOAD,
    MAX_SPREAD,
    Goal,
    Measured,
    Row,
    as_json,
    insert_between_marks,
    ratio_at_least,
    ratio_at_most,
    report,
    spread,
    value_at_most,
)
from tests.benchmarks.support.load import http_request, write_requests
from tests.benchmarks.support.raw_client import read_requests
from tests.benchmarks.support.seed import copy_statement


def per_second(*values: float, cpu: tuple[float, ...] = ()) -> Measured:
    return Measured(values=values, unit="/s", cpu=cpu)


def row(ours: Measured | None, reference: Measured | None, goal: Goal | None, **more: float | bool) -> Row:
    return Row(path="P1", what="poll", ours=ours, reference=reference, goal=goal, **more)  # type: ignore[arg-type]


def test_ratio_is_the_median_of_the_rounds() -> None:
    """The machine became twice as slow in the third round, which both sides felt."""
    one = row(per_second(120, 130, 60), per_second(100, 100, 50), ratio_at_least(1.2))
    assert one.ratios == (1.2, 1.3, 1.2)
    assert one.ratio == 1.2


def test_ratio_of_different_numbers_of_rounds_is_that_of_the_medians() -> None:
    assert row(per_second(50), per_second(100, 200, 90), None).ratio == 0.5


@pytest.mark.parametrize(
    ("goal", "verdict"),
    [
        (ratio_at_least(0.5), "met"),
        (ratio_at_least(0.51), "not met"),
        (ratio_at_most(0.5), "met"),
        (ratio_at_most(0.49), "not met"),
        (value_at_most(50), "met"),
        (value_at_most(49), "not met"),
        (None, "–"),
    ],
)
def test_goal_of_ratio_or_value_decides(goal: Goal | None, verdict: str) -> None:
    assert row(per_second(50), per_second(100), goal).verdict == verdict


def test_row_without_reference_has_no_ratio_to_judge() -> None:
    assert row(per_second(50), None, ratio_at_least(1)).verdict == "–"
    assert row(per_second(50), None, value_at_most(60)).verdict == "met"


def test_row_that_was_not_measured_says_so() -> None:
    assert row(None, None, ratio_at_least(1)).verdict == "not measured"


def test_unsteady_reference_or_machine_is_noisy() -> None:
    steady, goal = per_second(100, 100), ratio_at_least(0.1)
    unsteady = per_second(100, 100 * (1 + 2 * MAX_SPREAD))
    assert row(steady, unsteady, goal).verdict == "noisy"
    assert row(steady, steady, goal, cpu_spread=MAX_SPREAD + 0.01).verdict == "noisy"
    assert row(steady, steady, goal, cpu_spread=MAX_SPREAD).verdict == "met"


def test_unsteady_disk_matters_to_durable_paths_only() -> None:
    steady, goal = per_second(100, 100), ratio_at_least(0.1)
    assert row(steady, steady, goal, disk_spread=9).verdict == "met"
    assert row(steady, steady, goal, disk_spread=9, on_disk=True).verdict == "noisy"


def test_paths_are_not_judged_while_other_programs_run() -> None:
    steady, goal = per_second(100, 100), ratio_at_least(0.1)
    assert row(steady, steady, goal, other_load=MAX_OTHER_LOAD + 0.01).verdict == "noisy"
    assert row(steady, steady, goal, other_load=MAX_OTHER_LOAD).verdict == "met"


def test_sizes_are_judged_on_a_busy_machine() -> None:
    steady, unsteady = per_second(100, 100), per_second(100, 300)
    assert row(steady, unsteady, ratio_at_least(0.1), cpu_spread=9, is_timed=False).verdict == "met"


def test_spread_of_less_than_two_values_is_zero() -> None:
    assert spread([]) == spread([5.0]) == 0.0
    assert spread([1.0, 2.0, 3.0]) == 1.0


def test_cells_have_median_range_and_cpu() -> None:
    one = row(per_second(24_500, 22_000, 23_000, cpu=(22e-6,)), per_second(100), ratio_at_least(1.2))
    assert one.cells() == (
        "P1 poll",
        "100/s",
        "23 000/s (22 000 – 24 500); 22.0 µs CPU",
        "230.00",
        "≥ 1.2 ×",
        "met",
    )


def test_report_and_json_have_every_row() -> None:
    rows = [row(per_second(2), per_second(1), ratio_at_least(1)), row(None, None, None)]
    assert report(rows, ["a machine"]).count("| P1 poll |") == 2
    document = json.loads(as_json(rows, ["a machine"]))
    assert [one["met"] for one in document["rows"]] == ["met", "not measured"]


def test_table_replaces_what_is_between_the_marks() -> None:
    text = f"before\n{BEGIN_MARK}\nold\n{END_MARK}\nafter\n"
    assert insert_between_marks(text, "new") == f"before\n{BEGIN_MARK}\nnew\n{END_MARK}\nafter\n"
    with pytest.raises(ValueError, match="no place"):
        insert_between_marks("a document", "new")


def test_both_load_generators_read_the_requests_that_were_written(tmp_path: Path) -> None:
    """wrk's script reads the same file: a length, a line feed, and that many bytes."""
    requests = [http_request("GET", "/", headers={"X": "1"}), http_request("POST", "/a", {"text": "line\nfeed"})]
    file = write_requests(tmp_path / "requests", requests)
    assert read_requests(file) == requests
    assert file.read_bytes().startswith(b"%d\nGET / HTTP/1.1\r\n" % len(requests[0]))


def test_copies_of_a_stored_row_have_ids_of_their_own_and_earlier_moments() -> None:
    seed = {"id": "task_a", "job_id": "job1", "params": '{"x":"task_a"}', "created_at": 100.0, "ended_at": None}
    with sqlite3.connect(":memory:") as connection:
        connection.execute("CREATE TABLE tasks (id, job_id, params, created_at, ended_at)")
        connection.execute("CREATE TABLE copies (n, name, job, image)")
        connection.executemany(
            "INSERT INTO copies VALUES (?, ?, ?, '')", [(1, "task_b", "job2"), (2, "task_c", "job3")]
        )
        connection.execute(*copy_statement("tasks", seed, "task_a", "job1", 5.0))
        rows = connection.execute("SELECT * FROM tasks ORDER BY id").fetchall()
    connection.close()
    assert rows == [
        ("task_b", "job2", '{"x":"task_b"}', 95.0, None),
        ("task_c", "job3", '{"x":"task_c"}', 90.0, None),
    ]
