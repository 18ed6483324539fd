"""Logs: format, secrets that stay out, and lines that are written together."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import re
import sys
import threading
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import uvloop

from broker.logs import MAX_BLOCK_BYTES, LogEvent, configure_logging, hide_secrets, log
from storage.states import TaskState
from tests.support.log_lines import restored_logging


@pytest.fixture(autouse=True)
def restored() -> Iterator[None]:
    with restored_logging():
        yield


@pytest.mark.parametrize("form", ["console", "json"])
def test_secrets_and_local_variables_are_not_logged(form: str, capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging("INFO", form, None)
    local_secret = "canary-local"
    try:
        raise ValueError("something broke")
    except ValueError as error:
        log.error(
            "a step failed",
            action="step_failed",
            token="canary-token",
            prompt="canary-prompt",
            exc_info=(ValueError, error, error.__traceback__),
        )
    log.info("called https://x.example/hook?token=canary-query&task=t", header="Authorization: Bearer canary-bearer")
    logging.getLogger("other").warning("GET /api?key=canary-key HTTP/1.1")
    out = capsys.readouterr().err
    assert "canary" not in out
    assert "step_failed" in out
    assert "something broke" in out
    assert local_secret not in out


def test_json_lines_are_valid_json_with_any_text(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging("INFO", "json", None)
    log.info("a line\nand another \x1b[31m \u202e", action="odd", why='{"quoted"}')
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    event = json.loads(lines[0])
    assert (event["action"], event["level"]) == ("odd", "info")


def test_folder_adds_a_log_file(tmp_path: Path) -> None:
    configure_logging("INFO", "json", tmp_path / "logs")
    log.info("hello", action="hello")
    assert json.loads((tmp_path / "logs" / "app.log").read_text())["action"] == "hello"


def test_log_file_is_replaced_at_midnight_and_seven_are_kept(tmp_path: Path) -> None:
    days = [f"app.log.2026-01-{day:02}" for day in range(1, 10)]
    for name in days:
        (tmp_path / name).touch()
    (tmp_path / "app.log").write_text("of an earlier day\n")
    os.utime(tmp_path / "app.log", (at := datetime(2026, 1, 20, 12, tzinfo=UTC).timestamp(), at))
    configure_logging("INFO", "json", tmp_path)
    log.info("hello", action="hello")
    log.info("hello again", action="hello")
    old = {path.name: path.read_text() for path in tmp_path.glob("app.log.*")}
    assert old == {**dict.fromkeys(days[-6:], ""), "app.log.2026-01-20": "of an earlier day\n"}
    assert len((tmp_path / "app.log").read_text().splitlines()) == 2


def test_console_line_has_time_level_text_and_fields(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging("INFO", "console", None)
    log.info("a task ended", action="task_succeeded", seconds=1.5, why="it is\ndone", owner="house:local")
    log.debug("not shown")
    (line,) = capsys.readouterr().err.splitlines()
    moment, rest = line.split(" ", 1)
    assert moment.endswith("Z")
    assert rest.split() == (
        "[info ] a task ended [broker] action=task_succeeded owner=house:local seconds=1.5 why='it is\\ndone'".split()
    )


def test_terminal_gets_colors_around_the_same_line(capsys: pytest.CaptureFixture[str]) -> None:
    with patch.object(sys.stderr, "isatty", lambda: True):
        configure_logging("INFO", "console", None)
    log.warning("a disk is full", action="store_full")
    line = capsys.readouterr().err
    plain = re.sub(r"\x1b\[\d+m", "", line)
    assert line.index("\x1b[33m [warning  ]\x1b[0m a disk is full") > 0
    assert plain.split()[1:] == "[warning ] a disk is full [broker] action=store_full".split()


def test_lines_before_logging_is_configured_go_to_the_standard_library(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "broker"):
        log.info("hello", action="hello", token="canary")
        log.debug("not shown")
    (record,) = caplog.records
    assert (record.name, record.levelname) == ("broker", "INFO")
    assert record.getMessage().endswith("[broker] action=hello token=[hidden]")


def test_moment_is_the_current_one_in_utc(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging("INFO", "json", None)
    before = datetime.now(UTC)
    log.info("hello")
    moment = datetime.fromisoformat(json.loads(capsys.readouterr().err)["timestamp"])
    assert before <= moment <= datetime.now(UTC)


def test_libraries_log_in_the_same_form(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging("INFO", "json", None)
    logging.getLogger("other").error("failed at %s", "https://x.example/?key=canary")
    event = json.loads(capsys.readouterr().err)
    assert (event["level"], event["logger"]) == ("error", "other")
    assert event["event"] == "failed at https://x.example/?key=[hidden]"


def test_message_of_a_library_may_be_a_dict(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging("INFO", "json", None)
    logging.getLogger("other").error({"header": "Bearer canary"})
    event = json.loads(capsys.readouterr().err)
    assert event["logger"] == "other"
    assert "header" in event["event"]
    assert "canary" not in event["event"]


@pytest.mark.anyio
async def test_character_that_no_file_takes_costs_no_line(tmp_path: Path) -> None:
    configure_logging("INFO", "json", tmp_path)
    for text in ("one", "\ud800", "three"):
        log.info(text)
    await asyncio.sleep(0)
    lines = (tmp_path / "app.log").read_text().splitlines()
    assert [json.loads(line)["event"] for line in lines] == ["one", "\ud800", "three"]


class Output:
    """Standard error that notes each write."""

    def __init__(self) -> None:
        self.writes: list[str] = []

    def write(self, text: str) -> None:
        self.writes.append(text)

    def flush(self) -> None:
        pass

    def isatty(self) -> bool:
        return False

    @property
    def words(self) -> list[list[str]]:
        """Return the first word of each line of each write."""
        return [[line.split()[3] for line in text.splitlines()] for text in self.writes]


@pytest.fixture
def output() -> Iterator[Output]:
    found = Output()
    with patch.object(sys, "stderr", found):
        configure_logging("INFO", "console", None)
        yield found


@pytest.mark.anyio
async def test_lines_of_a_turn_are_written_together_in_order(output: Output) -> None:
    for word in ("one", "two"):
        log.info(word)
    logging.getLogger("other").info("three")
    assert output.words == []
    await asyncio.sleep(0)
    log.info("four")
    await asyncio.sleep(0)
    assert output.words == [["one", "two", "three"], ["four"]]


@pytest.mark.anyio
@pytest.mark.parametrize("urgent", ["warning", "error", "critical"])
async def test_warning_is_written_at_once_after_the_lines_before_it(output: Output, urgent: str) -> None:
    log.info("one")
    getattr(log, urgent)("two")
    log.info("three")
    getattr(logging.getLogger("other"), urgent)("four")
    log.info("five")
    await asyncio.sleep(0)
    assert output.words == [["one", "two"], ["three", "four"], ["five"]]


@pytest.mark.anyio
async def test_line_of_a_thread_is_written_at_once_after_those_of_the_loop(output: Output) -> None:
    log.info("one")
    thread = threading.Thread(target=log.info, args=["two"])
    thread.start()
    thread.join()
    assert output.words == [["one", "two"]]


@pytest.mark.parametrize("new_loop", [asyncio.new_event_loop, uvloop.new_event_loop])
def test_lines_of_the_last_turn_are_written_before_the_loop_is_closed(
    output: Output, new_loop: Callable[[], asyncio.AbstractEventLoop]
) -> None:
    """A process of several ends without the functions that are registered for its exit."""

    async def body() -> None:
        await asyncio.sleep(0)
        log.info("one")

    with asyncio.Runner(loop_factory=new_loop) as runner:
        runner.run(body())
    assert output.words == [["one"]]


def test_lines_of_a_loop_that_ended_are_written_with_the_next_ones_or_at_exit(output: Output) -> None:
    """A loop that is closed runs none of its callbacks."""
    loop = asyncio.new_event_loop()
    loop.run_until_complete(asyncio.sleep(0))
    loop.call_soon(log.info, "one")
    loop.call_soon(loop.stop)
    loop.run_forever()
    loop.close()
    assert output.words == []
    logging.getLogger().handlers[0].flush()  # as `logging.shutdown` does
    assert output.words == [["one"]]
    asyncio.run(_log_and_wait("two"))
    assert output.words == [["one"], ["two"]]


async def _log_and_wait(text: str) -> None:
    log.info(text)
    await asyncio.sleep(0)


@pytest.mark.anyio
async def test_lines_written_together_are_never_more_than_a_pipe_takes_as_one_piece(output: Output) -> None:
    for number in range(100):
        log.info("hello", note="ä" * number, number=number)
    await asyncio.sleep(0)
    assert max(len(text.encode()) for text in output.writes) <= MAX_BLOCK_BYTES
    assert len(output.writes) < 10
    assert [int(line.split("number=")[1]) for text in output.writes for line in text.splitlines()] == [*range(100)]


TEXTS = (
    "word",
    "",
    "two words",
    "a=b",
    "a'b",
    'a"b',
    "back\\slash",
    "line\nbreak",
    "\x7f",
    "ümlaut",
    "\u202e",
    "%s",
    "{}",
)
MAY_BE_SECRETS = ("x?token=canary", "x&key=canary", "bearer canary", "Bearer  canary", "bearer", "?", "a?")
OTHERS = (1, -1.5, float("nan"), float("inf"), None, True, ("a", "b"), {"c": "d"}, TaskState.WAITING)


@pytest.mark.parametrize("value", (*TEXTS, *MAY_BE_SECRETS, *OTHERS), ids=repr)
@pytest.mark.parametrize("form", ["console", "json"])
def test_lines_of_one_shape_are_those_of_lines_that_are_rendered_value_by_value(
    form: str, value: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    """Their template, made of the first one, shows no value in another way, and no secret."""
    configure_logging("INFO", form, None)
    events = list[LogEvent]()
    for fields in ({"a": "x", "n": 1}, {"a": value, "n": 1}, {"a": "x", "n": value}, {"n": value, "a": value}):
        event = hide_secrets({**fields})
        events.append(event)
        log.info("said", **fields)
        log.info("said", **fields)
    lines = capsys.readouterr().err.splitlines()
    assert "canary" not in str(lines)
    for event, line in zip((event for event in events for _ in range(2)), lines, strict=True):
        if form == "json":
            expected = json.dumps({**event, "event": "said", "level": "info"}, ensure_ascii=False, default=repr)
            assert line.startswith(expected[:-1] + ', "logger": "broker", "timestamp": "')
        else:
            words = [f"{name}={_shown(event[name])}" for name in sorted(event)]
            assert line.split("Z", 1)[1] == f" [info     ] {'said':<30} [broker] {' '.join(words)}"


def _shown(value: Any) -> str:
    is_word = isinstance(value, str) and re.fullmatch("[^\\s=\"'\\\\]+", value) and value.isprintable()
    return str.__str__(value) if is_word else repr(value)
