"""The commands of docs/accounts.md, as they stand there, against a broker that runs."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.shell import SECONDS, Shell, serving

PAGE = Path(__file__).parents[2] / "docs" / "accounts.md"
PASSWORD = "echo 'correct horse' |"
"""Standard input in place of the prompt."""


@pytest.mark.faults  # each command is a process of its own
def test_commands_of_the_page_work(tmp_path: Path) -> None:
    blocks = re.findall(r"^```sh\n(.*?)^```", PAGE.read_text("utf-8"), re.MULTILINE | re.DOTALL)
    lines = [line for block in blocks for line in block.splitlines() if line]
    script = "\n".join(f"{PASSWORD} {line}" if "users add" in line else line for line in lines)
    with serving(Shell(tmp_path, {"BROKER_API_KEYS": "key-of-the-operator"}), "serve", "--port", "0") as (_, address):
        shell = Shell(tmp_path, {"BROKER_API_KEYS": "key-of-the-operator", "BROKER_PORT": address.rpartition(":")[2]})
        ended = subprocess.run(
            ["/bin/bash", "-euo", "pipefail", "-c", script],
            cwd=tmp_path,
            env={**shell.environment({}), "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"},
            capture_output=True,
            text=True,
            timeout=SECONDS,
            check=False,
        )
    assert ended.returncode == 0, ended.stderr
    assert "anna can log in and is an admin.\nben can log in.\n" in ended.stdout
    assert re.search(r"^images +50\nusd +2.5\n", ended.stdout, re.MULTILINE)
    assert re.search(r"^nbk_[\w-]{43}\n.*laptop  ben .*\nlaptop is revoked\.$", ended.stdout, re.MULTILINE)
