"""The OpenAPI document is valid, has every endpoint, and agrees with the responses."""

from __future__ import annotations

import asyncio
import shutil
import subprocess
import tomllib
from pathlib import Path
from typing import Any, Literal

import httpx
import pytest
from jsonschema import Draft202012Validator
from openapi_spec_validator import validate

from broker.api.http.openapi import openapi_document
from broker.app import build_app
from broker.errors import STATUS_OF, TASK_CODES
from storage.states import TaskState
from tests.support.api import ApiBroker, open_api, png
from tests.support.clock import ManualClock
from tests.support.fuzzing import AUTHORIZED, Findings, endpoints_of, filled_broker, report_lines, run_fuzzer
from tests.support.servers import postgres

pytestmark = pytest.mark.anyio

ROOT = Path(__file__).parent.parent.parent
CREATE = "/api/generate/image"
WEBHOOK_PATH = "/api/webhook/nano-banana"
FILES = {"swagger-ui-bundle.js": "javascript", "start.js": "javascript", "swagger-ui.css": "css"}
BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


async def get_document(broker: ApiBroker) -> dict[str, Any]:
    answer = await broker.client.get("/openapi.json", headers=AUTHORIZED)
    assert answer.status_code == 200
    document: dict[str, Any] = answer.json()
    return document


# -- the document


async def test_document_is_valid_openapi(tmp_path: Path) -> None:
    async with open_api(tmp_path) as broker:
        document = await get_document(broker)
        assert document["openapi"].startswith("3.1.")
        validate(document)


async def test_document_shows_which_endpoints_need_a_key(tmp_path: Path) -> None:
    async with open_api(tmp_path) as broker:
        paths = (await get_document(broker))["paths"]
        assert sum(len(methods) for methods in paths.values()) == len(endpoints_of(broker))
        for endpoint in endpoints_of(broker):
            operation = paths[endpoint.path.replace(":path}", "}")][endpoint.method.lower()]
            needs_key = endpoint.access in {"caller", "admin"}
            assert operation["security"] == ([{"key": []}] if needs_key else []), endpoint.path
            assert not needs_key or "401" in operation["responses"], endpoint.path


async def test_duplicate_operation_id_is_rejected(tmp_path: Path) -> None:
    async with open_api(tmp_path) as broker:
        native, *_ = build_app(broker.services).state.dialects
        with pytest.raises(ValueError, match="createImage is used twice"):
            openapi_document([native, native], version="1")


async def test_the_readme_lists_every_route(tmp_path: Path) -> None:
    """Its table of routes is read from the declared endpoints."""
    readme = (ROOT / "README.md").read_text("utf-8")
    table = readme.split("<!-- routes -->")[1].split("<!-- /routes -->")[0].strip()
    assert table == await route_table(tmp_path)


async def route_table(folder: Path) -> str:
    async with open_api(folder) as broker:
        lines = [
            f"| `{endpoint.method} {endpoint.path}` | {endpoint.summary} | {endpoint.access} |"
            for endpoint in endpoints_of(broker)
        ]
    return "\n".join(["| route | | access |", "|---|---|---|", *lines])


async def test_the_codes_are_a_closed_set(tmp_path: Path) -> None:
    async with open_api(tmp_path) as broker:
        schemas = (await get_document(broker))["components"]["schemas"]
        assert set(schemas["ErrorResponse"]["properties"]["code"]["enum"]) == {*STATUS_OF, *TASK_CODES}
        assert set(schemas["TaskErrorDetail"]["properties"]["code"]["enum"]) == set(TASK_CODES)


async def test_example_order_of_the_page_is_accepted_and_stores_nothing(tmp_path: Path) -> None:
    async with open_api(tmp_path) as broker:
        (example,) = (await get_document(broker))["components"]["schemas"]["OrderJson"]["examples"]
        before = await broker.stored_counts()
        assert (await broker.client.post(CREATE, json=example)).status_code == 200
        assert await broker.stored_counts() == before


async def test_unchanged_document_is_answered_with_304(tmp_path: Path) -> None:
    async with open_api(tmp_path) as broker:
        first = await broker.client.get("/openapi.json")
        again = await broker.client.get("/openapi.json", headers={"If-None-Match": first.headers["etag"]})
        assert (again.status_code, again.content) == (304, b"")


# -- real responses


def check_body(document: dict[str, Any], method: str, template: str, answer: httpx.Response) -> None:
    """Check that a body matches the schema that the document has for its status."""
    responses = document["paths"][template][method.lower()]["responses"]
    described = responses.get(str(answer.status_code)) or responses["5XX"]
    schema = described["content"]["application/json"]["schema"]
    errors = Draft202012Validator({**schema, "components": document["components"]}).iter_errors(answer.json())
    assert [error.message for error in errors] == [], (method, template, answer.text)


