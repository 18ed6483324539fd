"""Rules about the code that linters do not check."""

from __future__ import annotations

import ast
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[2]
OURS = ("broker", "webhooks", "storage", "uploads")


@cache
def modules() -> tuple[tuple[str, ast.Module], ...]:
    """Return our modules by name; parsing all of them takes more than a second."""
    paths = [path for package in OURS for path in sorted((ROOT / package).rglob("*.py"))]
    return tuple((str(path.relative_to(ROOT)), ast.parse(path.read_text("utf-8"))) for path in paths)


def test_only_settings_reads_the_environment() -> None:
    readers = {
        name
        for name, tree in modules()
        for node in ast.walk(tree)
        if {
            getattr(node, "attr", ""),
            *(alias.name for alias in getattr(node, "names", ()) if isinstance(alias, ast.alias)),
        }
        & {"environ", "environb", "getenv", "getenvb"}
    }
    passes_a_part_on = {"storage/children/parent.py"}
    assert {name for name in readers if not name.startswith("broker/settings/")} == passes_a_part_on


def test_providers_import_neither_each_other_nor_the_registry() -> None:
    """Every package is covered without being listed: import-linter has no pattern for packages alone."""
    root = ROOT / "broker/providers"
    packages = {path.name for path in root.iterdir() if (path / "__init__.py").exists()}
    assert len(packages) > 2
    guilty = [
        (name, module)
        for name, tree in modules()
        for package in packages
        if name.startswith(f"broker/providers/{package}/")
        for node in ast.walk(tree)
        for module in _imported(node)
        if module.startswith("broker.providers.") and module.split(".")[2] in {"registry", *(packages - {package})}
    ]
    assert guilty == []


def test_routes_that_read_without_a_scope_are_these() -> None:
    """CAPABILITY: public routes. EVERYTHING: orders that the same request has placed or found."""
    users = {
        (name, node.id)
        for name, tree in modules()
        if name.startswith(("broker/api/", "broker/app"))
        for node in ast.walk(tree)
        if isinstance(node, ast.Name) and node.id in {"CAPABILITY", "EVERYTHING"}
    }
    assert users == {
        ("broker/api/native/task_cache.py", "CAPABILITY"),
        ("broker/api/native/tasks.py", "CAPABILITY"),
        ("broker/api/shared/held_answers.py", "EVERYTHING"),
        ("broker/api/dialects/fal/runs.py", "EVERYTHING"),
        ("broker/api/dialects/gemini/batches.py", "EVERYTHING"),
        ("broker/api/dialects/openai/async_tasks.py", "EVERYTHING"),
        ("broker/api/dialects/replicate/predictions.py", "EVERYTHING"),
    }


def test_unexpected_errors_are_logged_without_their_text() -> None:
    """It may hold a prompt: `safe_exc_info` gives the type and the traceback."""
    guilty = [
        (name, node.lineno)
        for name, tree in modules()
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute)
        and node.attr == "exception"
        and isinstance(node.value, ast.Name)
        and node.value.id == "log"
    ]
    assert guilty == []


def _imported(node: ast.AST) -> list[str]:
    """Return the modules, and the names in them that may be modules, that a statement imports."""
    if isinstance(node, ast.ImportFrom):
        return [f"{node.module}.{alias.name}" for alias in node.names]
    return [alias.name for alias in node.names] if isinstance(node, ast.Import) else []


def test_secrets_are_never_compared_with_equals() -> None:
    """`hmac.compare_digest` takes the same time whatever the guess."""
    tainted = ("token", "signature", "secret", "api_key", "digest")
    guilty = [
        (name, node.lineno)
        for name, tree in modules()
        for node in ast.walk(tree)
        if isinstance(node, ast.Compare) and any(isinstance(op, ast.Eq | ast.NotEq) for op in node.ops)
        for side in (node.left, *node.comparators)
        if isinstance(side, ast.Name) and side.id in tainted and not _an_enum(node)
    ]
    assert guilty == []


def _an_enum(node: ast.Compare) -> bool:
    return any(isinstance(side, ast.Attribute) and side.attr.isupper() for side in (node.left, *node.comparators))


def test_every_module_has_a_docstring() -> None:
    silent = [name for name, tree in modules() if not ast.get_docstring(tree) and tree.body]
    assert silent == []


def test_no_address_is_taken_from_the_framework() -> None:
    """`base_url` and `url_for` of a request follow its `Host`, which a stranger chooses."""
    guilty = [
        (name, node.lineno)
        for name, tree in modules()
        if not name.startswith("broker/sandbox/")
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute)
        and (node.attr == "url_for" or (node.attr == "base_url" and getattr(node.value, "id", "") == "request"))
    ]
    assert guilty == []


def test_base_http_middleware_is_not_used() -> None:
    """Starlette's BaseHTTPMiddleware costs six of seven requests per second on a hot path."""
    guilty = [
        name
        for name, tree in modules()
        for node in ast.walk(tree)
        if isinstance(node, ast.Name | ast.Attribute)
        and getattr(node, "id", getattr(node, "attr", "")) == "BaseHTTPMiddleware"
    ]
    assert guilty == []


def test_only_the_listed_functions_change_a_task() -> None:
    """The end of a task and its webhook are written together; another writer would end tasks without a webhook."""
    writers = {
        (name, function.name)
        for name, tree in modules()
        for function in ast.walk(tree)
        if isinstance(function, ast.AsyncFunctionDef | ast.FunctionDef)
        for node in ast.walk(function)
        if isinstance(node, ast.Attribute) and node.attr in {"update_task", "update_all"}
    }
    assert writers == {
        ("broker/tasks/transitions.py", "_change"),
        ("broker/tasks/transitions.py", "begin_submission"),
        ("broker/tasks/retention.py", "_expire"),
        ("broker/tasks/retention.py", "_delete_files"),
    }
