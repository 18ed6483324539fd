"""The image: its health check, and the files that get into it."""

from __future__ import annotations

import fnmatch
import json
import re
import subprocess
import sys
from pathlib import PurePosixPath

import pytest

from broker.bootstrap import load_settings
from tests.deployment.compose import ROOT
from tests.deployment.upstream import Unready, Upstream, listening
from tests.support.servers.ports import free_port
from tests.support.variables import settings_variables

DOCKERFILE = (ROOT / "Dockerfile").read_text("utf-8")
IGNORE = [line for line in (ROOT / ".dockerignore").read_text("utf-8").splitlines() if line and line[0] != "#"]
UNWANTED = """.env .env.local .git/config data/broker.db data/secret.key .venv/bin/python tests/conftest.py
    deploy/compose.yml broker/.env storage/broker.db storage/broker.db-wal broker/__pycache__/app.cpython-313.pyc
    uploads/secret.key webhooks/.git/config Makefile requirements-dev.lock notes.txt"""


def instructions() -> list[tuple[str, str]]:
    joined = re.sub(r"\\\n", "", re.sub(r"(?m)^#.*\n", "", DOCKERFILE))
    return [(line.split()[0], line.partition(" ")[2]) for line in joined.splitlines() if line.strip()]


def instruction(word: str) -> str:
    """Return the value of the one instruction of the last stage with this word."""
    lines = instructions()
    last = lines[max(n for n, (name, _) in enumerate(lines) if name == "FROM") :]
    (value,) = (value for name, value in last if name == word)
    return value


# -- the health check


@pytest.fixture
def health_check() -> list[str]:
    command: list[str] = json.loads(instruction("HEALTHCHECK").partition("CMD ")[2])
    return [sys.executable, *command[1:]]


def run_health_check(command: list[str], port: int) -> int:
    env = {"BROKER_PORT": str(port), "http_proxy": "http://127.0.0.1:9"}
    return subprocess.run(command, env=env, capture_output=True, check=False, timeout=20).returncode


def test_health_check_succeeds_only_if_the_broker_answers(health_check: list[str]) -> None:
    with listening(Upstream) as port:
        assert run_health_check(health_check, port) == 0
    with listening(Unready) as port:
        assert run_health_check(health_check, port) == 1
    assert run_health_check(health_check, free_port()) == 1


def test_health_check_requests_health_at_the_default_port() -> None:
    check = instruction("HEALTHCHECK")
    assert f"or {load_settings(env_file=None).port})" in check
    assert "'GET', '/health'" in check


# -- settings of the image


def test_image_sets_only_known_variables_and_no_secret() -> None:
    names = {pair.split("=", 1)[0] for pair in instruction("ENV").split()}
    assert {name for name in names if name.startswith("BROKER_")} <= set(settings_variables())
    assert not any(re.search(r"KEY|SECRET|TOKEN|PASSWORD", name) for name in names)
    assert instruction("EXPOSE") == str(load_settings(env_file=None).port)


# -- files


def is_included(path: str) -> bool:
    """Read .dockerignore as docker does: the last line that fits the path, or a folder above it, decides."""
    ignored = False
    for line in IGNORE:
        if any(fits(line.removeprefix("!"), above) for above in [path, *map(str, PurePosixPath(path).parents[:-1])]):
            ignored = not line.startswith("!")
    return not ignored


def fits(pattern: str, path: str) -> bool:
    """`**/` is any number of folders; `*` stays inside one name."""
    parts, names = pattern.split("/"), path.split("/")
    if parts[0] == "**":
        return any(fits("/".join(parts[1:]), "/".join(names[n:])) for n in range(len(names)))
    return len(parts) == len(names) and all(map(fnmatch.fnmatchcase, names, parts))


@pytest.mark.parametrize("path", UNWANTED.split())
def test_unwanted_file_is_ignored(path: str) -> None:
    assert not is_included(path)


def copied_sources() -> list[str]:
    """Return the paths that COPY takes from the repository."""
    return [
        source
        for word, value in instructions()
        if word == "COPY" and "--from=" not in value
        for source in value.split()[:-1]
    ]


def test_copied_sources_exist_and_are_not_ignored() -> None:
    assert "." not in copied_sources()
    assert all((ROOT / source).exists() and is_included(source) for source in copied_sources())


def test_every_package_is_copied_with_all_of_its_files() -> None:
    project = (ROOT / "pyproject.toml").read_text("utf-8")
    (include,) = re.findall(r"find = \{ include = \[(.*?)\]", project)
    packages = re.findall(r'"(\w+)\*"', include)
    assert packages
    assert set(packages) <= set(copied_sources())
    files = [
        path.relative_to(ROOT).as_posix()
        for package in packages
        for path in (ROOT / package).rglob("*")
        if path.suffix in {".py", ".toml", ".sql", ".md"} or path.name == "py.typed"
    ]
    assert len(files) > 50
    assert [path for path in files if not is_included(path)] == []
