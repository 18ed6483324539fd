"""The pages about accounts, security and moving against the code: names, commands, routes and tests exist."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest
import typer

from broker.cli.commands import app
from tests.support.variables import settings_variables
from tests.unit.test_movers import SYSTEMS, Answered

ROOT = Path(__file__).parents[2]
PAGES = {name: (ROOT / "docs" / f"{name}.md").read_text("utf-8") for name in ("accounts", "security", "moving")}
SECTIONS = {
    "S0": "Nano Banana chat",
    "S1": "BananaService",
    "S2": "Nano Banana webhooks",
    "S3": "Gemini relays",
    "S4": "Replicate service",
}
"""Of docs/moving.md, by the systems of `tests.unit.test_movers`."""


def section(page: str, title: str) -> str:
    return re.split(r"^#+ ", PAGES[page].split(f"\n## {title}\n")[1], flags=re.MULTILINE)[0]


def quoted(text: str) -> list[str]:
    """Return the code of a text: what stands between backticks, and the lines of its blocks."""
    blocks = re.findall(r"^```\w*\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    rest = re.sub(r"^```\w*\n.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)
    return [*re.findall(r"`([^`]+)`", rest), *(line for block in blocks for line in block.splitlines())]


# -- moving


@pytest.mark.parametrize("system", SECTIONS)
def test_section_of_a_system_names_every_variable_of_it(system: str) -> None:
    """What works is among the names; what does not is named, too, with what to do instead."""
    named = set(
        re.findall(r"\b[A-Z][A-Z0-9]*(?:_[A-Z0-9]+)+\b|\bALGORITHM\b|\bWORKERS\b", section("moving", SECTIONS[system]))
    )
    of_system = {
        name: fate for key, table in SYSTEMS.items() if key.startswith(system) for name, (_, fate) in table.items()
    }
    assert set(of_system) - named == set()
    dead = {name for name, fate in of_system.items() if isinstance(fate, Answered)} - set(settings_variables())
    assert named - set(settings_variables()) == dead


def test_each_system_takes_about_ten_lines() -> None:
    assert [name for name in SECTIONS.values() if len(section("moving", name).strip().splitlines()) > 18] == []
    assert PAGES["moving"].count("\n## ") == len(SECTIONS)


# -- security


@cache
def functions_of(path: str) -> frozenset[str]:
    tree = ast.parse((ROOT / path).read_text("utf-8"))
    return frozenset(node.name for node in tree.body if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef))


def threats() -> Iterator[tuple[str, list[str]]]:
    for row in re.findall(r"^\| (T[0-9]+) \|(.*)\|$", PAGES["security"], re.MULTILINE):
        yield row[0], re.findall(r"`(tests/[^`]+)`", row[1].rsplit("|", 1)[1])


def test_every_threat_is_there_and_names_its_tests() -> None:
    rows = dict(threats())
    assert list(rows) == [f"T{number}" for number in range(1, 31)]
    assert [threat for threat, tests in rows.items() if not tests] == []
    missing = [
        test
        for tests in rows.values()
        for test in tests
        if test.split("::")[1] not in functions_of(test.split("::")[0])
    ]
    assert missing == []


# -- all


def is_command(first: str, second: str) -> bool:
    """Return whether `broker first second` is a command, or `broker first` one with arguments."""
    commands = getattr(typer.main.get_command(app), "commands", {})
    inner = getattr(commands.get(first), "commands", None)
    if inner is None:
        return first in commands
    return second in inner or (commands[first].invoke_without_command and not second)


@pytest.mark.parametrize("page", PAGES)
def test_every_command_exists(page: str) -> None:
    code = "\n".join(quoted(PAGES[page]))
    named = re.findall(r"(?:^|[|`] *)broker ([a-z]+)(?: ([a-z]+))?", code, re.MULTILINE)
    assert [words for words in named if not is_command(*words)] == []


@pytest.mark.parametrize("page", PAGES)
def test_every_route_exists(page: str) -> None:
    table = (ROOT / "README.md").read_text("utf-8").split("<!-- routes -->")[1].split("<!-- /routes -->")[0]
    served = {re.sub(r"\{[a-z:]+\}", "{}", route) for route in re.findall(r"`([A-Z]+ /[^`]*)`", table)}
    named = {
        code.split("?")[0] for code in quoted(PAGES[page]) if re.fullmatch(r"(GET|POST|PUT|PATCH|DELETE) /\S*", code)
    }
    named = {re.sub(r"\{[a-z]+\}", "{}", route) for route in named}
    assert named - served == set()


@pytest.mark.parametrize("page", PAGES)
def test_every_variable_exists(page: str) -> None:
    named = set(re.findall(r"\bBROKER_[A-Z_]+[A-Z]\b", PAGES[page]))
    assert named - set(settings_variables()) == set()
