"""The command line in processes of its own."""

from __future__ import annotations

import os
import re
import select
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.support.servers.forking import Ended, fork_server
from tests.support.variables import settings_variables

SECONDS = 40.0


@dataclass(frozen=True)
class Shell:
    """Runs `broker` in a folder, without the settings of the test process."""

    folder: Path
    settings: Mapping[str, str]

    def start(self, *args: str, **settings: str) -> subprocess.Popen[str]:
        """Start a command of its own interpreter: to serve, or to be sent a signal."""
        return subprocess.Popen(
            [sys.executable, "-W", "error", "-m", "broker", *args],
            cwd=self.folder,
            env=self.environment(settings),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def run(self, *args: str, **settings: str) -> Ended:
        """Run a command to its end in a process forked from one that has the imports."""
        return fork_server().run(args, cwd=self.folder, env=self.environment(settings))

    def environment(self, settings: Mapping[str, str]) -> dict[str, str]:
        ours = {name: value for name, value in os.environ.items() if name not in settings_variables()}
        return {**ours, "NO_COLOR": "1", "PYTHONUNBUFFERED": "1", **self.settings, **settings}


@contextmanager
def serving(shell: Shell, *args: str, **settings: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """Start a serving process, yield it with the address it prints, and terminate it."""
    process = shell.start(*args, **settings)
    try:
        yield process, _address(process)
    finally:
        process.terminate()
        try:
            process.communicate(timeout=SECONDS)
        finally:
            process.kill()


def _address(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    ready, _, _ = select.select([process.stdout], [], [], SECONDS)
    line = _line(process.stdout.fileno()) if ready else ""
    found = re.search(r"http://\S+", line)
    if found is None:
        process.kill()
        raise AssertionError(f"no address in {line!r}: {process.communicate()}")
    return found[0]


def _line(source: int) -> str:
    """Read exactly one line: bytes in a reader's buffer would be lost for `communicate`."""
    line = b""
    while not line.endswith(b"\n") and (byte := os.read(source, 1)):
        line += byte
    return line.decode()