async def test_responses_match_the_document(tmp_path: Path) -> None:
    """One of each kind, with many fields; generated requests follow below."""
    async with filled_broker(tmp_path) as (broker, known):
        document = await get_document(broker)
        prompt = {"prompt": "x"}
        requests: list[tuple[str, str, str, dict[str, Any], int]] = [
            ("POST", CREATE, CREATE, {"json": {**prompt, "n": 2, "seed": 1}}, 202),
            ("POST", CREATE, CREATE, {"files": [("image", ("a.png", png(), "image/png"))], "data": prompt}, 202),
            ("POST", CREATE, CREATE, {"json": {**prompt, "dryRun": True}}, 200),
            ("POST", CREATE, CREATE, {"json": {"prompt": "", "model": "sora"}}, 400),
            ("GET", "/api/tasks", "/api/tasks", {}, 200),
            ("GET", "/api/tasks", "/api/tasks?limit=2&status=failed", {}, 200),
            ("GET", "/api/models", "/api/models", {}, 200),
            ("GET", "/api/costs", "/api/costs", {}, 200),
            ("GET", "/api/deliveries", "/api/deliveries", {}, 200),
            ("GET", "/api/deliveries/{id}", f"/api/deliveries/{known.deliveries[0]}", {}, 200),
            ("POST", "/api/deliveries/{id}/replay", f"/api/deliveries/{known.deliveries[0]}/replay", {}, 202),
            ("GET", "/api/callbacks", "/api/callbacks", {}, 200),
            ("GET", "/", "/", {}, 200),
            ("GET", "/health", "/health", {}, 200),
            ("GET", "/ready", "/ready", {}, 200),
            ("GET", "/api/webhook/{provider}", "/api/webhook/kie", {}, 200),
            ("POST", WEBHOOK_PATH, WEBHOOK_PATH, {"json": {"task_id": known.tasks[2]}}, 200),
            ("DELETE", "/api/task/{id}", f"/api/task/{known.tasks[2]}", {}, 200),
            ("DELETE", "/api/task/{id}", f"/api/task/{known.tasks[2]}?cancelOnly=true", {}, 409),
            *(("GET", "/api/task/{id}", f"/api/task/{task}", {}, 410 if task == known.tasks[-1] else 200)
              for task in known.tasks),
        ]  # fmt: skip
        for method, template, path, body, status in requests:
            answer = await broker.client.request(method, path, headers=AUTHORIZED, **body)
            assert answer.status_code == status, (method, path, answer.text)
            check_body(document, method, template, answer)


async def test_unready_response_matches_the_document(tmp_path: Path) -> None:
    async with open_api(tmp_path) as broker:
        document = await get_document(broker)
        broker.mount(clock=ManualClock(9e9))
        answer = await broker.client.get("/ready")
        assert answer.status_code == 503
        check_body(document, "GET", "/ready", answer)


# -- generated requests

FOR_OTHERS = {
    "POST /api/register": {403},
    "POST /api/login": {401},
    "DELETE /api/me": {403},
    "POST /api/me/password": {403},
    "GET /api/me/provider-keys/{provider}": {404},
    "PUT /api/me/provider-keys/{provider}": {403},
    "DELETE /api/me/provider-keys/{provider}": {404},
    "GET /api/me/sessions": {403},
    "DELETE /api/me/sessions": {403},
    "DELETE /api/me/sessions/{id}": {403},
}
"""Endpoints for users, to whom the operator's key does not belong; registration is closed."""


def check_findings(broker: ApiBroker, findings: Findings) -> None:
    """Check that every endpoint was reached, with more than errors, and that nothing was found."""
    endpoints = {f"{endpoint.method} {endpoint.path}" for endpoint in endpoints_of(broker, "native")}
    assert findings.failures == [], "\n".join(report_lines(findings))
    assert {endpoint for endpoint, _ in findings.seen} == endpoints
    for endpoint in endpoints:
        assert findings.statuses(endpoint) & FOR_OTHERS.get(endpoint, {200, 201, 202, 204, 206}), endpoint
    assert {
        "not_a_server_error",
        "status_code_conformance",
        "content_type_conformance",
        "response_schema_conformance",
        "response_headers_conformance",
        "negative_data_rejection",
        "ignored_auth",
        "unsupported_method",
    } <= set(findings.checks)


async def test_generated_requests_are_answered_as_described(tmp_path: Path) -> None:
    """No 5xx, no undocumented status, header, type or key, and no endpoint open without a key."""
    async with filled_broker(tmp_path) as (broker, known):
        check_findings(broker, await run_fuzzer(broker, known, examples=2))


@pytest.mark.parametrize("mode", ["positive", pytest.param("all", marks=pytest.mark.faults)])
async def test_generated_requests_cause_no_error_on_postgres(
    tmp_path: Path, postgres: postgres.Postgres, mode: Literal["positive", "all"]
) -> None:
    """It is stricter about texts and numbers than SQLite. Invalid requests are rejected before they reach it."""
    async with filled_broker(tmp_path, database_url=await postgres.fresh()) as (broker, known):
        check_findings(broker, await run_fuzzer(broker, known, examples=1, seed=2, mode=mode))


