"""Documents against the code: every name, command, path and code exists, and none is missing."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from types import SimpleNamespace

import pytest
import typer

from broker.bootstrap import load_settings
from broker.cli.commands import app
from broker.errors import STATUS_OF, TASK_CODES
from tests.support.variables import settings_variables

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text("utf-8")
EXAMPLE = (ROOT / ".env.example").read_text("utf-8")
NGROK = (ROOT / "ngrok.yml").read_text("utf-8")
DOCUMENTS = [README, EXAMPLE, NGROK, *(p.read_text("utf-8") for p in [ROOT / "CHANGELOG.md", *ROOT.glob("docs/*.md")])]
PAGES = ["README.md", "CHANGELOG.md", *(f"docs/{path.name}" for path in sorted(ROOT.glob("docs/*.md")))]
ASSIGNMENT = re.compile(r"^# ([A-Z][A-Z0-9_]+)=(.*)$", re.MULTILINE)


@pytest.fixture(autouse=True)
def no_settings_of_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in settings_variables():
        monkeypatch.delenv(name, raising=False)


# -- .env.example


def test_the_example_has_every_variable_and_no_other() -> None:
    assert sorted(name for name, _ in ASSIGNMENT.findall(EXAMPLE)) == sorted(settings_variables())


def test_the_example_changes_nothing_when_copied() -> None:
    assert all(line.startswith("#") for line in EXAMPLE.splitlines() if line)


def test_every_variable_of_the_example_has_a_sentence() -> None:
    lines = EXAMPLE.splitlines()
    assignments = [n for n, line in enumerate(lines) if ASSIGNMENT.match(line)]
    explained = {n for n in assignments if not ASSIGNMENT.match(lines[n - 1]) and lines[n - 1].startswith("# ")}
    followers = {n for n in assignments if n - 1 in explained}  # host and port share a sentence
    assert set(assignments) == explained | followers


@pytest.mark.parametrize(("name", "value"), [pair for pair in ASSIGNMENT.findall(EXAMPLE) if pair[1]])
def test_the_values_of_the_example_are_the_defaults(name: str, value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = load_settings(env_file=None)
    monkeypatch.setenv(name, value)
    said = load_settings(env_file=None)
    places = {"database_url", "blob_url"}  # empty means: in the data folder
    assert said.bucket is None
    assert said.model_dump(exclude=places) == plain.model_dump(exclude=places)
    assert (said.database, said.blob_folder) == (plain.database, plain.blob_folder)


# -- README


def commands() -> set[str]:
    group = typer.main.get_command(app)
    return set(getattr(group, "commands", {}))


def test_the_readme_names_every_command_and_no_other() -> None:
    there = README.replace(section("Not there yet"), "")
    named = set(re.findall(r"(?:`|^|bin/)broker ([a-z]+)", there, re.MULTILINE))
    assert named == commands()


def section(title: str) -> str:
    return re.split(r"^#+ ", README.split(f"# {title}\n")[1], flags=re.MULTILINE)[0]


def test_every_make_target_of_the_readme_exists() -> None:
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE))
    assert set(re.findall(r"^make ([a-z]+)", README, re.MULTILINE)) <= targets


def test_the_readme_explains_every_error_code_and_no_other() -> None:
    cells = section("Error codes").split("|")
    named = {code for cell in cells for code in re.findall(r"`([a-z_]+)`", cell)}
    assert named - {"retryable", "billed", "yes", "no", "unknown"} == {*STATUS_OF, *TASK_CODES}


def test_every_address_of_the_readme_is_served() -> None:
    table = README.split("<!-- routes -->")[1].split("<!-- /routes -->")[0]  # a test of the API compares it
    routes = [re.sub(r"\{[a-z]+\}", "[^/]+", route) for route in re.findall(r"`[A-Z]+ ([^`]+)`", table)]
    named = set(re.findall(r"(?:GET|POST|DELETE|:8000|your-address)`? ?(?:and `POST )?(/[a-z][^\s`'?|]*)", README))
    assert len(named) > 8
    assert {path for path in named if not any(re.fullmatch(route, path) for route in routes)} == set()


@pytest.mark.parametrize("page", PAGES)
def test_every_relative_link_has_a_target(page: str) -> None:
    text = (ROOT / page).read_text("utf-8")
    links = [link for link in re.findall(r"\]\(([^)]+)\)", text) if "://" not in link]
    assert [link for link in links if not has_target((ROOT / page).parent, *link.split("#"))] == []


def has_target(folder: Path, path: str, anchor: str | None = None) -> bool:
    """Return whether a file exists, with a heading of that anchor."""
    file = folder / path
    if anchor is None or not file.is_file():
        return file.exists()
    headings = re.findall(r"^#+ (.+)$", file.read_text("utf-8"), re.MULTILINE)
    return anchor in {re.sub(r"[^a-z0-9 -]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_no_document_names_a_package_registry() -> None:
    assert not any(
        re.search(r"pypi|pythonhosted|registry\.(?!py\b)", document, re.IGNORECASE) for document in DOCUMENTS
    )


# -- architecture and extensions


@pytest.mark.parametrize("page", PAGES)
def test_every_path_that_a_page_names_exists(page: str) -> None:
    text = (ROOT / page).read_text("utf-8")
    named = set(re.findall(r"(?<![/\w])((?:broker|webhooks|uploads|storage|tests|deploy|docs|scripts)/[\w./-]*)", text))
    assert sorted(path for path in named if not (ROOT / path.rstrip(".")).exists()) == []


def test_import_order_of_the_page_is_the_checked_one() -> None:
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["tool"]["importlinter"]["contracts"]
    (layers,) = (one["layers"] for one in contracts if one["name"] == "inside broker, top to bottom")
    page = (ROOT / "docs/architecture.md").read_text("utf-8")
    drawn = "\n".join(f"  {layer}" for layer in layers).replace("(", "").replace(")", "")  # those may be missing
    assert f"{drawn}\n```\n" in page


def test_code_of_the_extensions_page_is_that_of_the_examples() -> None:
    """The examples are run by their own tests; the page must show the same lines."""
    page = (ROOT / "docs/extending.md").read_text("utf-8")
    shown = re.findall(r"<!-- (tests/examples/\S+) -->\n```\w+\n(.*?)```", page, re.DOTALL)
    assert {path.split("/")[2] for path, _ in shown} == {"dialect", "route", "parameter"}
    assert [path for path, code in shown if outdent(code) not in outdent((ROOT / path).read_text("utf-8"))] == []


def outdent(code: str) -> str:
    """Return the lines without indentation and blank lines: the formatter sets both in a page as for a whole file."""
    return "\n".join(line.strip() for line in code.splitlines() if line.strip())


# -- operating


def test_every_log_action_is_explained() -> None:
    named = set(re.findall(r"`([a-z_]+)`", (ROOT / "docs/operating.md").read_text("utf-8")))
    code = "\n".join(path.read_text("utf-8") for path in (ROOT / "broker").rglob("*.py"))
    assert set(re.findall(r'action="([a-z_]+)"', code)) - named == set()


# -- ngrok.yml


def test_the_tunnel_is_of_version_3_leads_to_us_and_holds_no_token() -> None:
    said = "\n".join(line for line in NGROK.splitlines() if not line.lstrip().startswith("#"))
    assert re.search(r"^version: 3$", said, re.MULTILINE)
    assert f"url: http://127.0.0.1:{load_settings(env_file=None).port}\n" in said
    assert said.index("agent:") < said.index("endpoints:") < said.index("traffic_policy:") < said.index("type: deny")
    assert "authtoken" not in said


def denied(method: str, path: str) -> bool:
    """The expression of the policy, as ngrok's language has it, carried over into ours."""
    (expression,) = re.findall(r">-\n(.*?)\n +actions:", NGROK, re.DOTALL)
    for theirs, ours in (("&&", " and "), ("||", " or "), ("!(", " not ("), (".startsWith", ".startswith")):
        expression = expression.replace(theirs, ours)
    request = SimpleNamespace(method=method, url=SimpleNamespace(path=path))
    return bool(eval(" ".join(expression.split()), {"req": request}))


@pytest.mark.parametrize(
    ("method", "path", "expected"),
    [
        ("POST", "/api/webhook/nano-banana", False),
        ("GET", "/api/webhook/nano-banana", False),
        ("DELETE", "/api/webhook/nano-banana", True),
        ("GET", "/uploads/images/generated_1.png", False),
        ("GET", "/uploads/references/reference_1.png", False),
        ("POST", "/uploads/images/generated_1.png", True),
        ("POST", "/api/generate/image", True),
        ("GET", "/api/tasks", True),
        ("GET", "/api/task/task_0", True),
        ("GET", "/metrics", True),
        ("GET", "/", True),
    ],
)
def test_tunnel_admits_only_callbacks_and_images(method: str, path: str, expected: bool) -> None:
    """The public address of a tunnel must not expose the API."""
    assert denied(method, path) is expected
