"""Logs: format, and secrets that stay out."""

from __future__ import annotations

import json
import logging
import re
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from unittest.mock import patch

import pytest

from broker.logs import configure_logging, log
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
    handler = next(h for h in logging.getLogger().handlers if hasattr(h, "backupCount"))
    assert handler.backupCount == 7


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
