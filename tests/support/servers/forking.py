"""A process that has imported the command line already and forks one child per command.

A command runs in a process of its own, with its own environment, folder and exit code, without the second of imports.
"""

from __future__ import annotations

import atexit
import json
import os
import pkgutil
import subprocess
import sys
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib import import_module
from pathlib import Path
from tempfile import TemporaryDirectory


@dataclass(frozen=True, kw_only=True)
class Ended:
    """The exit code and the output of a command."""

    code: int
    out: str
    err: str


@dataclass(frozen=True, kw_only=True)
class ForkServer:
    """Parent process of the commands."""

    process: subprocess.Popen[str]
    outputs: Path = field(repr=False)

    def run(self, args: Sequence[str], *, cwd: Path, env: Mapping[str, str]) -> Ended:
        """Run `broker` with these arguments until it ends."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        out, err = self.outputs / "out", self.outputs / "err"
        request = {"args": list(args), "cwd": str(cwd), "env": dict(env), "out": str(out), "err": str(err)}
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()
        code = int(self.process.stdout.readline())
        return Ended(code=code, out=out.read_text("utf-8"), err=err.read_text("utf-8"))


@cache
def fork_server() -> ForkServer:
    """Return the server of this test process, started by the first call and stopped at exit."""
    outputs = TemporaryDirectory()
    process = subprocess.Popen(
        [sys.executable, "-W", "error", "-m", "tests.support.servers.forking"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        cwd=Path(__file__).parents[3],
        text=True,
    )

    def end() -> None:
        process.kill()
        process.communicate()
        outputs.cleanup()

    atexit.register(end)
    return ForkServer(process=process, outputs=Path(outputs.name))


def serve() -> None:
    """Run the command of each line of standard input; write its exit code."""
    _import_commands()
    for line in sys.stdin:
        pid = os.fork()
        if not pid:
            _become_command(**json.loads(line))
        _, status = os.waitpid(pid, 0)
        sys.stdout.write(f"{os.waitstatus_to_exitcode(status)}\n")
        sys.stdout.flush()


def _import_commands() -> None:
    """Import what the commands import, and read the files that a process reads once; starts no thread."""
    import broker.cli  # noqa: PLC0415
    from broker.client import async_client  # noqa: PLC0415
    from broker.i18n import Messages  # noqa: PLC0415
    from broker.net import dialing  # noqa: PLC0415
    from broker.providers.registry import load_catalog  # noqa: PLC0415

    for module in pkgutil.walk_packages(broker.cli.__path__, "broker.cli."):
        import_module(module.name)
    for name in ("broker.sandbox.server", "broker.server.uvicorn", "storage.sql.migrations"):
        import_module(name)
    for read_file in (load_catalog, Messages.load, dialing.tls_context, async_client.tls_context):
        read_file()


def _become_command(args: list[str], cwd: str, env: dict[str, str], out: str, err: str) -> None:
    code = 1
    try:
        for number, target in ((0, os.devnull), (1, out), (2, err)):
            flags = os.O_RDONLY if number == 0 else os.O_WRONLY | os.O_CREAT | os.O_TRUNC
            opened = os.open(target, flags, 0o600)
            os.dup2(opened, number)
            os.close(opened)
        os.chdir(cwd)
        os.environ.clear()
        os.environ.update(env)
        sys.argv = ["broker", *args]
        code = _run_main()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _run_main() -> int:
    from broker.cli.commands import main  # noqa: PLC0415

    try:
        main()
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        traceback.print_exc()
        return 1
    return 0


if __name__ == "__main__":
    serve()
