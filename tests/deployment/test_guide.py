"""The guide of docs/deploying.md: its variables, commands, files and services exist."""

from __future__ import annotations

import re

import typer
import yaml

from broker.cli.commands import app
from tests.deployment.compose import GUIDE, OTHER_VARIABLES, PROCESSES, ROOT
from tests.support.variables import settings_variables

PREFIXES = "BROKER|NANO_BANANA|WEBHOOK|SECRET|DATABASE|POSTGRES|OBJECTS|NGROK|PROXY"


def test_guide_names_only_variables_that_exist() -> None:
    found = set(re.findall(rf"\b((?:{PREFIXES})_[A-Z_]+)\b", GUIDE))
    assert len(found) > 5
    assert found - set(settings_variables()) - OTHER_VARIABLES == set()


def test_guide_names_only_commands_that_exist() -> None:
    found = set(re.findall(r"(?:bin/broker|--no-deps broker|`broker) ([a-z]+)", GUIDE))
    assert found
    assert found <= set(getattr(typer.main.get_command(app), "commands", {}))


def test_guide_names_only_files_and_services_that_exist() -> None:
    assert all((ROOT / path).exists() for path in re.findall(r"\bdeploy/[\w.-]+\w", GUIDE))
    links = re.findall(r"\]\(([^)]+)\)", GUIDE)
    assert links
    assert all((ROOT / "docs" / link).exists() for link in links)
    rolled = re.findall(r"up -d --no-deps(?: --wait)? ([\w-]+)", GUIDE)
    assert sorted(rolled) == sorted(PROCESSES)
    assert set(re.findall(r"--profile ([a-z]+)", GUIDE)) == {"full", "tunnel"}
    project = yaml.safe_load((ROOT / "compose.yml").read_text("utf-8"))["name"]
    assert f"{project}_objects" in GUIDE