async def test_fuzzer_reports_an_undocumented_response(tmp_path: Path) -> None:
    """Here the responses lack a key that the document requires."""
    async with filled_broker(tmp_path) as (broker, known):
        document = await get_document(broker)
        document["components"]["schemas"]["TaskData"]["required"].append("captions")
        document["paths"] = {path: item for path, item in document["paths"].items() if path == "/api/task/{id}"}
        findings = await run_fuzzer(broker, known, examples=1, document=document)
        assert any("response_schema_conformance" in failure and "captions" in failure for failure in findings.failures)


# -- for browsers


async def test_every_response_has_security_headers(tmp_path: Path) -> None:
    """Errors and malformed HTTP included; images and the page have headers of their own."""
    async with open_api(tmp_path, sockets=True, cors_origins=("https://app.example.com",)) as broker:
        task = await broker.add_task(state=TaskState.SUCCEEDED, ended_at=broker.services.clock.now())
        image = await broker.add_image(task.id, png())
        paths = ["/", "/health", "/ready", "/metrics", "/api/tasks", "/api/models", "/openapi.json", "/docs", "/nope"]
        paths += [f"/api/task/{task.id}", f"/api/task/{task.id}/events", f"/uploads/images/{image.name}", "/api/task/x"]
        answers = [await broker.client.get(path) for path in paths]
        again = {"If-None-Match": answers[paths.index(f"/api/task/{task.id}")].headers["etag"]}
        answers += [await broker.client.get(f"/api/task/{task.id}", headers=again), await broker.client.put("/health")]
        answers.append(await broker.client.options(CREATE, headers={"Origin": "https://evil.example"}))
        for answer in answers:
            assert answer.headers.get_list("x-content-type-options") == ["nosniff"], answer.url
            assert answer.headers.get_list("referrer-policy") == ["no-referrer"], answer.url
            (policy,) = answer.headers.get_list("content-security-policy")
            assert policy.startswith("default-src 'none'"), answer.url
            assert "unsafe" not in policy
        no_http = (await broker.send_raw(b"BREW\r\n\r\n")).lower()
        assert b"content-security-policy: default-src 'none'" in no_http
        assert b"nosniff" in no_http


async def test_the_page_loads_nothing_from_elsewhere(tmp_path: Path) -> None:
    async with open_api(tmp_path, sockets=True) as broker:
        page = await broker.client.get("/docs")
        assert page.headers["content-type"] == "text/html; charset=utf-8"
        assert "://" not in page.text
        assert "script-src 'self';" in page.headers["content-security-policy"]
        for name, media_type in FILES.items():
            assert f'"docs/{name}"' in page.text
            answer = await broker.client.get(f"/docs/{name}")
            assert (answer.status_code, answer.headers["content-type"]) == (200, f"text/{media_type}; charset=utf-8")
            again = await broker.client.get(f"/docs/{name}", headers={"If-None-Match": answer.headers["etag"]})
            assert (again.status_code, again.content) == (304, b"")
        for name in ("page.html", "LICENSE", "..%2f..%2fcatalog.toml", "swagger-ui"):
            assert (await broker.client.get(f"/docs/{name}")).status_code == 404


def test_swagger_ui_is_packaged_with_its_licence() -> None:
    folder = ROOT / "broker" / "web" / "docs" / "swagger-ui"
    assert "Apache License" in (folder / "LICENSE").read_text("utf-8")
    assert "SmartBear" in (folder / "NOTICE").read_text("utf-8")


def test_wheel_contains_the_page() -> None:
    """Files other than Python are packed only if pyproject.toml names them."""
    patterns = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["tool"]["setuptools"]["package-data"]
    packed = {path for pattern in patterns["broker"] for path in (ROOT / "broker").glob(pattern) if path.is_file()}
    assert packed == {path for path in (ROOT / "broker" / "web").rglob("*") if path.is_file()}


def open_in_browser(url: str, profile: Path) -> tuple[str, str]:
    """Return the page after its scripts have run, and the messages of the browser."""
    flags = "--headless --no-sandbox --disable-gpu --no-first-run --virtual-time-budget=20000 --enable-logging=stderr"
    command = [str(BROWSER), *flags.split(), f"--user-data-dir={profile}", "--dump-dom", url]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100, check=False)
    return done.stdout, done.stderr


@pytest.mark.skipif(BROWSER is None, reason="no browser is installed")
async def test_browser_shows_the_page_without_errors(tmp_path: Path) -> None:
    async with open_api(tmp_path / "data", sockets=True) as broker:
        url = f"http://127.0.0.1:{broker.port}/docs"
        shown, messages = await asyncio.to_thread(open_in_browser, url, tmp_path / "profile")
        assert "Order images" in shown
        assert all(f"operations-{one.tag}-{one.operation_id}" in shown for one in endpoints_of(broker))
        assert "CONSOLE" not in messages, messages
